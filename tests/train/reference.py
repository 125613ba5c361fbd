"""Training as a user would write it in PyTorch, on one device: what a fleet must equal bit for bit.

The reference works on the user's own module, with torch's own optimizer, scheduler and clipping.
It takes the same microbatches in the same order, because a batch mean that is added up in another
order differs in its last bits, and BatchNorm sees microbatches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from edgeweave.train import Report
from tests.models import Example

Loss = Callable[[Any, Any], torch.Tensor]


@dataclass(frozen=True)
class Job:
    """What both sides are told."""

    model: nn.Module
    loss: Loss
    data: TensorDataset
    batch_size: int = 12
    n_microbatches: int = 4
    epochs: int = 2
    seed: int = 3
    clip_grad_norm: float | None = None
    validation: TensorDataset | None = None
    metrics: dict[str, Loss] = field(default_factory=dict)

    @property
    def microbatch_size(self) -> int:
        return -(-self.batch_size // self.n_microbatches)


@dataclass
class Reference:
    """What came out."""

    step_losses: list[float] = field(default_factory=list)
    validations: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    epoch_metrics: list[dict[str, float]] = field(default_factory=list)
    state: dict[str, torch.Tensor] = field(default_factory=dict)


def job_of(example: Example, n_samples: int, **options: Any) -> Job:
    """A job on a model of the zoo, with so many samples."""
    options.setdefault("data", TensorDataset(*example.batch(n_samples)))
    return Job(example.model(), example.loss, **options)


def train_eagerly(
    job: Job,
    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    *,
    make_schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    interval: str = "epoch",
) -> Reference:
    """The loop everybody writes."""
    model = copy.deepcopy(job.model)
    optimizer = make_optimizer(list(model.parameters()))
    schedule = None if make_schedule is None else make_schedule(optimizer)
    done = Reference()
    for epoch in range(job.epochs):
        model.train()
        sums: dict[str, float] = {}
        for indices in epoch_indices(job, epoch):
            loss, metrics = _step(model, job, indices, optimizer)
            done.step_losses.append(loss)
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + len(indices) * value
            if schedule is not None and interval == "step":
                schedule.step()
        done.epoch_metrics.append({n: total / len(job.data) for n, total in sums.items()})
        if job.validation is not None:
            done.validations.append(evaluate_eagerly(model, job, job.validation))
        if schedule is not None and interval == "epoch":
            plateau = isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau)
            schedule.step(*([done.validations[-1][0]] if plateau else []))
    done.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return done


def epoch_indices(job: Job, epoch: int) -> list[torch.Tensor]:
    """The documented order of samples: a permutation drawn from the seed and the epoch."""
    generator = torch.Generator().manual_seed(job.seed * 1_000_003 + epoch)
    return list(torch.randperm(len(job.data), generator=generator).split(job.batch_size))


def evaluate_eagerly(
    model: nn.Module, job: Job, data: TensorDataset
) -> tuple[float, dict[str, float]]:
    """Mean loss and metrics over a data set, in evaluation mode."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        parts = torch.arange(len(data)).split(job.microbatch_size)
        results = [(_measure(model, job, data[part]), len(part)) for part in parts]
    model.train(was_training)
    return _means(results)


def _step(
    model: nn.Module, job: Job, indices: torch.Tensor, optimizer: torch.optim.Optimizer
) -> tuple[float, dict[str, float]]:
    optimizer.zero_grad()
    results = []
    for part in indices.split(job.microbatch_size):
        values = _measure(model, job, job.data[part])
        (values["loss"] * (len(part) / len(indices))).backward()
        results.append((values, len(part)))
    if job.clip_grad_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), job.clip_grad_norm)
    optimizer.step()
    return _means(results)


def _measure(model: nn.Module, job: Job, batch: Any) -> dict[str, torch.Tensor]:
    inputs, target = batch
    output = model(inputs)
    metrics = {name: metric(output, target) for name, metric in job.metrics.items()}
    return {"loss": job.loss(output, target), **metrics}


def _means(results: list[tuple[dict[str, torch.Tensor], int]]) -> tuple[float, dict[str, float]]:
    n_samples = sum(n for _, n in results)
    means = {
        name: sum(values[name].item() * n for values, n in results) / n_samples
        for name in results[0][0]
    }
    return means.pop("loss"), means


def differing(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    """Names that only one side has, or whose tensors are not equal bit for bit."""
    return [
        name
        for name in sorted(found.keys() | expected.keys())
        if name not in found or name not in expected or not torch.equal(found[name], expected[name])
    ]


def assert_equal_runs(report: Report, state: dict[str, torch.Tensor], expected: Reference) -> None:
    """Losses of every step and the final weights and buffers are equal bit for bit."""
    assert list(report.step_losses) == expected.step_losses
    assert differing(state, expected.state) == []
