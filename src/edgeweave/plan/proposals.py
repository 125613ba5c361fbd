"""Which splits are worth simulating.

Where there are few, all of them: two devices and hundreds of units, or three devices and thirty.
Above ten devices ``heuristic`` proposes, else the dynamic program. The period is what counts in a
long pipeline, but a step also fills and drains it, and more microbatches in flight hide a slow
link. So of every set of devices there are proposed: the split with the best period; the one with
the best period if latencies were hidden; and those with the least latency among the splits whose
period is at most so much worse than the best.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise, permutations
from math import comb, perm

import numpy as np

from edgeweave.plan.costs import Costs
from edgeweave.plan.heuristic import quick_splits, short_splits, worthwhile_splits
from edgeweave.plan.splits import (
    ANYWHERE,
    Floats,
    Grid,
    Ints,
    Join,
    Microbatching,
    Pins,
    Split,
    Table,
    solve,
)

__all__ = ["MAX_DEVICES", "best_splits", "proposals"]

MAX_DEVICES = 10
"""The most devices among which every subset and order is tried."""

_FEW_SPLITS = 4000
# Each value is one more run of the dynamic program. Against trying every split (9 units, 3 devices,
# 360 random cases) the long list is 0.5 % slower on average, the short one 1.0 %, both 13 % at
# worst. The short one plans 200 units on 8 devices in half a second, in one where memory is tight.
_PERIOD_SLACK = (1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 1.6, 2.0, np.inf)
_COARSE_PERIOD_SLACK = (1.1, 1.2, 1.4)
_FEW_DEVICES = 6


def best_splits(
    costs: Costs, run: Microbatching, join: Join, pins: Pins = ANYWHERE
) -> list[tuple[float, Split]]:
    """Splits with the least maximum, or sum, of all their times.

    To ``MAX_DEVICES`` devices the best of every set of them, above that those that are found.
    """
    grid = Grid(costs)
    earliest = grid.earliest_units(run)
    if len(grid.names) <= MAX_DEVICES:
        return list(_table(grid, earliest, join, pins, latency=True).splits())
    return (short_splits if join is np.maximum else quick_splits)(grid, earliest, pins)


def proposals(
    costs: Costs,
    runs: list[Microbatching],
    pins: Pins = ANYWHERE,
    *,
    n_devices: int | None = None,
) -> Iterator[tuple[Microbatching, list[Split]]]:
    """For each run the splits, of any or the given number of devices, worth simulating.

    The same splits serve the next run as long as the same spans of units fit the devices.
    """
    grid = Grid(costs)
    earliest: Ints = np.empty(0, dtype=np.int64)
    splits: list[Split] = []
    for run in runs:
        earliest_before, earliest = earliest, grid.earliest_units(run)
        if not np.array_equal(earliest, earliest_before):
            splits = _worthwhile(grid, earliest, pins, n_devices)
        yield run, splits


def _worthwhile(grid: Grid, earliest: Ints, pins: Pins, n_devices: int | None) -> list[Split]:
    if len(grid.names) > MAX_DEVICES:
        return worthwhile_splits(grid, earliest, pins)
    few = _number_of_splits(grid) <= _FEW_SPLITS
    choose = _every_split if few else _distinct_splits
    return choose(grid, earliest, pins, n_devices)


def _number_of_splits(grid: Grid) -> int:
    sizes = range(1, min(len(grid.names), grid.n_units) + 1)
    return sum(perm(len(grid.names), size) * comb(grid.n_units - 1, size - 1) for size in sizes)


def _every_split(grid: Grid, earliest: Ints, pins: Pins, n_devices: int | None) -> list[Split]:
    splits: list[Split] = []
    for size in range(1, len(earliest) + 1) if n_devices is None else (n_devices,):
        inner = list(combinations(range(1, grid.n_units), size - 1))
        for order in permutations(range(len(grid.names)), size):
            names = tuple(grid.names[d] for d in order)
            if pins.allow(names):
                bounds = ((0, *cuts, grid.n_units) for cuts in inner)
                splits += [Split(names, b) for b in bounds if _fits(order, b, earliest)]
    return splits


def _fits(order: tuple[int, ...], bounds: tuple[int, ...], earliest: Ints) -> bool:
    spans = zip(reversed(range(len(order))), order, pairwise(bounds), strict=True)
    return all(first >= earliest[n_behind, d, stop] for n_behind, d, (first, stop) in spans)


def _distinct_splits(grid: Grid, earliest: Ints, pins: Pins, n_devices: int | None) -> list[Split]:
    def wanted(table: Table) -> list[tuple[float, Split]]:
        return [pair for pair in table.splits() if n_devices in (None, len(pair[1].devices))]

    hidden = wanted(_table(grid, earliest, np.maximum, pins, latency=False))
    if not hidden:
        return []
    period = min(seconds for seconds, _ in hidden)
    tables = [_table(grid, earliest, np.maximum, pins, latency=True)]
    slacks = _PERIOD_SLACK if len(grid.names) <= _FEW_DEVICES else _COARSE_PERIOD_SLACK
    tables += [
        _table(grid, earliest, np.add, pins, latency=True, period=period * slack)
        for slack in slacks
    ]
    found = hidden + [pair for table in tables for pair in wanted(table)]
    return list(dict.fromkeys(split for _, split in found))


def _table(
    grid: Grid,
    earliest: Ints,
    join: Join,
    pins: Pins,
    *,
    latency: bool,
    period: float = np.inf,
) -> Table:
    """Solve for times joined so, with or without latencies, no part of it longer than a period.

    Feeds are sent ahead: they bound the period by how long they keep a link busy, and only those of
    the first stage add to what one microbatch takes.
    """
    feeds = grid.feed_seconds()
    compute = np.where(
        np.maximum(grid.compute_seconds, feeds) <= period, grid.compute_seconds, np.inf
    )
    if join is np.maximum:
        compute = np.maximum(compute, feeds)
    else:
        compute[:, 0] += feeds[:, 0] + grid.feed_latency_seconds()[:, 0] * latency
    transfer = grid.transfer_seconds(join, latency=latency)
    if np.isfinite(period):
        occupied = grid.transfer_seconds(np.maximum, latency=False)
        transfer = np.where(occupied <= period, transfer, np.inf)

    units = np.arange(grid.n_units)[:, None]

    def stage_cost(n_behind: int) -> Floats:
        fits = units >= earliest[n_behind][:, None, :]
        return np.where(fits, compute, np.inf)

    return solve(grid, stage_cost, transfer, join, pins)
