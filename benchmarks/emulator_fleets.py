"""``simulate`` beside the emulated run: random fleets, a predicted step, measured steps.

A small convolutional network on two to four devices. The costs are measured by the devices, the
plan is made from them and uses all of them, and the prediction is ``simulate`` of that plan, with
lost packets as chance has them.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from statistics import mean
from typing import Any

from torch import nn

import edgeweave as ew
from benchmarks.emulator_runs import OPTIMIZER, Deployed, Training, captured_of
from benchmarks.emulator_table import Prediction
from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.plan import Costs, Plan, partition, simulate
from edgeweave.program import Captured
from edgeweave.train import measure_costs

__all__ = ["FleetRun", "Setup", "measure_fleets", "random_setup"]

_MEGABIT = 125_000.0
_MICROBATCH_SIZE = 8
_MICROBATCHES = (4, 8, 16)
_LEAST_STEP_SECONDS = 0.4
_RUN_SECONDS = 5.0
_SIMULATED_STEPS = 50


@dataclass(frozen=True, slots=True)
class Setup:
    """One fleet: its devices and their links."""

    devices: tuple[ew.Device, ...]
    links: ew.Links

    def __str__(self) -> str:
        return "speeds " + " ".join(f"{device.speed:.2f}" for device in self.devices)


@dataclass(frozen=True, slots=True)
class FleetRun:
    """What was predicted and measured, and what from."""

    prediction: Prediction
    steps: list[float]
    settings: dict[str, Any]


def random_setup(seed: int) -> Setup:
    """Two to four devices of 0.1 to 0.6 cores, 1.2 in sum at most, and links in all directions,
    the coordinator's included.

    Rates are 5 to 200 Mbit/s, even on a logarithmic scale, delays 0 to 20 ms, losses 0 to 1 %.
    """
    chance = random.Random(seed)
    n_devices = chance.randint(2, 4)
    while sum(speeds := [chance.uniform(0.1, 0.6) for _ in range(n_devices)]) > 1.2:
        pass
    devices = tuple(
        ew.Device(f"device-{index}", speed=round(speed, 2)) for index, speed in enumerate(speeds)
    )
    ends = [*(device.name for device in devices), COORDINATOR_NAME]
    pairs = {
        (source, target): _random_shape(chance)
        for source in ends
        for target in ends
        if source != target
    }
    return Setup(devices, ew.Links.of(pairs, seed=seed))


def _random_shape(chance: random.Random) -> ew.LinkShape:
    return ew.LinkShape(
        bytes_per_second=_MEGABIT * 5 * 40 ** chance.random(),
        delay_seconds=chance.uniform(0.0, 0.02),
        loss=chance.uniform(0.0, 0.01),
    )


def measure_fleets(seeds: tuple[int, ...]) -> list[FleetRun]:
    """Predict and measure the fleet of each seed."""
    captured = captured_of(Training(_network, _MICROBATCH_SIZE, 1))
    return [_measure(seed, random_setup(seed), captured) for seed in seeds]


def _measure(seed: int, setup: Setup, captured: Captured) -> FleetRun:
    with ew.Fleet.local(setup.devices, links=setup.links) as fleet:
        costs = measure_costs(
            fleet, captured, microbatch_size=_MICROBATCH_SIZE, optimizer=OPTIMIZER
        )
        plan = _plan(costs)
        training = Training(_network, _MICROBATCH_SIZE, plan.n_microbatches)
        n_steps = min(max(math.ceil(_RUN_SECONDS / plan.step_seconds), 4), 12)
        with Deployed(fleet, captured, plan, training) as deployed:
            steps = deployed.steps(n_steps)
    predicted = simulate(plan, costs, n_steps=_SIMULATED_STEPS, seed=seed).step_seconds
    prediction = Prediction(f"{seed}: {setup}", predicted, mean(steps))
    return FleetRun(prediction, steps, _settings(setup, costs, plan))


def _plan(costs: Costs) -> Plan:
    """On all devices, with the fewest microbatches that make a step long enough to measure."""
    for count in _MICROBATCHES:
        plan = partition(costs, n_microbatches=count, use="all")
        if plan.step_seconds >= _LEAST_STEP_SECONDS:
            break
    return plan


def _settings(setup: Setup, costs: Costs, plan: Plan) -> dict[str, Any]:
    links = {
        f"{source} -> {target}": {
            "asked_bytes_per_second": shape.bytes_per_second,
            "asked_delay_seconds": shape.delay_seconds,
            "asked_loss": shape.loss,
            "measured_bytes_per_second": costs.link(source, target).bytes_per_second,
            "measured_latency_seconds": costs.link(source, target).latency_seconds,
            "measured_loss": costs.link(source, target).loss,
        }
        for source, target, shape in setup.links.pairs
    }
    stages = [[stage.device, stage.first_unit, stage.stop_unit] for stage in plan.stages]
    return {"n_microbatches": plan.n_microbatches, "stages": stages, "links": links}


def _network() -> nn.Module:
    """Ten convolutions that narrow quickly: a link of 5 Mbit/s is slow for it, not hopeless."""
    layers: list[nn.Module] = []
    channels = 3
    for wide, strides in ((48, (2, 1)), (96, (2, 1, 1)), (128, (2, 1, 1, 1, 1))):
        for stride in strides:
            layers += [nn.Conv2d(channels, wide, 3, stride=stride, padding=1), nn.ReLU()]
            channels = wide
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
