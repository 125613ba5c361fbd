"""Which groups of how many devices, and who is who: the plan of super neurons that learns fastest.

Every way to give neighbouring layers to groups, and all devices to them, is a candidate; each is
judged by ``SliceModel``'s progress (period, traffic and expected loss together). Where there are
many, a rougher estimate without slicing picks those that are sliced. Devices are placed by trying
all orders of few, and else by EdgePipe's mapping and swaps as long as they help.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, pairwise, permutations
from random import Random
from typing import Final

from edgeweave.core.errors import CaptureError, PlanError
from edgeweave.plan.costs import Costs, DeviceCosts
from edgeweave.plan.mapping import map_members, traffic
from edgeweave.plan.slice_costs import SliceCosts, SliceModel
from edgeweave.plan.slice_plan import SlicePlan
from edgeweave.program import Group, Mode, Program, Sliced, slice_program

__all__ = ["choose_slices", "group_choices", "layer_units"]

_MOST_SLICED: Final = 64
"""Candidates that are sliced and judged exactly."""
_MOST_ORDERS: Final = 720
"""Orders of devices that are all tried; of more, good ones are sought."""
_MOST_BLOCKS: Final = 10
"""Layers are put together to at most so many blocks, which groups begin at."""


def choose_slices(
    program: Program,
    costs: Costs,
    batch: int,
    *,
    mode: Mode = "exchange",
    reliable: bool = False,
    least_members: int = 2,
    seed: int = 0,
    fixed: Mapping[str, DeviceCosts] | None = None,
) -> SlicePlan:
    """The best plan for all devices of ``costs``, with what it is predicted to take. ``fixed`` as
    ``SliceModel`` has it.

    ``program`` is without outputs, as ``costs`` are. A group has ``least_members`` or more, as far
    as there are devices: with two, the loss of one is a mask, and never the end. Raises
    ``PlanError`` where nothing fits, or the error of what cannot be sliced.
    """
    n_devices = len(costs.devices)
    edges = _block_edges(program, costs)
    least = min(least_members, n_devices)
    candidates = list(group_choices(edges, n_devices, least))
    if len(candidates) > _MOST_SLICED:
        candidates = _promising(candidates, program, costs, reliable=reliable)
    best: tuple[SliceCosts, SlicePlan] | None = None
    failure: CaptureError | PlanError | None = None
    for groups in candidates:
        try:
            sliced = slice_program(program, groups, mode)
            model = SliceModel(sliced, costs, batch, fixed)
            found = _placed(model, sliced, costs, batch, mode, reliable=reliable, seed=seed)
        except (CaptureError, PlanError) as error:
            failure = failure or error
            continue
        if best is None or found[0].progress > best[0].progress:
            best = found
    if best is None:
        assert failure is not None, "there is a candidate at least: all devices in one group"
        raise failure
    predicted, plan = best
    return replace(plan, predicted=predicted)


def layer_units(program: Program) -> tuple[int, ...]:
    """Units with weights: EdgePipe's layers."""
    trained = {spec.name for spec in program.trainable}
    with_weights = {n.unit for n in program.nodes if not trained.isdisjoint(n.inputs())}
    return tuple(sorted(with_weights))


def group_choices(
    edges: Sequence[int], n_devices: int, least_members: int
) -> Iterator[tuple[Group, ...]]:
    """All ways to cut at some of the inner ``edges``, and to give all devices to the groups.

    >>> [[group.n_members for group in groups] for groups in group_choices((0, 2, 5), 4, 1)]
    [[4], [1, 3], [2, 2], [3, 1]]
    """
    inner = edges[1:-1]
    for n_cuts in range(min(len(inner), n_devices // least_members - 1) + 1):
        for cuts in combinations(inner, n_cuts):
            bounds = list(pairwise((edges[0], *cuts, edges[-1])))
            for counts in _counts(n_devices, len(bounds), least_members):
                yield tuple(
                    Group(first, stop, count)
                    for (first, stop), count in zip(bounds, counts, strict=True)
                )


def _counts(n_devices: int, n_groups: int, least: int) -> Iterator[tuple[int, ...]]:
    if n_groups == 1:
        yield (n_devices,)
        return
    for first in range(least, n_devices - least * (n_groups - 1) + 1):
        for others in _counts(n_devices - first, n_groups - 1, least):
            yield (first, *others)


def _block_edges(program: Program, costs: Costs) -> tuple[int, ...]:
    """Where groups may begin and end: at layers, or at the edges of blocks of about equal work."""
    units = program.unit_numbers
    layers = layer_units(program)
    inner = list(layers[1:])
    if len(inner) >= _MOST_BLOCKS:
        device = costs.devices[0]
        work = [a + b for a, b in zip(device.forward_seconds, device.backward_seconds, strict=True)]
        done = {unit: sum(work[: units.index(unit)]) for unit in inner}
        wanted = [sum(work) * index / _MOST_BLOCKS for index in range(1, _MOST_BLOCKS)]
        nearest = {min(inner, key=lambda unit: abs(done[unit] - at)) for at in wanted}
        inner = sorted(nearest)
    return (units[0], *inner, units[-1] + 1)


def _promising(
    candidates: Sequence[tuple[Group, ...]], program: Program, costs: Costs, *, reliable: bool
) -> list[tuple[Group, ...]]:
    """Those that a rough estimate finds best, and always the one of all devices in one group."""
    rough = _Rough(program, costs, reliable=reliable)
    ordered = sorted(candidates, key=rough.progress, reverse=True)
    whole = [groups for groups in candidates if len(groups) == 1]
    return [*whole, *[groups for groups in ordered if len(groups) > 1][: _MOST_SLICED - 1]]


class _Rough:
    """Progress by sums over units: work divided evenly, every layer's cut exchanged in a group."""

    def __init__(self, program: Program, costs: Costs, *, reliable: bool) -> None:
        self._units = program.unit_numbers
        self._layers = layer_units(program)
        self._cuts = dict(zip(self._units[1:], costs.cuts, strict=True))
        n = len(costs.devices)
        self._work = [
            sum(d.forward_seconds[u] + d.backward_seconds[u] for d in costs.devices) / n
            for u in range(len(self._units))
        ]
        links = [costs.link(a.device, b.device) for a, b in permutations(costs.devices, 2)] or [
            costs.default_link
        ]
        self._rate = sum(link.goodput for link in links) / len(links)
        loss = sum(link.loss for link in links) / len(links)
        self._latency = sum(link.arrival_seconds(1) for link in links) / len(links)
        self._noise = 0.0 if reliable else loss / (1 - loss)

    def progress(self, groups: tuple[Group, ...]) -> float:
        turns, growth = [], 1.0
        for group in groups:
            n = group.n_members
            first = self._units[0]
            seconds = sum(self._work[group.first - first : group.stop - first]) / n
            inside = [u for u in self._layers if group.first < u < group.stop] if n > 1 else []
            for unit in inside:
                cut = self._cuts[unit]
                seconds += (cut.forward_bytes + cut.backward_bytes) / n / self._rate
                seconds += 2 * self._latency
                growth *= (1 + self._noise * (n - 1) / n) ** 2
            growth *= (1 + self._noise) ** 2 if group.first != self._units[0] else 1.0
            turns.append(seconds)
        return 1 / growth / max(*turns, 1e-9)


def _placed(
    model: SliceModel,
    sliced: Sliced,
    costs: Costs,
    batch: int,
    mode: Mode,
    *,
    reliable: bool,
    seed: int,
) -> tuple[SliceCosts, SlicePlan]:
    """Groups with the best devices for their members that are found."""
    names = tuple(each.device for each in costs.devices)

    def judged(order: Sequence[str]) -> float:
        return model.costs(order, reliable=reliable).progress

    if math.perm(len(names), model.n_members) <= _MOST_ORDERS:
        best = max(permutations(names, model.n_members), key=judged)
    else:
        reception = {(a, b): 1 - costs.link(a, b).loss for a in names for b in names if a != b}
        start = map_members(traffic(sliced, batch), names, reception, Random(seed))
        best = _swapped(start, judged)
    model.check_memory(best)
    return model.costs(best, reliable=reliable), SlicePlan(sliced.groups, tuple(best), mode)


def _swapped(order: Sequence[str], judged: Callable[[Sequence[str]], float]) -> tuple[str, ...]:
    """Two devices change places as long as that helps."""
    best, reached = list(order), judged(order)
    is_better = True
    while is_better:
        is_better = False
        for a, b in combinations(range(len(best)), 2):
            tried = list(best)
            tried[a], tried[b] = tried[b], tried[a]
            if (found := judged(tried)) > reached:
                best, reached, is_better = tried, found, True
    return tuple(best)
