"""Training with stale weights as one process can do it: what ``async-1f1b`` must equal bit for bit.

Written from the rule, not from the schedule: between two flushes microbatches are numbered from 0;
stage ``s`` of ``n`` holds ``h = n - s + extra`` of them (the last stage 1), and the forward of
number ``j`` there, and its backward, use the weights after the updates of all steps that end before
number ``j - h + 1``. Each step's gradient goes to the newest weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from tests.train.reference import Job, Reference, epoch_indices, evaluate_eagerly

Versions = list[dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Staleness:
    """Which parameters are where, and what the schedule was told."""

    stage_of: Mapping[str, int]
    n_stages: int
    extra: int = 0
    aggregation: int | None = None
    checkpoint_every: int | None = None

    def held(self, stage: int) -> int:
        return 1 if stage == self.n_stages - 1 else self.n_stages - stage + self.extra


@dataclass
class _Stream:
    """From one flush to the next."""

    newest: list[dict[str, torch.Tensor]]
    """After 0, 1, 2, ... updates: what forwards use."""
    all: list[dict[str, torch.Tensor]]
    """Every version there was, the means and what they were made of."""
    stops: list[int] = field(default_factory=list)


def train_with_stale_weights(
    job: Job,
    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    staleness: Staleness,
    *,
    make_schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    interval: str = "step",
) -> Reference:
    """The loop everybody writes, but each parameter as its stage would have it by then."""
    model = copy.deepcopy(job.model)
    model.train()
    parameters = dict(model.named_parameters())
    optimizer = make_optimizer(list(parameters.values()))
    schedule = None if make_schedule is None else make_schedule(optimizer)
    done, step, every = Reference(), 0, staleness.checkpoint_every
    for epoch in range(job.epochs):
        stream = _new_stream(parameters)
        for position, indices in enumerate(epoch_indices(job, epoch)):
            if every is not None and position and step % every == 0:
                stream = _new_stream(parameters)
            loss = _accumulate(model, job, indices, stream, staleness)
            done.step_losses.append(loss)
            optimizer.step()
            optimizer.zero_grad()
            _end_step(parameters, stream, staleness, step)
            step += 1
            if schedule is not None and interval == "step":
                schedule.step()
        if job.validation is not None:
            done.validations.append(evaluate_eagerly(model, job, job.validation))
        if schedule is not None and interval == "epoch":
            schedule.step()
    done.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return done


def _snapshot(parameters: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in parameters.items()}


def _new_stream(parameters: Mapping[str, nn.Parameter]) -> _Stream:
    now = _snapshot(parameters)
    return _Stream([now], [now])


def _accumulate(
    model: nn.Module, job: Job, indices: torch.Tensor, stream: _Stream, staleness: Staleness
) -> float:
    """Forward and backward of a step's microbatches; gradients grow in the model's parameters."""
    parameters = dict(model.named_parameters())
    start = stream.stops[-1] if stream.stops else 0
    parts = indices.split(job.microbatch_size)
    total = 0.0
    for microbatch, part in enumerate(parts):
        used = {}
        for name in parameters:
            first = start + microbatch - staleness.held(staleness.stage_of[name]) + 1
            seen = sum(stop <= first for stop in stream.stops)
            used[name] = stream.newest[seen][name].clone().requires_grad_()
        inputs, target = job.data[part]
        loss = job.loss(functional_call(model, used, (inputs,)), target)
        (loss * (len(part) / len(indices))).backward()
        for name, parameter in parameters.items():
            grad = used[name].grad
            parameter.grad = grad if parameter.grad is None else parameter.grad + grad
        total += loss.item() * len(part)
    stream.stops.append(start + len(parts))
    return total / len(indices)


def _end_step(
    parameters: Mapping[str, nn.Parameter], stream: _Stream, staleness: Staleness, step: int
) -> None:
    """Note the new version; now and then make another of the last ones."""
    stream.all.append(_snapshot(parameters))
    every = staleness.aggregation
    if every is not None and (step + 1) % every == 0:
        if len(stream.all) >= staleness.n_stages:
            for name, parameter in parameters.items():
                n_last = staleness.n_stages - staleness.stage_of[name]
                if n_last > 1:
                    last = [version[name] for version in stream.all[-n_last:]]
                    parameter.data.copy_(sum(last[1:], last[0]) / n_last)
        stream.all.append(_snapshot(parameters))
    stream.newest.append(_snapshot(parameters))
