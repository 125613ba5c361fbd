"""Models that were taught by some kinds of devices, for judging them on the others."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from benchmarks.latency.fit import Scales, Teaching, fit, fit_scales, fit_work_costs, teaching
from benchmarks.latency.samples import Samples, Units
from edgeweave.predict import LatencyModel, Measurement

__all__ = ["HeldOut", "measurements"]


class HeldOut:
    """What the random networks on all kinds but ``kinds`` teach.

    ``scales`` spares fitting them. ``every`` takes only every so-manieth unit: quicker, and worse.
    """

    def __init__(
        self,
        samples: Samples,
        kinds: Collection[str],
        *,
        scales: Scales | None = None,
        every: int = 1,
    ) -> None:
        others = [kind for kind in samples.seconds if kind not in kinds]
        self.taught = _thinned(teaching(samples, others), every)
        work_costs = fit_work_costs(self.taught)
        self.scales = scales or fit_scales(self.taught, work_costs)
        self.model: LatencyModel = fit(self.taught, self.scales, work_costs)


def measurements(samples: Samples, kind: str, units: Units) -> list[Measurement]:
    """What a kind took for some units, as a device would tell it."""
    seconds = samples.seconds[kind][units]
    return [
        Measurement(piece, float(forward), float(backward))
        for piece, (forward, backward) in zip(samples.pieces(units), seconds, strict=True)
    ]


def _thinned(taught: Teaching, every: int) -> Teaching:
    if every == 1:
        return taught
    kept = np.arange(0, taught.n_units, every)
    number = np.full(taught.n_units, -1)
    number[kept] = np.arange(len(kept))
    rows = number[taught.owners] >= 0
    log_seconds = {kind: each[kept] for kind, each in taught.log_seconds.items()}
    return Teaching(taught.rows[rows], number[taught.owners[rows]], log_seconds)
