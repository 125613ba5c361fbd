"""The same work done by Edgeweave and by others, in the same run.

    vs_torch_pipelining      ResNet-18 at 32 x 32 in 2 or 3 processes of one thread, unshaped and
                             unthrottled: throughput / that of ``torch.distributed.pipelining``,
                             each as it is shipped
    ..._same_allocator       the same, every process with the allocator settings of our agents
    vs_equal_split_1_1_0p1   emulated devices of 0.4, 0.4 and 0.04 cores: throughput of our plan /
                             that of the split FTPipeHD and PipeDream make of equal devices
    vs_one_device_1_1_0p1    throughput of our plan / that of one device of 0.4 alone

Contestants take turns (A B A B ...); each ratio is of one turn. Everybody computes the same
microbatches from the same weights, so the losses are compared as well.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from statistics import median
from typing import Any

import torch

import edgeweave as ew
from benchmarks.children import ALLOCATOR, same_allocator
from benchmarks.harness import Result, interleaved, ratios
from benchmarks.pipelines import OurPipeline, TorchPipeline, Work
from benchmarks.resnet import Images, cross_entropy, resnet18
from edgeweave.plan import Costs, Plan, partition
from edgeweave.plan.ranking import plan_from_split
from edgeweave.plan.splits import Microbatching, Split
from edgeweave.train import PipelineTrainer

__all__ = ["run"]

_SEED = 0
_WORK = Work(
    first_blocks=(0, 6),
    schedule="1f1b",
    n_microbatches=16,
    microbatch_size=8,
    n_samples=1024,
    lr=0.01,
    momentum=0.9,
    seed=_SEED,
    extra_in_flight=2,
)
_CASES = {
    "vs_torch_pipelining": _WORK,
    "vs_torch_pipelining_same_allocator": _WORK,
    "vs_torch_pipelining_gpipe": replace(_WORK, schedule="gpipe"),
    "vs_torch_pipelining_3": replace(_WORK, first_blocks=(0, 4, 6)),
    "vs_torch_pipelining_3_gpipe": replace(_WORK, first_blocks=(0, 4, 6), schedule="gpipe"),
}
_SPEEDS = {"fast-a": 0.4, "fast-b": 0.4, "slow": 0.04}
_MICROBATCHES = 32
_MICROBATCH_SIZE = 4


def run(*, quick: bool) -> Result:
    """Measure; ``quick`` runs the first comparison with torch and one turn of the plans."""
    torch.set_num_threads(1)
    turns, steps = (3, 3) if quick else (7, 4)
    samples: dict[str, list[float]] = {}
    differences: list[float] = []
    lines: list[str] = []
    for key, work in list(_CASES.items())[: 1 if quick else None]:
        with same_allocator() if key.endswith("_same_allocator") else nullcontext():
            differences.append(_against_torch(key, work, turns, steps, samples))
        lines.append(_line(key, samples))
    facts = _against_plans(1 if quick else 7, samples)
    lines += [_line(key, samples) for key in samples if key.endswith("_1_1_0p1")]
    lines += [f"{key:>34} {value}" for key, value in facts.items()]
    metrics = {key: median(series) for key, series in samples.items() if key.startswith("vs_")}
    metrics["loss_difference_vs_torch"] = max(differences)
    metrics["losses_bit_equal"] = float(facts.pop("losses_bit_equal"))
    ours = median(samples["our_plan_step_seconds"])
    metrics["predicted_over_measured_1_1_0p1"] = facts["our_plan"]["predicted_seconds"] / ours
    return Result(
        name="peers",
        quick=quick,
        metrics=metrics,
        lines=tuple(lines),
        samples=samples,
        settings={
            "seed": _SEED,
            "turns": turns,
            "steps_per_burst": steps,
            "microbatches": _WORK.n_microbatches,
            "microbatch_size": _WORK.microbatch_size,
            "first_blocks": {key: list(work.first_blocks) for key, work in _CASES.items()},
            "allocator": dict(ALLOCATOR),
            "emulated": {
                "speeds": _SPEEDS,
                "microbatches": _MICROBATCHES,
                "microbatch_size": _MICROBATCH_SIZE,
                **facts,
            },
        },
    )


def _line(key: str, samples: dict[str, list[float]]) -> str:
    shown = " ".join(f"{ratio:.3f}" for ratio in samples[key])
    return f"{key:>34} = {median(samples[key]):.3f}  ({shown})"


def _against_torch(
    key: str, work: Work, turns: int, steps: int, samples: dict[str, list[float]]
) -> float:
    """Fill in step times and ratios; the largest relative difference between two losses."""
    losses: dict[str, list[float]] = {"ours": [], "torch": []}

    def burst(name: str, system: OurPipeline | TorchPipeline, n_steps: int) -> float:
        done = system.burst(n_steps)
        losses[name] += done.losses
        return done.step_seconds

    with TorchPipeline(work) as theirs, OurPipeline(work) as ours:
        for name, system in (("ours", ours), ("torch", theirs)):
            burst(name, system, 3)  # allocators and caches have seen a few steps
        seconds = interleaved(
            turns,
            {
                "ours": lambda: burst("ours", ours, steps),
                "torch": lambda: burst("torch", theirs, steps),
            },
        )
    for name, series in seconds.items():
        samples[f"{key.removeprefix('vs_')}_step_seconds_{name}"] = series
    samples[key] = ratios(seconds["torch"], seconds["ours"])
    pairs = zip(losses["ours"], losses["torch"], strict=True)
    return max(abs(mine - other) / abs(other) for mine, other in pairs)


def _against_plans(turns: int, samples: dict[str, list[float]]) -> dict[str, Any]:
    """Fill in step times and ratios of three plans on one emulated fleet."""
    batch_size = _MICROBATCHES * _MICROBATCH_SIZE
    data = Images(2 * batch_size, seed=_SEED)
    losses: dict[str, list[float]] = {}
    with ew.Fleet.local([ew.Device(n, speed=s) for n, s in _SPEEDS.items()]) as fleet:
        first = _trainer(fleet)
        first.prepare(data, batch_size=batch_size)
        assert first.costs is not None
        plans = _plans(first.costs)

        def contestant(name: str, plan: Plan) -> Callable[[], float]:
            trainer = _trainer(fleet, plan)
            losses[name] = []

            def measure() -> float:
                report = trainer.fit(data, batch_size=batch_size, epochs=1, progress=False)
                losses[name].extend(report.step_losses)
                return median(report.step_seconds[1:])  # the first finds the pipeline empty

            return measure

        seconds = interleaved(turns, {n: contestant(n, plan) for n, plan in plans.items()})
    for name, series in seconds.items():
        samples[f"{name}_step_seconds"] = series
    samples["vs_equal_split_1_1_0p1"] = ratios(seconds["equal_split"], seconds["our_plan"])
    samples["vs_one_device_1_1_0p1"] = ratios(seconds["one_device"], seconds["our_plan"])
    return {
        "losses_bit_equal": len({tuple(series) for series in losses.values()}) == 1,
        **{name: _described(plan) for name, plan in plans.items()},
    }


def _plans(costs: Costs) -> dict[str, Plan]:
    """Ours; the one for devices that were all like the first, in their order; the first alone."""
    first = costs.devices[0]
    alike = replace(
        costs,
        devices=tuple(replace(first, device=device.device) for device in costs.devices),
        links={},
    )
    blind = partition(alike, n_microbatches=_MICROBATCHES, extra_in_flight=0, use="all")
    split = Split(blind.devices, (0, *(stage.stop_unit for stage in blind.stages)))
    truth = plan_from_split(split, costs, Microbatching("1f1b", _MICROBATCHES, 0))
    return {
        "our_plan": partition(costs, n_microbatches=_MICROBATCHES),
        "equal_split": truth,
        "one_device": partition(costs, n_microbatches=_MICROBATCHES, devices=[first.device]),
    }


def _described(plan: Plan) -> dict[str, Any]:
    return {
        "stages": [[stage.device, stage.first_unit, stage.stop_unit] for stage in plan.stages],
        "predicted_seconds": plan.step_seconds,
    }


def _trainer(fleet: ew.Fleet, plan: Plan | None = None) -> PipelineTrainer:
    return ew.PipelineTrainer(
        resnet18(_SEED),
        cross_entropy,
        optimizer=ew.Optimizer("SGD", lr=0.01, momentum=0.9),
        fleet=fleet,
        n_microbatches=_MICROBATCHES,
        seed=_SEED,
        plan=plan,
    )
