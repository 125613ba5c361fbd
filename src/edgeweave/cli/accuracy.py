"""How well a device was predicted, given what it really took."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeweave.plan import DeviceCosts
from edgeweave.predict import Predicted

__all__ = ["Accuracy"]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Of one device: the mean of |predicted / measured - 1| over its units, forward and backward
    each for itself; the share of them within the interval of 90 %; and predicted / measured of all
    units together.
    """

    device: str
    mean_error: float
    within_interval: float
    forward_ratio: float
    backward_ratio: float

    @classmethod
    def of(cls, measured: DeviceCosts, predicted: Predicted) -> Accuracy:
        """Compare; what took no time (units through which no gradient flows) is left out."""
        seconds = np.stack([measured.forward_seconds, measured.backward_seconds], axis=1)
        some = seconds > 0
        errors = np.abs(predicted.seconds[some] / seconds[some] - 1)
        inside = (predicted.low < seconds) & (seconds < predicted.high)
        forward, backward = np.where(some, predicted.seconds, 0).sum(axis=0) / seconds.sum(axis=0)
        return cls(
            measured.device,
            float(errors.mean()),
            float(inside[some].mean()),
            float(forward),
            float(backward),
        )
