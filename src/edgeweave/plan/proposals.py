"""Which splits are worth simulating.

Where there are few, all of them: two devices and hundreds of units, or three devices and thirty.
Else the dynamic program proposes. The period is what counts in a long pipeline, but a step also
fills and drains it, and more microbatches in flight hide a slow link. So of every set of devices
there are proposed: the split with the best period; the one with the best period if latencies were
hidden; and those with the least latency among the splits whose period is at most so much worse
than the best.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise, permutations
from math import comb, perm

import numpy as np
import numpy.typing as npt

from edgeweave.plan.costs import Costs
from edgeweave.plan.splits import Floats, Grid, Join, Microbatching, Split, Table, solve

__all__ = ["MAX_DEVICES", "best_splits", "considered", "proposals"]

MAX_DEVICES = 10
"""The most devices among which every subset and order is tried."""

_FEW_SPLITS = 4000
# Each value is one more run of the dynamic program. Against trying every split (9 units, 3 devices,
# 360 random cases) the long list is 0.5 % slower on average, the short one 1.0 %, both 13 % at
# worst. The short one plans 200 units on 8 devices in half a second, in one where memory is tight.
_PERIOD_SLACK = (1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 1.6, 2.0, np.inf)
_COARSE_PERIOD_SLACK = (1.1, 1.2, 1.4)
_FEW_DEVICES = 6

Fitting = list[npt.NDArray[np.bool_]]
"""By number of stages behind: which span of units fits which device."""


def considered(costs: Costs, *, keep: str | None = None) -> Costs:
    """The costs of the fastest ``MAX_DEVICES`` devices, one of which is ``keep``.

    Fast is who takes the fewest seconds for all units. That heuristic may miss a plan in which a
    slow device is worth its memory.
    """
    if keep is not None:
        costs.device(keep)
    ranked = sorted(
        costs.devices,
        key=lambda d: (d.device != keep, sum(d.forward_seconds) + sum(d.backward_seconds)),
    )
    return costs.only([device.device for device in ranked[:MAX_DEVICES]])


def best_splits(
    costs: Costs, run: Microbatching, join: Join, *, pin_first: str | None = None
) -> list[tuple[float, Split]]:
    """Of every set of devices the split with the least maximum, or sum, of all its times."""
    grid = Grid(costs)
    table = _table(grid, _fitting(grid, run), join, latency=True)
    return list(table.splits(first=pin_first))


def proposals(
    costs: Costs,
    runs: list[Microbatching],
    *,
    pin_first: str | None = None,
    n_devices: int | None = None,
) -> Iterator[tuple[Microbatching, list[Split]]]:
    """For each run the splits, of any or the given number of devices, worth simulating.

    The same splits serve the next run as long as the same spans of units fit the devices.
    """
    grid = Grid(costs)
    fitting: Fitting = []
    splits: list[Split] = []
    for run in runs:
        fitting_before, fitting = fitting, _fitting(grid, run)
        if not fitting_before or not all(map(np.array_equal, fitting, fitting_before)):
            few = _number_of_splits(grid) <= _FEW_SPLITS
            choose = _every_split if few else _distinct_splits
            splits = choose(grid, fitting, pin_first, n_devices)
        yield run, splits


def _fitting(grid: Grid, run: Microbatching) -> Fitting:
    n_stages = min(len(grid.names), grid.n_units)
    return [grid.fits(run.in_flight(n_behind)) for n_behind in range(n_stages)]


def _number_of_splits(grid: Grid) -> int:
    sizes = range(1, min(len(grid.names), grid.n_units) + 1)
    return sum(perm(len(grid.names), size) * comb(grid.n_units - 1, size - 1) for size in sizes)


def _every_split(
    grid: Grid, fitting: Fitting, pin_first: str | None, n_devices: int | None
) -> list[Split]:
    splits: list[Split] = []
    for size in range(1, len(fitting) + 1) if n_devices is None else (n_devices,):
        inner = list(combinations(range(1, grid.n_units), size - 1))
        for order in permutations(range(len(grid.names)), size):
            names = tuple(grid.names[d] for d in order)
            if pin_first in (None, names[0]):
                bounds = ((0, *cuts, grid.n_units) for cuts in inner)
                splits += [Split(names, b) for b in bounds if _fits(order, b, fitting)]
    return splits


def _fits(order: tuple[int, ...], bounds: tuple[int, ...], fitting: Fitting) -> bool:
    spans = zip(reversed(fitting[: len(order)]), order, pairwise(bounds), strict=True)
    return all(fits[d, first, stop] for fits, d, (first, stop) in spans)


def _distinct_splits(
    grid: Grid, fitting: Fitting, pin_first: str | None, n_devices: int | None
) -> list[Split]:
    def wanted(table: Table) -> list[tuple[float, Split]]:
        found = table.splits(first=pin_first)
        return [pair for pair in found if n_devices in (None, len(pair[1].devices))]

    hidden = wanted(_table(grid, fitting, np.maximum, latency=False))
    if not hidden:
        return []
    period = min(seconds for seconds, _ in hidden)
    tables = [_table(grid, fitting, np.maximum, latency=True)]
    slacks = _PERIOD_SLACK if len(grid.names) <= _FEW_DEVICES else _COARSE_PERIOD_SLACK
    tables += [
        _table(grid, fitting, np.add, latency=True, period=period * slack) for slack in slacks
    ]
    found = hidden + [pair for table in tables for pair in wanted(table)]
    return list(dict.fromkeys(split for _, split in found))


def _table(
    grid: Grid, fitting: Fitting, join: Join, *, latency: bool, period: float = np.inf
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

    def stage_cost(n_behind: int) -> Floats:
        return np.where(fitting[n_behind], compute, np.inf)

    return solve(grid, stage_cost, transfer, join)
