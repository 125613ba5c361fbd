"""A plan on a fleet that stays deployed between bursts of steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Self

import torch
from torch import nn

import edgeweave as ew
from benchmarks.latency.drawing import Example
from benchmarks.resnet import Images, cross_entropy
from edgeweave.data.batches import Batch
from edgeweave.plan import Plan, Stage
from edgeweave.program import Captured, capture, flatten_inputs
from edgeweave.train.run import PipelineRun, RunSettings

__all__ = ["OPTIMIZER", "Deployed", "Training", "alone", "captured_of", "repeated_batch"]

OPTIMIZER = ew.Optimizer("SGD", lr=0.01, momentum=0.9)
_SEED = 0


@dataclass(frozen=True, slots=True)
class Training:
    """A model, and how many samples a microbatch has and how many microbatches a step."""

    model: Callable[[], nn.Module]
    microbatch_size: int
    n_microbatches: int


def captured_of(training: Training) -> Captured:
    torch.manual_seed(_SEED)
    images, labels = Images(training.microbatch_size, seed=_SEED).step_batch(
        0, training.microbatch_size
    )
    return capture(training.model().train(), cross_entropy, images, labels)


def alone(device: str, captured: Captured, n_microbatches: int) -> Plan:
    """Everything on one device. Nothing was measured, so it predicts nothing."""
    n_units = len(captured.program.unit_numbers)
    return Plan((Stage(device, 0, n_units, 0.0, 0.0, 0),), "1f1b", n_microbatches, 0, 0.0, 0.0)


def repeated_batch(example: Example, n_microbatches: int) -> Batch:
    """The example's batch so many times over, for a step of as many microbatches."""
    inputs = flatten_inputs(example.inputs, example.targets)
    tensors = {name: torch.cat([tensor] * n_microbatches) for name, tensor in inputs.items()}
    return Batch(tensors, n_microbatches * len(example.inputs))


class Deployed:
    """A run of the real stack, from deploying to the release of the devices."""

    def __init__(self, fleet: ew.Fleet, captured: Captured, plan: Plan, training: Training) -> None:
        settings = RunSettings(OPTIMIZER, training.microbatch_size, seed=_SEED)
        self._run = PipelineRun(fleet, captured.program, captured.state, plan, settings)
        self._batch_size = training.microbatch_size * training.n_microbatches
        self._images = Images(4 * self._batch_size, seed=_SEED)
        self._steps = 0

    def __enter__(self) -> Self:
        self._run.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._run.__exit__(kind, error, traceback)

    def steps(self, n_steps: int) -> list[float]:
        """Seconds of so many steps from last loss to last loss, after one that fills the pipe."""
        ends = []
        for _ in range(n_steps + 1):
            images, labels = self._images.step_batch(self._steps, self._batch_size)
            batch = Batch(flatten_inputs(images, labels), len(labels))
            self._run.train_step(self._steps, batch, {"lr": 0.01})
            ends.append(time.perf_counter())
            self._steps += 1
        return [after - before for before, after in pairwise(ends)]
