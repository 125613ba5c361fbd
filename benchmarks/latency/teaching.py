"""The units that teach: what random networks took on some kinds of devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.latency.samples import Samples
from edgeweave.predict.features import Floats

__all__ = ["Teaching", "teaching"]

_LEAST_SECONDS = 1e-6


@dataclass(frozen=True, slots=True)
class Teaching:
    """Their operators, and log seconds ``[unit, direction]`` by kind. ``owners`` ascend."""

    rows: Floats
    owners: np.ndarray[tuple[int], np.dtype[np.int64]]
    log_seconds: dict[str, Floats]

    @property
    def n_units(self) -> int:
        return int(self.owners.max()) + 1

    def typical(self) -> Floats:
        """The mean over the kinds."""
        return np.asarray(np.mean(list(self.log_seconds.values()), axis=0))

    def totals(self, seconds: Floats) -> Floats:
        """Sums over the operators of every unit."""
        found = np.bincount(self.owners, weights=seconds, minlength=self.n_units)
        return np.asarray(found, dtype=np.float64)


def teaching(samples: Samples, kinds: Sequence[str]) -> Teaching:
    """What random networks took on some kinds."""
    units = samples.units("random")
    number = np.full(len(samples.networks), -1)
    number[units] = np.arange(len(units))
    rows = number[samples.owners] >= 0
    seconds = np.stack([samples.seconds[kind][units] for kind in kinds])
    logs = _completed(np.log(np.maximum(seconds, _LEAST_SECONDS)))
    return Teaching(
        samples.rows[rows], number[samples.owners[rows]], dict(zip(kinds, logs, strict=True))
    )


def _completed(logs: Floats) -> Floats:
    """``logs[kind, unit, direction]``, NaN where a kind did not time a unit: filled in with what
    the kinds that timed all units tell of it, by least squares on the units that it did time.
    """
    missing = np.logical_or.reduce(np.isnan(logs), axis=2)
    whole = logs[~np.logical_or.reduce(missing, axis=1)]
    told = np.column_stack([*(each for kind in whole for each in kind.T), np.ones(logs.shape[1])])
    completed = logs.copy()
    for own, absent in zip(completed, missing, strict=True):
        if absent.any():
            found, *_ = np.linalg.lstsq(told[~absent], own[~absent], rcond=None)
            own[absent] = told[absent] @ found
    return completed
