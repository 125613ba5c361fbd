"""Learning-rate schedules: torch's own, run on the coordinator; values travel with each step."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from edgeweave.core.errors import ConfigError
from edgeweave.device import Optimizer, build

__all__ = ["LRSchedule", "LearningRate"]


@dataclass(frozen=True, slots=True, init=False, repr=False)
class LRSchedule:
    """A scheduler of ``torch.optim.lr_scheduler`` by name, stepped once per epoch or step.

    >>> LRSchedule("StepLR", step_size=2, gamma=0.5)
    LRSchedule('StepLR', interval='epoch', step_size=2, gamma=0.5)
    """

    name: str
    interval: Literal["epoch", "step"]
    options: dict[str, Any]

    def __init__(
        self, name: str, *, interval: Literal["epoch", "step"] = "epoch", **options: Any
    ) -> None:
        if interval not in ("epoch", "step"):
            raise ConfigError(f"interval is 'epoch' or 'step' (got {interval!r}).")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "interval", interval)
        object.__setattr__(self, "options", options)

    def __repr__(self) -> str:
        options = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"LRSchedule({self.name!r}, interval={self.interval!r}{options})"


class LearningRate:
    """The hyperparameters of the next step.

    ``calls`` is what the scheduler was told so far (the validation loss, or None), which is all
    that is needed to bring a new one to the same point.
    """

    def __init__(self, optimizer: Optimizer, schedule: LRSchedule | None) -> None:
        self._schedule = schedule
        self._named = optimizer
        self.calls: list[float | None] = []
        self._begin()

    def _begin(self) -> None:
        self._optimizer = build(self._named, [nn.Parameter(torch.zeros(1))])
        schedule = self._schedule
        self._scheduler = None if schedule is None else _scheduler(schedule, self._optimizer)

    def hyperparameters(self) -> dict[str, float]:
        """``lr``, and the momentum or betas that some schedules move along with it."""
        group = self._optimizer.param_groups[0]
        found = {"lr": float(group["lr"])}
        if self._scheduler is not None:
            if group.get("momentum"):
                found["momentum"] = float(group["momentum"])
            for index, beta in enumerate(group.get("betas", ())):
                found[f"betas.{index}"] = float(beta)
        return found

    def check(self, *, validated: bool) -> None:
        """``ConfigError`` if the schedule needs a validation loss and there will be none."""
        if self._schedule is None or not self._needs_loss:
            return
        if self._schedule.interval != "epoch" or not validated:
            raise ConfigError(
                f"{self._schedule!r} needs a validation loss after every epoch. "
                "Use interval='epoch', and pass validate= to fit()."
            )

    def advance(self, interval: Literal["epoch", "step"], loss: float | None = None) -> None:
        """A step or an epoch is over; ``loss`` is the validation loss, if there is one."""
        if self._schedule is not None and self._schedule.interval == interval:
            self._tell(loss)

    def replay(self, calls: list[float | None]) -> None:
        """Repeat what another scheduler was told, to resume where it was."""
        for loss in calls:
            self._tell(loss)

    def rewind(self, n_calls: int) -> None:
        """Return to where it stood after its first ``n_calls`` calls."""
        if n_calls == len(self.calls):
            return
        calls, self.calls = self.calls[:n_calls], []
        self._begin()
        self.replay(calls)

    def _tell(self, loss: float | None) -> None:
        assert self._scheduler is not None
        self._optimizer._opt_called = True  # type: ignore[attr-defined]  # it never steps
        try:
            self._scheduler.step(*([loss] if self._needs_loss else []))
        except ValueError as error:
            raise ConfigError(f"{self._schedule!r} does not go on: {error}") from error
        self.calls.append(loss)

    @property
    def _needs_loss(self) -> bool:
        assert self._scheduler is not None
        return "metrics" in inspect.signature(self._scheduler.step).parameters


def _scheduler(schedule: LRSchedule, optimizer: torch.optim.Optimizer) -> Any:
    kind = getattr(torch.optim.lr_scheduler, schedule.name, None)
    schedulers = torch.optim.lr_scheduler.LRScheduler
    if not (inspect.isclass(kind) and issubclass(kind, schedulers) and kind is not schedulers):
        raise ConfigError(
            f"torch.optim.lr_scheduler has no {schedule.name!r}. "
            "See its documentation for names, such as StepLR or CosineAnnealingLR."
        )
    scheduler_class: Any = kind
    try:
        return scheduler_class(optimizer, **schedule.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{schedule!r} is refused by torch: {error}.") from error
