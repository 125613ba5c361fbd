"""Which stage sends to which, and how much: skip connections from stage to stage, or past some.

    relayed    0 ==h+x==> 1 ==h+y==> 2        h is made in 0 and used in 2; 1 passes it on
    direct     0 ===x===> 1 ===y===> 2        h goes past 1, and its gradient returns so
               0 ---------h--------> 2

A direct value goes from each stage that makes or uses it to the next one that uses it, as
``edgeweave.program.cut`` does it. Neighbours always exchange frames, be they empty.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from edgeweave.plan.costs import Costs, Crossing, Cut, crossings

__all__ = ["SKIPS", "Route", "Skips", "routes", "without_skips"]

Skips = Literal["relayed", "direct"]
"""How values travel over stages that do not use them."""

SKIPS: tuple[Skips, ...] = ("relayed", "direct")


@dataclass(frozen=True, slots=True)
class Route:
    """What two stages send each other for each microbatch: outputs there, gradients back."""

    front: int
    behind: int
    there: Crossing
    back: Crossing

    @property
    def is_direct(self) -> bool:
        """Whether it goes past a stage."""
        return self.behind > self.front + 1


def routes(
    costs: Costs, devices: Sequence[str], bounds: Sequence[int], skips: Skips
) -> tuple[Route, ...]:
    """Between neighbours first, in their order, then past stages.

    ``bounds`` are those of a ``Split``: stage ``k`` holds units from ``bounds[k]`` on.
    """
    neighbours = [
        Route(index, index + 1, *crossings(costs, front, behind, bounds[index + 1] - 1))
        for index, (front, behind) in enumerate(pairwise(devices))
    ]
    if skips == "relayed" or len(devices) < 3:
        return tuple(neighbours)
    past = _bytes_past_stages(costs, bounds)
    for (front, behind), (forward_bytes, backward_bytes) in past.items():
        for index in range(front, behind):
            route = neighbours[index]
            neighbours[index] = replace(
                route,
                there=_resized(route.there, -forward_bytes),
                back=_resized(route.back, -backward_bytes),
            )
    direct = (_direct(costs, devices, *pair, *sizes) for pair, sizes in sorted(past.items()))
    return (*neighbours, *direct)


def without_skips(costs: Costs) -> Costs:
    """The costs if values that skip units were sent for nothing: what direct plans may hope for."""
    cuts = list(costs.cuts)
    for skip in costs.skips:
        for before, after in pairwise(skip.units):
            for index in range(before, after) if after - before > 1 else ():
                cuts[index] = Cut(
                    cuts[index].forward_bytes - skip.forward_bytes,
                    cuts[index].backward_bytes - skip.backward_bytes,
                )
    return replace(costs, cuts=tuple(cuts), skips=())


def _bytes_past_stages(
    costs: Costs, bounds: Sequence[int]
) -> dict[tuple[int, int], tuple[int, int]]:
    """For each pair of stages between which others lie, the bytes there and back."""
    past: dict[tuple[int, int], tuple[int, int]] = {}
    for skip in costs.skips:
        stages = dict.fromkeys(bisect_right(bounds, unit) - 1 for unit in skip.units)
        for pair in pairwise(stages):
            if pair[1] > pair[0] + 1:
                there, back = past.get(pair, (0, 0))
                past[pair] = (there + skip.forward_bytes, back + skip.backward_bytes)
    return past


def _direct(
    costs: Costs,
    devices: Sequence[str],
    front: int,
    behind: int,
    forward_bytes: int,
    backward_bytes: int,
) -> Route:
    src, dst = devices[front], devices[behind]
    there = Crossing(src, dst, forward_bytes, costs.link(src, dst))
    return Route(front, behind, there, Crossing(dst, src, backward_bytes, costs.link(dst, src)))


def _resized(crossing: Crossing, more_bytes: int) -> Crossing:
    return replace(crossing, size_bytes=crossing.size_bytes + more_bytes)
