"""Devices vanish from a run: how soon that is noticed, what it costs, and what others would do.

MobileNetV2 at 32 x 32 on devices of 0.5, 0.5 and 0.25 cores.

    detect_seconds_p99          from a kill (from the last result before it) until the coordinator
                                knows; the largest of all repetitions
    detect_stopped_over_limit   the same after SIGSTOP, over three steps and one second
    recover_seconds_p99         from then until the next step begins, unshaped links; the largest
    recomputed_over_interval    steps computed again, over the interval of copies; the largest
    bit_equal                   1 if every run's losses are those of the undisturbed one
    replication_cost            what copying states takes of the throughput, 100 Mbit/s
    vs_takeover, vs_restart     seconds of a run with one kill, 100 Mbit/s, by others / by ours: the
                                neighbour takes over the lost layers (ResPipe); a new run begins at
                                the last checkpoint, with a plan for those left
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

import edgeweave as ew
from benchmarks.harness import Result, ratios
from edgeweave.net import Links, LinkShape
from edgeweave.plan import Plan, partition
from edgeweave.train import Recovery, Report

__all__ = ["run"]

_SPEEDS = {"pi-a": 0.5, "pi-b": 0.5, "old-laptop": 0.25}
_MICROBATCHES, _MICROBATCH_SIZE = 8, 8
_BATCH_SIZE = _MICROBATCHES * _MICROBATCH_SIZE
_LINKS = Links(LinkShape(100e6 / 8, 0.001))
_KILLED_AT = 15
_COPYING_TURNS, _COPYING_STEPS = 7, 60
_TOTAL_STEPS, _TOTAL_KILLED_AT = 200, 100
_SEED = 0


@dataclass(frozen=True, slots=True)
class _Fault:
    """One run in which one device is lost."""

    recovery: Recovery
    step_seconds: float
    interval: int
    is_equal: bool


def run(*, quick: bool) -> Result:
    """``quick``: one kill and one stop, no copies timed, nobody to compare with."""
    torch.set_num_threads(1)
    repetitions, steps = (1, 18) if quick else (4, 24)
    expected = _losses(steps)
    victims = [name for _ in range(repetitions) for name in _SPEEDS][: 1 if quick else None]
    killed = [_fault(ew.Chaos().kill(v, at_step=_KILLED_AT), steps, expected) for v in victims]
    stopped = [_fault(ew.Chaos().stop(v, at_step=_KILLED_AT), steps, expected) for v in victims]
    faults = [*killed, *stopped]
    samples = {
        "detect_seconds_killed": [each.recovery.silent_seconds for each in killed],
        "detect_seconds_stopped": [each.recovery.silent_seconds for each in stopped],
        "detect_stopped_over_limit": [
            each.recovery.silent_seconds / (3 * each.step_seconds + 1) for each in stopped
        ],
        "recover_seconds": [each.recovery.seconds for each in faults],
        "recomputed_over_interval": [
            each.recovery.recomputed_steps / each.interval for each in faults
        ],
    }
    metrics = {
        "detect_seconds_p99": max(samples["detect_seconds_killed"]),
        "detect_stopped_over_limit": max(samples["detect_stopped_over_limit"]),
        "recover_seconds_p99": max(samples["recover_seconds"]),
        "recover_seconds_median": median(samples["recover_seconds"]),
        "recomputed_over_interval": max(samples["recomputed_over_interval"]),
        "bit_equal": float(all(each.is_equal for each in faults)),
    }
    totals: dict[str, float] = {}
    if not quick:
        with_copies, without = _copying()
        totals = _totals()
        samples |= {
            "samples_per_second_with_copies": with_copies,
            "samples_per_second_without": without,
        }
        metrics |= {
            "replication_cost": 1 - median(ratios(with_copies, without)),
            "vs_takeover": totals["takeover"] / totals["ours"],
            "vs_restart": totals["restart"] / totals["ours"],
        }
    return Result(
        name="faults",
        quick=quick,
        metrics=metrics,
        lines=(
            *(f"{name:>10}: {seconds:.1f} s" for name, seconds in totals.items()),
            *(f"{key:>28} = {value:.3f}" for key, value in metrics.items()),
        ),
        samples=samples,
        settings={
            "speeds": _SPEEDS,
            "n_microbatches": _MICROBATCHES,
            "microbatch_size": _MICROBATCH_SIZE,
            "killed_at": _KILLED_AT,
            "repetitions": len(victims),
            "seconds_with_one_kill": totals,
            "steps_with_one_kill": _TOTAL_STEPS,
            "seed": _SEED,
        },
    )


def _fleet(chaos: ew.Chaos | None = None, links: Links | None = None) -> ew.Fleet:
    devices = [ew.Device(name, speed=speed) for name, speed in _SPEEDS.items()]
    return ew.Fleet.local(devices, chaos=chaos, links=links)


def _trainer(fleet: ew.Fleet, **options: Any) -> ew.PipelineTrainer:
    torch.manual_seed(_SEED)
    return ew.PipelineTrainer(
        MobileNetV2ForImageClassification(MobileNetV2Config(image_size=32)),
        lambda output, target: F.cross_entropy(output.logits, target),
        optimizer=ew.Optimizer("SGD", lr=0.05, momentum=0.9),
        fleet=fleet,
        n_microbatches=_MICROBATCHES,
        seed=_SEED,
        **options,
    )


def _fit(
    trainer: ew.PipelineTrainer,
    n_steps: int,
    checkpoint: Path | None = None,
    *,
    resume: bool = False,
) -> Report:
    return trainer.fit(
        _dataset(n_steps),
        batch_size=_BATCH_SIZE,
        epochs=1,
        checkpoint=checkpoint,
        checkpoint_every=None if checkpoint is None else _every(trainer.plan),
        resume=resume,
        progress=False,
    )


def _dataset(n_steps: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(_SEED)
    images = torch.randn(_BATCH_SIZE * n_steps, 3, 32, 32, generator=generator)
    return TensorDataset(images, torch.randint(2, (len(images),), generator=generator))


def _every(plan: Plan | None) -> int:
    """Steps between checkpoints: as many as between copies, and two before the kill."""
    assert plan is not None, "prepared"
    return min(plan.replication.chain_every, _TOTAL_KILLED_AT // 2)


def _losses(n_steps: int) -> tuple[float, ...]:
    """Of a run in which nothing happens."""
    with _fleet() as fleet:
        return _fit(_trainer(fleet), n_steps).step_losses


def _fault(chaos: ew.Chaos, n_steps: int, expected: Sequence[float]) -> _Fault:
    with _fleet(chaos) as fleet:
        trainer = _trainer(fleet)
        plan = trainer.prepare(_dataset(n_steps), batch_size=_BATCH_SIZE)
        report = _fit(trainer, n_steps)
    (recovery,) = report.recoveries
    return _Fault(
        recovery,
        plan.step_seconds,
        plan.replication.chain_every,
        report.step_losses == tuple(expected),
    )


def _copying() -> tuple[list[float], list[float]]:
    """Samples a second, with copies of states and without, in turns on one fleet."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    with _fleet(links=_LINKS) as fleet:
        first = _trainer(fleet)
        plan = first.prepare(_dataset(_COPYING_STEPS), batch_size=_BATCH_SIZE)
        for _ in range(_COPYING_TURNS):
            for recover, found in rates.items():
                trainer = _trainer(fleet, plan=plan, recover=recover)
                report = _fit(trainer, _COPYING_STEPS)
                seconds = sum(report.step_seconds[1:])
                found.append(_BATCH_SIZE * (len(report.step_seconds) - 1) / seconds)
    return rates[True], rates[False]


def _totals() -> dict[str, float]:
    """Seconds of training with one kill, from the first step on, all with the same first plan."""
    n_steps, kill_at = _TOTAL_STEPS, _TOTAL_KILLED_AT
    totals: dict[str, float] = {}
    for name in ("ours", "takeover", "restart"):
        victim = "pi-a"
        with (
            tempfile.TemporaryDirectory() as directory,
            _fleet(ew.Chaos().kill(victim, at_step=kill_at), _LINKS) as fleet,
        ):
            trainer = _trainer(fleet, recover=name != "restart")
            plan = trainer.prepare(_dataset(n_steps), batch_size=_BATCH_SIZE)
            started = time.perf_counter()
            if name == "ours":
                _fit(trainer, n_steps)
            elif name == "takeover":  # what is done where nothing is known of the devices
                _fit(_trainer(fleet, plan=plan), n_steps)
            else:
                checkpoint = Path(directory)
                try:
                    _fit(trainer, n_steps, checkpoint)
                except ew.DeviceLost:
                    assert trainer.costs is not None
                    left = trainer.costs.only(set(_SPEEDS) - {victim})
                    smaller = partition(left, n_microbatches=_MICROBATCHES)
                    again = _trainer(fleet, plan=replace(smaller, replication=plan.replication))
                    _fit(again, n_steps, checkpoint, resume=True)
            totals[name] = time.perf_counter() - started
    return totals
