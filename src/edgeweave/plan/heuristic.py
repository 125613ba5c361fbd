"""Splits over more devices than the exact program can try.

Shortest period: the bound of ``bound`` is loosened a little at a time until a beam finds a split
that keeps it. Among states that hold the same units, the beam prefers those whose devices could
afford least at the prices that prove the bound: what is hard to replace is kept for later. What is
found is then tightened by bisection.

Shortest step: a step also fills and drains the pipeline, so the beam then looks, at several
multiples of that period, for the splits with the least latency of one microbatch.

Measured against the bound and the exact program: docs/reference-benchmarks.md, ``planner``.
"""

from __future__ import annotations

import numpy as np

from edgeweave.plan.beam import beam
from edgeweave.plan.bound import PeriodTimes, bound_of, priced
from edgeweave.plan.splits import Floats, Grid, Ints, Pins, Split

__all__ = ["quick_splits", "short_splits", "worthwhile_splits"]

_LOOSENED = (1.02, 1.03, 1.05, 1.1, 1.2, 1.5, 2.0, 4.0, 10.0)
_PRECISION = 1.005
_PRICE_ROUNDS = (200, 1000)
_WIDE, _NARROW = 300, 32
_SCARCITY_WEIGHT = (0.0, 1.0)
_PERIOD_SLACK = (1.05, 1.1, 1.2, 1.4, 1.8, 2.5, 4.0, 8.0, 16.0)


def short_splits(grid: Grid, earliest: Ints, pins: Pins) -> list[tuple[float, Split]]:
    """Periods and splits: the shortest period found, and quick splits of longer ones."""
    search = _Search(grid, earliest, pins, latency=True)
    splits = [*search.alone(), *search.shortest(), *search.compromises()]
    return [(search.times.period_seconds(split), split) for split in dict.fromkeys(splits)]


def quick_splits(grid: Grid, earliest: Ints, pins: Pins) -> list[tuple[float, Split]]:
    """Latencies of one microbatch and splits: for every number of devices met, the quickest."""
    return _Search(grid, earliest, pins, latency=True).quickest()


def worthwhile_splits(grid: Grid, earliest: Ints, pins: Pins) -> list[Split]:
    """Splits of a short period, were latencies hidden, of a short latency, and in between."""
    search = _Search(grid, earliest, pins, latency=False)
    return list(dict.fromkeys([*search.alone(), *search.shortest(), *search.compromises()]))


class _Search:
    """The tables of one problem, and the shortest period found so far."""

    def __init__(self, grid: Grid, earliest: Ints, pins: Pins, *, latency: bool) -> None:
        self.times = PeriodTimes(grid, earliest, latency=latency)
        self.period = np.inf
        self._pins = pins
        self._seconds = grid.compute_seconds.copy()
        self._seconds[:, 0] += grid.feed_seconds()[:, 0] + grid.feed_latency_seconds()[:, 0]
        self._transfer_seconds = grid.transfer_seconds(np.add, latency=True)

    def alone(self) -> list[Split]:
        """Every device that can hold everything."""
        n_units = self.times.busy.shape[1]
        fits = self.times.earliest[0, :, n_units] == 0
        return [
            Split((name,), (0, n_units))
            for name, alone in zip(self.times.names, fits, strict=True)
            if alone and self._pins.allow((name,))
        ]

    def shortest(self) -> list[Split]:
        """The splits of the shortest period that the beam finds; none if it finds nothing."""
        bound = failed = bound_of(self.times)
        if np.isinf(bound):
            return []
        found: list[Split] = []
        for period in (*(bound * loosened for loosened in _LOOSENED), np.inf):
            found = self._tight(period)
            if found:
                break
            failed = period
        while found and self.period > failed * _PRECISION:
            middle = (failed + self.period) / 2
            tighter = self._tight(middle)
            found = tighter or found
            failed = failed if tighter else middle
        return found

    def compromises(self) -> list[Split]:
        """Quick splits within multiples of the period, scarce devices spared more or less."""
        found = [split for _, split in self.quickest()]
        for slack in _PERIOD_SLACK if 0 < self.period < np.inf else ():
            period = self.period * slack
            scale = 1 / (period * len(self.times.names))
            for weight in _SCARCITY_WEIGHT:
                found += self._within(period, weight, scale, _NARROW)
        return found

    def quickest(self) -> list[tuple[float, Split]]:
        """Of every number of devices met, the least seconds of one microbatch, and the split."""
        return self._beam(self._seconds, self._transfer_seconds, _NARROW)

    def _tight(self, period: float) -> list[Split]:
        """Splits of at most this period, which is made the shortest; none if none is found."""
        found: list[Split] = []
        for rounds in _PRICE_ROUNDS:
            found = self._within(period, 1.0, 0.0, _WIDE, rounds)
            if found:
                break
        self.period = min([self.period, *map(self.times.period_seconds, found)])
        return found

    def _within(
        self, period: float, scarcity: float, haste: float, width: int, rounds: int = 200
    ) -> list[Split]:
        """Splits of at most this period, by what their devices could afford and their seconds."""
        prices = priced(self.times.first_units(period), rounds=rounds)
        seconds = np.where(np.isfinite(self._seconds), self._seconds, 0.0)
        value = haste * seconds + scarcity * prices.affordable[:, None, None]
        span = np.where(self.times.busy <= period, value, np.inf)
        seconds = np.where(np.isfinite(self._transfer_seconds), self._transfer_seconds, 0.0)
        transfer = np.where(self.times.transfer <= period, haste * seconds, np.inf)
        return [split for _, split in self._beam(span, transfer, width)]

    def _beam(self, span: Floats, transfer: Floats, width: int) -> list[tuple[float, Split]]:
        times = self.times
        return beam(times.names, span, transfer, times.earliest, width=width, pins=self._pins)
