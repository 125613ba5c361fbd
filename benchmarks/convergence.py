"""What is learnt when activations and gradients are coded at the cuts.

A small MobileNetV2 on CIFAR-10 and a small GPT-2 on tiny-shakespeare are cut in three and trained
in one process. What crosses a cut is coded with `uniform` in blocks of 256, activations to nearest,
gradients at random. Trainings of one seed have the same first weights and the same samples in
the same order, and are compared with each other only.

    cifar10_accuracy                    test accuracy in per cent, nothing coded
    cifar10_accuracy_loss_points_Nbit   that, minus the accuracy with N bits
    shakespeare_loss                    validation loss in nats a character, nothing coded
    shakespeare_loss_ratio_Nbit         loss with N bits / nothing coded

With 16 bits hardly anything is rounded: what differs there is chance. The settings have
every training with its looks: losses, tests, and how far the gradient of one microbatch with
coding is from the exact one. Needs `../shared/data` (or the folder named by EDGEWEAVE_DATA).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import torch

from benchmarks.convergence_tasks import TASKS, Task
from benchmarks.convergence_training import Effort, Training, trained
from benchmarks.data import DATA
from benchmarks.harness import Result, ratios
from benchmarks.keeping import kept_or_made
from edgeweave.codec import Codec, none, uniform

__all__ = ["run"]

_QUICK_TASKS = [replace(task, bits=(8,), seeds=(0,), steps=24) for task in TASKS.values()]

_Found = Mapping[tuple[str, Codec], Sequence[Training]]
_Scores = Mapping[Codec, Sequence[float]]


def run(*, quick: bool, kept: Path | None = None) -> Result:
    """Train; ``quick`` with one seed, 8 bits and 24 steps.

    Trainings that lie in ``kept`` are not done again, and those that are done are put there.
    """
    torch.set_num_threads(1)
    found = _found(quick=quick, kept=kept) if DATA.exists() else {}
    samples = _compared(found) if found else {}
    trainings = [each for together in found.values() for each in together]
    return Result(
        name="convergence",
        quick=quick,
        metrics={key: median(values) for key, values in samples.items()},
        lines=(
            *(_line(each) for each in trainings),
            *(f"{key:>36} = {median(values):.4f}" for key, values in samples.items()),
            *(() if found else (f"no real data in {DATA}",)),
        ),
        samples=samples,
        settings={
            "seed": sorted({each.seed for each in trainings}),
            "trainings": [asdict(each) for each in trainings],
        },
    )


def _found(*, quick: bool, kept: Path | None) -> _Found:
    """Every training, those of a task and a codec in the order of the task's seeds."""
    found: dict[tuple[str, Codec], list[Training]] = {}
    for task in _QUICK_TASKS if quick else TASKS.values():
        effort = Effort(task.steps, looks=2, test_part=5) if quick else Effort(task.steps)
        for seed in task.seeds:
            for codec in (none(), *map(uniform, task.bits)):
                training = _kept_or_trained(task, codec, effort, seed, kept)
                found.setdefault((task.name, codec), []).append(training)
    return found


def _kept_or_trained(
    task: Task, codec: Codec, effort: Effort, seed: int, kept: Path | None
) -> Training:
    name = f"{task.name}-{codec.bits or 32}-bits-seed-{seed}-{effort.steps}-steps"
    return kept_or_made(kept, name, Training, lambda: trained(task, codec, effort, seed=seed))


def _compared(found: _Found) -> dict[str, list[float]]:
    """Each metric for each seed."""
    accuracies = _scores(found, TASKS["cifar10"])
    losses = _scores(found, TASKS["shakespeare"])
    samples = {"cifar10_accuracy": [100 * each for each in accuracies[none()]]}
    for codec in [codec for codec in accuracies if codec != none()]:
        samples[f"cifar10_accuracy_loss_points_{codec.bits}bit"] = [
            100 * (exact - coded)
            for exact, coded in zip(accuracies[none()], accuracies[codec], strict=True)
        ]
    samples["shakespeare_loss"] = list(losses[none()])
    for codec in [codec for codec in losses if codec != none()]:
        samples[f"shakespeare_loss_ratio_{codec.bits}bit"] = ratios(losses[codec], losses[none()])
    return samples


def _scores(found: _Found, task: Task) -> _Scores:
    return {
        codec: [each.test[task.score] for each in trainings]
        for (name, codec), trainings in found.items()
        if name == task.name
    }


def _line(training: Training) -> str:
    last = training.looks[-1]
    tested = ", ".join(f"{name} {value:.4f}" for name, value in training.test.items())
    return (
        f"{training.task:>12} {training.codec:>16} seed {training.seed}: {tested}; last gradient: "
        f"cosine {last.cosine:.5f}, norm {last.norm_ratio:.3f}; {training.cpu_seconds:.0f} CPU s"
    )
