"""What a schedule without flush gains.

    async_vs_equal_split_1_1_0p1   devices of 0.4, 0.4 and 0.04 cores, async-1f1b: throughput of our
                                   plan / that of the split for equal devices (FTPipeHD's setting)
    async_efficiency               devices of 0.5, 0.5 and 0.25 cores, async-1f1b: throughput / the
                                   sum of what each device reaches alone
    async_vs_1f1b                  the same fleet: throughput / that of the planner's 1f1b plan

MobileNetV2 at 32 x 32, 16 microbatches of 8. Contestants take turns (A B A B ...), and in every
turn the devices are profiled anew: a shared host is twice as fast in one minute as in another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

import edgeweave as ew
from benchmarks.harness import Result, ratios
from edgeweave.plan import ASYNCHRONOUS, Costs, Plan, partition
from edgeweave.plan.ranking import plan_from_split
from edgeweave.plan.splits import Microbatching, Split
from edgeweave.plan.stages import steps_to_settle
from edgeweave.train import PipelineTrainer

__all__ = ["run"]

_SEED = 0
_MICROBATCHES = 16
_MICROBATCH_SIZE = 8
_BATCH = _MICROBATCHES * _MICROBATCH_SIZE
_UNEQUAL = {"fast-a": 0.4, "fast-b": 0.4, "slow": 0.04}
_SPEEDS = {"pi-a": 0.5, "pi-b": 0.5, "old-laptop": 0.25}


def run(*, quick: bool) -> Result:
    """Measure; ``quick`` takes one turn of two steps."""
    torch.set_num_threads(1)
    turns, steps = (1, 2) if quick else (5, 12)
    unequal = _measured(turns, max(steps // 2, 1), _UNEQUAL, _unequal_plans)
    efficiency = _measured(turns, steps, _SPEEDS, _efficiency_plans)
    seconds = {**unequal.seconds, **efficiency.seconds}
    alone = [sum(1 / seconds[name][turn] for name in _SPEEDS) for turn in range(turns)]
    found = {
        "async_vs_equal_split_1_1_0p1": ratios(seconds["equal_split"], seconds["our_plan"]),
        "async_efficiency": ratios([1 / each for each in seconds["fleet_async"]], alone),
        "async_vs_1f1b": ratios(seconds["fleet_1f1b"], seconds["fleet_async"]),
        "async_predicted_over_measured": ratios(
            efficiency.predicted["fleet_async"], seconds["fleet_async"]
        ),
    }
    metrics = {key: median(each) for key, each in found.items()}
    return Result(
        name="asynchronous",
        quick=quick,
        metrics=metrics,
        lines=tuple(f"{key:>34} = {value:.3f}" for key, value in metrics.items()),
        samples={**{f"{name}_step_seconds": each for name, each in seconds.items()}, **found},
        settings={
            "seed": _SEED,
            "turns": turns,
            "steps": steps,
            "microbatches": _MICROBATCHES,
            "microbatch_size": _MICROBATCH_SIZE,
            "speeds": {"unequal": _UNEQUAL, "efficiency": _SPEEDS},
            "plans_of_the_last_turn": {**unequal.described, **efficiency.described},
        },
    )


@dataclass
class _Measured:
    """By contestant: seconds of a step in every turn, measured and predicted; its last plan."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    predicted: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    described: dict[str, dict[str, Any]] = field(default_factory=dict)


def _measured(
    turns: int,
    steps: int,
    speeds: Mapping[str, float],
    plans_of: Callable[[Costs], Mapping[str, Plan]],
) -> _Measured:
    """Every turn has a fleet of its own, which is profiled anew: hosts drift."""
    found = _Measured()
    for _ in range(turns):
        with ew.Fleet.local([ew.Device(n, speed=s) for n, s in speeds.items()]) as fleet:
            for name, plan in plans_of(_costs(fleet)).items():
                found.seconds[name].append(_step_seconds(fleet, plan, steps))
                found.predicted[name].append(plan.step_seconds)
                found.described[name] = _described(plan)
    return found


def _unequal_plans(costs: Costs) -> dict[str, Plan]:
    ours = partition(costs, n_microbatches=_MICROBATCHES, schedule=ASYNCHRONOUS)
    return {"our_plan": ours, "equal_split": _equal_split(costs, ours.extra_in_flight)}


def _efficiency_plans(costs: Costs) -> dict[str, Plan]:
    """The fleet's under both schedules, and those of each device alone."""
    return {
        "fleet_async": partition(
            costs, n_microbatches=_MICROBATCHES, schedule=ASYNCHRONOUS, use="all"
        ),
        "fleet_1f1b": partition(costs, n_microbatches=_MICROBATCHES, use="all"),
        **{n: partition(costs, n_microbatches=_MICROBATCHES, devices=[n]) for n in _SPEEDS},
    }


def _equal_split(costs: Costs, extra_in_flight: int) -> Plan:
    """The plan for devices that were all like the first, in their order, as it really runs."""
    first = costs.devices[0]
    alike = replace(
        costs,
        devices=tuple(replace(first, device=device.device) for device in costs.devices),
        links={},
    )
    told = {"n_microbatches": _MICROBATCHES, "schedule": ASYNCHRONOUS}
    blind = partition(alike, extra_in_flight=extra_in_flight, use="all", **told)  # type: ignore[arg-type]
    split = Split(blind.devices, blind.bounds)
    return plan_from_split(
        split, costs, Microbatching(ASYNCHRONOUS, _MICROBATCHES, extra_in_flight)
    )


def _costs(fleet: ew.Fleet) -> Costs:
    trainer = _trainer(fleet, None)
    trainer.prepare(_dataset(_BATCH), batch_size=_BATCH)
    assert trainer.costs is not None, "a trainer without a plan measures"
    return trainer.costs


def _step_seconds(fleet: ew.Fleet, plan: Plan, steps: int) -> float:
    """The mean of so many steps, which follow each other while the pipeline is full.

    Without a flush microbatches of neighbouring steps overlap: one may take from another's time.
    """
    settling = steps_to_settle(plan)
    first = max(1, settling)
    data = _dataset(_BATCH * (first + steps + settling))
    report = _trainer(fleet, plan).fit(data, batch_size=_BATCH, epochs=1, progress=False)
    return fmean(report.step_seconds[first : first + steps])


def _trainer(fleet: ew.Fleet, plan: Plan | None) -> PipelineTrainer:
    torch.manual_seed(_SEED)
    return PipelineTrainer(
        MobileNetV2ForImageClassification(MobileNetV2Config(image_size=32)),
        _loss,
        optimizer=ew.Optimizer("SGD", lr=0.01, momentum=0.9),
        fleet=fleet,
        n_microbatches=_MICROBATCHES,
        seed=_SEED,
        plan=plan,
    )


def _loss(output: Any, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output.logits, target)


def _dataset(n_samples: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(_SEED)
    images = torch.randn(n_samples, 3, 32, 32, generator=generator)
    return TensorDataset(images, torch.randint(2, (n_samples,), generator=generator))


def _described(plan: Plan) -> dict[str, Any]:
    return {
        "devices": plan.devices,
        "bounds": plan.bounds,
        "schedule": plan.schedule,
        "extra_in_flight": plan.extra_in_flight,
        "predicted_seconds": plan.step_seconds,
    }
