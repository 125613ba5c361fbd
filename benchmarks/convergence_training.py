"""One training with a codec in the cuts, and what is seen of it on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch.optim.lr_scheduler import OneCycleLR

from benchmarks.coded_stages import Batch, CodedStages
from benchmarks.convergence_tasks import Task, captured
from edgeweave.codec import Codec, none
from edgeweave.program import Moment

__all__ = ["Effort", "Look", "Training", "trained"]

_PART = 5
"""A look tests on a fifth of the test data."""
_OTHER_SAMPLES = 1000
"""Added to a seed: the microbatches of looks are not those of the training."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How many steps, how many looks after the one at the first step, and how the end is tested."""

    steps: int
    looks: int = 8
    test_part: int = 1
    """On the first of so many parts of the test data."""

    def is_look(self, step: int) -> bool:
        """Whether there is a look after the step, the first being 0."""
        looks = self.looks
        return step == 0 or (step + 1) * looks // self.steps > step * looks // self.steps


@dataclass(frozen=True, slots=True)
class Look:
    """A moment of a training: how far it is, and how far its gradients are from exact ones."""

    step: int
    train_loss: float
    """The mean since the look before."""
    test: dict[str, float]
    """Loss, and accuracy if the task has it, on a part of the test data."""
    cosine: float
    """Between one microbatch's gradient of all parameters, with coding and without."""
    norm_ratio: float
    """With coding / without."""
    cosine_of_another: float
    """Between the exact gradients of this microbatch and the next: what sampling alone does."""


@dataclass(frozen=True, slots=True)
class Training:
    """What came of it. ``test`` is of all test data after the last step."""

    task: str
    codec: str
    seed: int
    steps: int
    test: dict[str, float]
    looks: list[Look]
    cpu_seconds: float


def trained(task: Task, codec: Codec, effort: Effort, *, seed: int) -> Training:
    """Train from the weights and on the samples that ``seed`` gives, whatever the codec.

    The learning rate rises from a 25th for 30 % of the steps and falls along a cosine to nearly
    nothing.
    """
    started = time.process_time()
    programs, state = captured(task.name, seed)
    stages = CodedStages(programs, state, codec, seed=seed)
    optimizer = task.optimizer(stages.parameters)
    rates = OneCycleLR(
        optimizer, optimizer.defaults["lr"], total_steps=effort.steps, cycle_momentum=False
    )
    samples = task.samples(seed)
    observer = _Observer(task, codec, seed)
    losses: list[float] = []
    looks: list[Look] = []
    for step in range(effort.steps):
        optimizer.zero_grad()
        losses.append(_learnt(stages, samples, step, task.microbatches))
        optimizer.step()
        rates.step()
        if effort.is_look(step):
            looks.append(observer.look(stages, step + 1, losses))
            losses = []
    test = observer.test(stages, effort.test_part)
    seconds = time.process_time() - started
    return Training(task.name, str(codec), seed, effort.steps, test, looks, seconds)


def _learnt(stages: CodedStages, samples: Iterator[Batch], step: int, microbatches: int) -> float:
    """The gradients of one step; its mean loss."""
    return fmean(
        stages.learn(next(samples), Moment(step, index), loss_weight=1 / microbatches)
        for index in range(microbatches)
    )


class _Observer:
    """Looks at a training and leaves no trace in it."""

    def __init__(self, task: Task, codec: Codec, seed: int) -> None:
        self._codec = codec
        self._samples = task.samples(seed + _OTHER_SAMPLES)
        self._tests = task.tests()

    def look(self, stages: CodedStages, step: int, losses: Sequence[float]) -> Look:
        this, another = next(self._samples), next(self._samples)
        moment = Moment(step, 0)
        exact = stages.with_codec(none()).gradient(this, moment)
        coded = stages.with_codec(self._codec).gradient(this, moment)
        return Look(
            step=step,
            train_loss=fmean(losses),
            test=self.test(stages, _PART),
            cosine=_cosine(coded, exact),
            norm_ratio=float(coded.norm() / exact.norm()),
            cosine_of_another=_cosine(stages.with_codec(none()).gradient(another, moment), exact),
        )

    def test(self, stages: CodedStages, part: int) -> dict[str, float]:
        """Means over the first of so many parts of the test data."""
        tests = self._tests[: len(self._tests) // part]
        found = [stages.evaluate(batch) for batch in tests]
        weights = [len(target) for _, target in tests]
        return {name: fmean([each[name] for each in found], weights) for name in found[0]}


def _cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    """In float64: differences from 1 of 1e-7 are seen."""
    return float(torch.cosine_similarity(one.double(), other.double(), dim=0))
