"""Numbers with names of their own that ride on frames: hyperparameters there, metrics back."""

from __future__ import annotations

from collections.abc import Mapping

from edgeweave.program import StageResult

__all__ = ["hyperparameters_in", "metrics_in", "told_hyperparameters", "told_loss"]

_HYPERPARAMETER = "hp:"
_METRIC = "metric:"


def told_hyperparameters(values: Mapping[str, float]) -> dict[str, float]:
    """What a step's optimizer is to use, as scalars of a frame.

    >>> hyperparameters_in(told_hyperparameters({"lr": 0.1}) | {"train": 1.0})
    {'lr': 0.1}
    """
    return {f"{_HYPERPARAMETER}{name}": value for name, value in values.items()}


def hyperparameters_in(scalars: Mapping[str, float]) -> dict[str, float]:
    """The same, of a frame's scalars."""
    return _named(scalars, _HYPERPARAMETER)


def told_loss(result: StageResult) -> dict[str, float]:
    """The loss and metrics of a stage that computes them, as scalars; else nothing."""
    if result.loss is None:
        return {}
    metrics = {f"{_METRIC}{name}": value.item() for name, value in result.metrics.items()}
    return {"loss": result.loss.item(), **metrics}


def metrics_in(scalars: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a frame's scalars."""
    return _named(scalars, _METRIC)


def _named(scalars: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {
        name.removeprefix(prefix): value
        for name, value in scalars.items()
        if name.startswith(prefix)
    }
