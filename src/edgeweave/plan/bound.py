"""A period that no plan can beat, and the prices of units that prove it.

For a period ``T`` a device may hold the spans of units that it computes, is fed and hands on within
``T`` and that fit its memory with one microbatch in flight. A plan of that period covers every unit
by such spans, at most one for each device. Let fractions of spans do it: that is a linear program,
and by its dual there is no such plan if the units have prices ``p`` (0 or more, sum 1) with

    sum over devices of (the dearest span that the device may hold at T)  <  1

because all devices together then cannot pay for all units. A span is whole in this bound, so it
respects the seconds of each unit on each device and the largest unit that cannot be divided. The
orders of the devices and their numbers of stages behind are what it leaves out.

Prices are found by multiplicative weights (Plotkin, Shmoys, Tardos, 1995): every device takes its
dearest span, units taken often become cheaper. Whatever the prices, the inequality is a proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from edgeweave.plan.costs import Costs
from edgeweave.plan.splits import Floats, Grid, Ints, Microbatching, Split

__all__ = ["PeriodTimes", "Prices", "period_seconds_at_least", "priced"]

_ROUNDS_AND_PRECISION = ((300, 1.02), (3000, 1.0003))
"""First roughly, where few rounds do, then finely."""
_NEARLY = 0.9995
_TINY = 1e-9


class PeriodTimes:
    """The times whose largest is a split's period, and the memory limits of its stages.

    ``busy[d, i, j]`` are units ``i`` to ``j - 1`` on device ``d``, ``transfer[d, f, j]`` both ways
    between ``d`` and ``f`` before unit ``j``, ``earliest`` is ``Grid.earliest_units``. Without
    ``latency`` a transfer is how long it keeps a link busy.
    """

    def __init__(self, grid: Grid, earliest: Ints, *, latency: bool = True) -> None:
        self.names = grid.names
        self.busy = np.maximum(grid.compute_seconds, grid.feed_seconds())
        self.transfer = grid.transfer_seconds(np.maximum, latency=latency)
        self.transfer[range(len(grid.names)), range(len(grid.names))] = np.inf
        self.earliest = earliest

    def first_units(self, period_seconds: float) -> Ints:
        """Entry ``[d, j]``: where the longest span that may stop before ``j`` begins, or ``j``."""
        n_devices, n_units, _ = self.busy.shape
        stops = np.arange(n_units + 1)
        too_long = (self.busy > period_seconds) & (stops[:n_units, None] < stops)
        from_unit = np.maximum(too_long.sum(axis=1), self.earliest[0])
        in_time = self.transfer <= period_seconds
        may_start = np.asarray(in_time.any(axis=0))
        may_start[:, 0] = True
        starts = np.where(may_start, stops[:n_units], n_units)
        next_start = np.full((n_devices, n_units + 1), n_units)
        next_start[:, :n_units] = np.minimum.accumulate(starts[:, ::-1], axis=1)[:, ::-1]
        first = np.minimum(np.take_along_axis(next_start, from_unit, axis=1), stops)
        first[:, :n_units] = np.where(in_time.any(axis=1), first[:, :n_units], stops[:n_units])
        return np.asarray(first)

    def period_seconds(self, split: Split) -> float:
        """The largest of a split's times."""
        order = [self.names.index(name) for name in split.devices]
        spans = pairwise(split.bounds)
        busy = [self.busy[d, i, j] for d, (i, j) in zip(order, spans, strict=True)]
        cuts = zip(pairwise(order), split.bounds[1:-1], strict=True)
        return float(max([*busy, *(self.transfer[d, f, j] for (d, f), j in cuts)]))


@dataclass(frozen=True, slots=True)
class Prices:
    """``affordable[d]`` is the price of the dearest span that device ``d`` may hold."""

    affordable: Floats

    @property
    def prove_impossible(self) -> bool:
        """Whether all devices together cannot pay for all units."""
        return bool(self.affordable.sum() < 1 - _TINY)


def priced(first: Ints, *, rounds: int, until_possible: bool = False) -> Prices:
    """The prices at which all devices together can pay the least, after so many rounds.

    ``until_possible`` stops as soon as the spans of all rounds, on average, cover every unit.
    """
    n_stops = first.shape[1]
    devices = np.arange(len(first))
    prices = np.full(n_stops - 1, 1 / (n_stops - 1))
    best = Prices(np.full(len(first), np.inf))
    least = np.inf
    covered = np.zeros(n_stops - 1)
    for number in range(1, rounds + 1):
        ends = np.concatenate([[0.0], np.cumsum(prices)])
        worth = ends - ends[first]
        stop = worth.argmax(axis=1)
        affordable = worth[devices, stop]
        if affordable.sum() < least:
            best, least = Prices(affordable), affordable.sum()
            if best.prove_impossible:
                break
        begun = np.bincount(first[devices, stop], minlength=n_stops)
        cover = np.cumsum(begun - np.bincount(stop, minlength=n_stops))[:-1]
        covered += cover
        if until_possible and covered.min() >= number * _NEARLY:
            break
        excess = cover - 1.0
        prices = prices * np.exp(-0.5 / np.sqrt(number) * excess / max(1.0, abs(excess).max()))
        prices /= prices.sum()
    return best


def period_seconds_at_least(costs: Costs, run: Microbatching) -> float:
    """No plan for these costs has a shorter period; infinite where none fits. See above why."""
    grid = Grid(costs)
    return bound_of(PeriodTimes(grid, grid.earliest_units(run)))


def bound_of(times: PeriodTimes) -> float:
    """The same, from the tables."""
    high = max(_largest(times.busy), _largest(times.transfer))
    if priced(
        times.first_units(high), rounds=_ROUNDS_AND_PRECISION[-1][0], until_possible=True
    ).prove_impossible:
        return np.inf
    low = max(_largest_unit(times), high * _TINY)
    for rounds, precision in _ROUNDS_AND_PRECISION:
        while high > low * precision:
            middle = (low * high) ** 0.5
            if priced(
                times.first_units(middle), rounds=rounds, until_possible=True
            ).prove_impossible:
                low = middle
            else:
                high = middle
        high = low * precision**2
    return low


def _largest_unit(times: PeriodTimes) -> float:
    """Every unit is computed somewhere, at best where it takes the least."""
    n_units = times.busy.shape[1]
    units = np.arange(n_units)
    return float(times.busy[:, units, units + 1].min(axis=0).max())


def _largest(seconds: Floats) -> float:
    return float(seconds[np.isfinite(seconds)].max(initial=0.0))
