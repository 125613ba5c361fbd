"""How much longer steps take than they would, had every device run every unit before.

Fleets are three to five kinds of devices (``benchmarks/latency``), networks the known ones, which
were measured unit by unit on each kind. A plan is made from what is believed, and judged by its
simulated step with what was measured. Regret is that step over the step of the plan made from what
was measured. What predicts was taught by no kind of the fleet, and by none of these networks.

    zero_shot        each device is known by its probe
    50_samples       and by 50 units of the known networks, drawn at random
    scalar_capacity  FTPipeHD's: a full profile of one kind (``reference``), times what the whole
                     network takes on the device over what it takes there
    flops            overhead and seconds per multiply-add, fitted to the probe
    equal_split      as many units for each device
    profiled_again   a full profile, judged by two later recordings of it: what a perfect profile
                     costs, as devices do not repeat what they took
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from statistics import fmean, median

import numpy as np

from benchmarks.latency.drawing import Example
from benchmarks.latency.held_out import HeldOut, measurements
from benchmarks.latency.known import KNOWN
from benchmarks.latency.samples import Samples, Units
from benchmarks.predictor import fitted, flops
from edgeweave.device import Optimizer
from edgeweave.plan import (
    Costs,
    DeviceCosts,
    Interval,
    Link,
    Plan,
    drawn_costs,
    partition,
    simulate,
)
from edgeweave.plan.ranking import plan_from_split
from edgeweave.plan.splits import Microbatching, Split
from edgeweave.predict import DeviceLatency, LatencyModel
from edgeweave.predict.features import Floats
from edgeweave.program import Captured, capture
from edgeweave.train.measuring.costs import Sizes, costs_of
from edgeweave.train.measuring.predictions import predict_devices

__all__ = [
    "BOARD",
    "WAYS",
    "Knowledge",
    "Network",
    "Regrets",
    "Setting",
    "judged",
    "networks_of",
    "regrets",
]

WAYS = ("zero_shot", "50_samples", "scalar_capacity", "flops", "equal_split", "profiled_again")

_SEED = 0
_REFERENCE = "reference"
_N_SAMPLES = 50
_MICROBATCHES = 16
_DRAWS = 32
_QUICK_NETWORKS = ("resnet18-32", "resnet50-64")
_OPTIMIZER = Optimizer("SGD", lr=0.1)
"""What its steps take was not recorded: nothing, here."""
_HELD_OUT = 5
"""Kinds that one model knows nothing of; fleets are made of them."""
BOARD = 0.32
"""A Raspberry Pi 4's speed in the preset ``raspberry-pi-wifi``, relative to this host. Not the
devices are slowed but the network sped up: ratios of times are the same."""
_LINKS = (
    Link(bytes_per_second=941e6 / 8, latency_seconds=1e-4),
    Link(bytes_per_second=45e6 / 8 / BOARD, latency_seconds=3e-3 * BOARD, loss=0.002),
)
"""Those of the presets ``lan`` and ``raspberry-pi-wifi``; fleets have them in turn."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A network on a fleet: what is measured, and what is believed by each way of knowing."""

    measured: Costs
    believed: Mapping[str, Costs]
    first: Costs
    """A single recording of what was measured."""
    later: Costs
    """What two others say."""


@dataclass(slots=True)
class Regrets:
    """By way and fleet: regrets of its networks. ``within``: was the step in its interval?"""

    of: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    within: list[bool] = field(default_factory=list)

    def add(self, fleet: str, setting: Setting) -> None:
        """Judge one network on one fleet."""
        found, within = judged(setting)
        self.within.append(within)
        for way, regret in found.items():
            self.of.setdefault(way, {}).setdefault(fleet, []).append(regret)

    @property
    def fleets(self) -> list[str]:
        """Kinds and link of each."""
        return list(self.of[WAYS[0]])

    def by_fleet(self, way: str) -> list[float]:
        """Every fleet's mean over the networks."""
        return [fmean(each) for each in self.of[way].values()]

    def metrics(self) -> dict[str, float]:
        """The median fleet, the worst network on any fleet, and how honest intervals are."""
        typical = {f"plan_regret_{way}": median(self.by_fleet(way)) for way in self.of}
        worst = {
            f"plan_regret_{way}_worst": max(max(each) for each in self.of[way].values())
            for way in self.of
        }
        return {**typical, **worst, "plan_step_within_interval": fmean(self.within)}


def regrets(*, quick: bool) -> Regrets:
    """Five kinds are held out together, and then four and one of those; ``quick`` stops earlier.

    ``quick`` also takes two networks, and a sixth of what teaches.
    """
    samples = Samples.load()
    kinds = [kind for kind in samples.seconds if kind != _REFERENCE]
    Random(_SEED).shuffle(kinds)
    groups = [kinds[:_HELD_OUT]] if quick else [kinds[:_HELD_OUT], kinds[-_HELD_OUT:]]
    networks = list(networks_of(samples, _QUICK_NETWORKS if quick else ()))
    found = Regrets()
    for group in groups:
        model = HeldOut(samples, group, every=6 if quick else 1).model
        knowledge = Knowledge(samples, group, model)
        for network in networks:
            believed = knowledge.of(network)
            for number, fleet in enumerate(_fleets(group)):
                link = _LINKS[number % len(_LINKS)]
                setting = _setting(network, believed, fleet, link)
                found.add(f"{' '.join(fleet)}, link {number % len(_LINKS)}", setting)
    return found


def judged(setting: Setting) -> tuple[dict[str, float], bool]:
    """The regret of each way, and whether the zero-shot plan's step lies in its interval."""
    measured, believed = setting.measured, setting.believed
    best = _step_seconds(_planned(measured), measured)
    plans = {way: _planned(costs) for way, costs in believed.items()}
    steps = {way: _step_seconds(plan, measured) for way, plan in plans.items()}
    steps["equal_split"] = _step_seconds(_equal_split(measured), measured)
    repeated = _regret(setting.first, setting.later)
    zero_shot = WAYS[0]
    drawn = drawn_costs(believed[zero_shot], _DRAWS, seed=_SEED)
    interval = Interval.of([_step_seconds(plans[zero_shot], each) for each in drawn])
    within = interval.low <= steps[zero_shot] <= interval.high
    found = {way: seconds / best for way, seconds in steps.items()}
    return {**found, "profiled_again": repeated}, within


def _regret(believed: Costs, measured: Costs) -> float:
    best = _step_seconds(_planned(measured), measured)
    return _step_seconds(_planned(believed), measured) / best


def _planned(costs: Costs) -> Plan:
    return partition(costs, n_microbatches=_MICROBATCHES)


def _step_seconds(plan: Plan, costs: Costs) -> float:
    return simulate(plan, costs).step_seconds


def _equal_split(costs: Costs) -> Plan:
    n_units = len(costs.units)
    names = tuple(device.device for device in costs.devices)[:n_units]
    bounds = tuple(round(n_units * index / len(names)) for index in range(len(names) + 1))
    return plan_from_split(Split(names, bounds), costs, Microbatching("1f1b", _MICROBATCHES, 2))


@dataclass(frozen=True, slots=True)
class Network:
    """A known network: the units that were measured, and what it is but for the devices."""

    example: Example
    units: Units
    captured: Captured
    costs: Costs

    @property
    def microbatch_size(self) -> int:
        return len(self.example.inputs)


def networks_of(samples: Samples, names: Collection[str] = ()) -> Iterator[Network]:
    """The known networks, as they were measured; all of them if none is named."""
    known = np.array(samples.networks)
    for make in KNOWN:
        example = make()
        if names and example.name not in names:
            continue
        units = np.flatnonzero(known == example.name)
        model = example.model.train()
        captured = capture(model, example.loss, example.inputs, example.targets)
        program = captured.program
        if len(units) != len(program.unit_numbers):
            raise ValueError(
                f"{example.name} was measured with {len(units)} units and has "
                f"{len(program.unit_numbers)}. Measure again: python -m benchmarks.latency.samples."
            )
        size = len(example.inputs)
        nobody = DeviceCosts("nobody", (0.0,) * len(units), (0.0,) * len(units), None)
        costs = costs_of(Sizes.of(program, size), _OPTIMIZER, [nobody], {})
        yield Network(example, units, captured, costs)


def _fleets(kinds: Sequence[str]) -> list[tuple[str, ...]]:
    """Four fleets of three to five of five kinds."""
    return [tuple(kinds), tuple(kinds[1:]), tuple(kinds[:3]), tuple(kinds[2:])]


class Knowledge:
    """What is believed of kinds, by a model that was not taught by them."""

    def __init__(self, samples: Samples, kinds: Sequence[str], model: LatencyModel) -> None:
        self._samples, self._kinds = samples, kinds
        probe, known = samples.units("probe"), samples.units("known")
        learnt = np.random.default_rng(_SEED).permutation(known)[:_N_SAMPLES]
        probed = {kind: DeviceLatency(model, measurements(samples, kind, probe)) for kind in kinds}
        self._latencies = {
            "zero_shot": probed,
            "50_samples": {
                kind: latency.given(measurements(samples, kind, learnt))
                for kind, latency in probed.items()
            },
        }

    def of(self, network: Network) -> dict[str, dict[str, DeviceCosts]]:
        """Of a network's units, by way and kind; ``"measured"`` is what they really take.

        ``"first"`` and ``"later"`` are what one recording and two others say.
        """
        units, seconds = network.units, self._samples.seconds
        reference = seconds[_REFERENCE][units]
        probe = self._samples.units("probe")
        found = {
            way: {
                kind: replace(costs, update_seconds_per_byte=0.0)
                for kind, costs in predict_devices(
                    network.captured.program, network.microbatch_size, _OPTIMIZER, latencies
                ).items()
            }
            for way, latencies in self._latencies.items()
        }
        plain: dict[str, dict[str, Floats]] = {
            "measured": {kind: seconds[kind][units] for kind in self._kinds},
            "first": {kind: self._samples.rounds[kind][0, units] for kind in self._kinds},
            "later": {
                kind: np.nanmean(self._samples.rounds[kind][1:, units], axis=0)
                for kind in self._kinds
            },
            "scalar_capacity": {
                kind: reference * seconds[kind][units].sum() / reference.sum()
                for kind in self._kinds
            },
            "flops": {
                kind: fitted(self._samples, flops, seconds[kind], probe, units)
                for kind in self._kinds
            },
        }
        for way, by_kind in plain.items():
            found[way] = {kind: _device_costs(kind, each) for kind, each in by_kind.items()}
        return found


def _device_costs(kind: str, seconds: Floats) -> DeviceCosts:
    forward, backward = (tuple(each.tolist()) for each in seconds.T)
    return DeviceCosts(kind, forward, backward, None)


def _setting(
    network: Network,
    believed: Mapping[str, Mapping[str, DeviceCosts]],
    fleet: Collection[str],
    link: Link,
) -> Setting:
    costs = {
        way: replace(
            network.costs,
            devices=tuple(by_kind[kind] for kind in fleet),
            default_link=link,
        )
        for way, by_kind in believed.items()
    }
    measured, first, later = (costs.pop(each) for each in ("measured", "first", "later"))
    return Setting(measured, costs, first, later)
