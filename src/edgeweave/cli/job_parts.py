"""What a job names, made: its model, and what every way of training learns with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgeweave.core.errors import ConfigError, EdgeweaveError
from edgeweave.device import Optimizer
from edgeweave.train import LRSchedule
from edgeweave.train.jobs.job import Job, resolve_function
from edgeweave.train.jobs.service_job import ServiceJob

__all__ = ["Objective", "build_model", "objective"]


@dataclass(frozen=True, slots=True)
class Objective:
    """What training makes smaller, how, and what is told of it."""

    loss: Callable[..., Any]
    optimizer: Optimizer
    metrics: dict[str, Callable[..., Any]]
    lr_schedule: LRSchedule | None


def objective(job: Job) -> Objective:
    """A job's; ``ConfigError`` for a function that cannot be imported."""
    schedule = job.lr_schedule
    return Objective(
        loss=resolve_function(job.loss.function, base=Path()),
        optimizer=Optimizer(job.optimizer.name, **job.optimizer.options),
        metrics={
            name: resolve_function(reference, base=Path())
            for name, reference in job.metrics.functions.items()
        },
        lr_schedule=None
        if schedule is None
        else LRSchedule(schedule.name, interval=schedule.interval, **schedule.options),
    )


def build_model(job: Job | ServiceJob) -> torch.nn.Module:
    """What the job's factory builds, its weights drawn from the job's seed; ``ConfigError`` if
    that is no module.
    """
    factory = resolve_function(job.model.factory, base=Path())
    torch.manual_seed(job.train.seed)
    try:
        model = factory(**job.model.args)
    except EdgeweaveError:
        raise
    except Exception as error:
        raise ConfigError(
            f"model.factory {job.model.factory} builds a model ({type(error).__name__}: {error}). "
            "Correct it, or model.args."
        ) from error
    if not isinstance(model, torch.nn.Module):
        raise ConfigError(
            f"model.factory {job.model.factory} returns a torch.nn.Module "
            f"(got {type(model).__name__}). Return the model."
        )
    return model
