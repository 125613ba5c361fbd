"""How many bytes a link has carried by some moment if it never rested, and the way back."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgeweave.net.link import RateTrace

__all__ = ["Capacity", "capacity_of"]

_Floats = npt.NDArray[np.float64]


class Capacity(Protocol):
    """A growing function of time. ``when`` is its inverse: the first moment for a number of bytes.

    ``at_each`` and ``when_each`` are the same for every element of an array.
    """

    def at(self, seconds: float) -> float: ...

    def when(self, carried: float) -> float: ...

    def at_each(self, seconds: _Floats) -> _Floats: ...

    def when_each(self, carried: _Floats) -> _Floats: ...


class _Steady:
    """The same rate at all times."""

    def __init__(self, bytes_per_second: float, began: float) -> None:
        self._rate = bytes_per_second
        self._began = began

    def at(self, seconds: float) -> float:
        return (seconds - self._began) * self._rate

    def when(self, carried: float) -> float:
        return self._began + carried / self._rate

    def at_each(self, seconds: _Floats) -> _Floats:
        return (seconds - self._began) * self._rate

    def when_each(self, carried: _Floats) -> _Floats:
        return self._began + carried / self._rate


class _Traced:
    """The integral of a trace, which begins at ``began`` and is repeated for ever."""

    def __init__(self, trace: RateTrace, began: float) -> None:
        self._began = began
        self._duration = trace.duration_seconds
        self._rates = np.asarray(trace.bytes_per_second)
        self._bounds = np.asarray((*trace.seconds, trace.duration_seconds))
        self._sums = np.concatenate(([0.0], np.cumsum(np.diff(self._bounds) * self._rates)))
        self._total = float(self._sums[-1])

    def at(self, seconds: float) -> float:
        return float(self.at_each(np.asarray([seconds]))[0])

    def when(self, carried: float) -> float:
        return float(self.when_each(np.asarray([carried]))[0])

    def at_each(self, seconds: _Floats) -> _Floats:
        times, within = np.divmod(seconds - self._began, self._duration)
        return times * self._total + np.interp(within, self._bounds, self._sums)

    def when_each(self, carried: _Floats) -> _Floats:
        # In (0, total] of a repetition, so that its end is not taken for the next one's beginning.
        times = np.ceil(carried / self._total) - 1
        within = np.clip(carried - times * self._total, 0.0, self._total)
        piece = np.maximum(np.searchsorted(self._sums, within, side="left") - 1, 0)
        # A piece of rate 0 is never the one in which bytes come to be carried.
        rates = np.where(self._rates[piece] > 0, self._rates[piece], 1.0)
        inside = self._bounds[piece] + (within - self._sums[piece]) / rates
        return self._began + times * self._duration + inside


def capacity_of(rate: float | RateTrace | None, began: float) -> Capacity | None:
    """The capacity of a link of that rate; None if it has no limit."""
    if rate is None:
        return None
    return _Traced(rate, began) if isinstance(rate, RateTrace) else _Steady(rate, began)
