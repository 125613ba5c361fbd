"""What a model is worth on a data set, as a value that every way of training reports."""

from __future__ import annotations

import msgspec

__all__ = ["Evaluation"]


class Evaluation(msgspec.Struct, frozen=True):
    """Means over all samples of a data set, in evaluation mode."""

    loss: float
    metrics: dict[str, float]
    n_samples: int

    def line(self) -> str:
        """For people.

        >>> Evaluation(loss=0.25, metrics={"accuracy": 0.9}, n_samples=10).line()
        'loss 0.2500, accuracy 0.9000'
        """
        facts = {"loss": self.loss, **self.metrics}
        return ", ".join(f"{name} {value:.4f}" for name, value in facts.items())
