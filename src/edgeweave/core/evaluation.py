"""What a model is worth on a data set, as a value that every way of training reports."""

from __future__ import annotations

import msgspec

__all__ = ["Evaluation"]


class Evaluation(msgspec.Struct, frozen=True):
    """Means over all samples of a data set, in evaluation mode."""

    loss: float
    metrics: dict[str, float]
    n_samples: int
