"""The codecs of a plan: as exact as a step can have them that is nearly as short as it can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgeweave.plan.coding import LinkCodec, candidates
from edgeweave.plan.costs import Costs, Crossing
from edgeweave.plan.links import Link
from edgeweave.plan.routes import routes
from edgeweave.plan.simulate import with_simulated_step
from edgeweave.plan.stages import Plan

__all__ = ["choose_codecs"]

_WORTH_BITS = 1.02
"""So much longer may a step be for more bits."""


def choose_codecs(plan: Plan, costs: Costs) -> tuple[LinkCodec, ...]:
    """Codecs for the links of a plan, whatever it had before.

    A step is at most 2 % longer than with all links as fast as they may be, and no longer than with
    as many bits as they may have. Found by bisection over what a message may take at most; every
    link then has the most bits that keep to it.
    """
    ways = _ways(plan, costs)
    limits = sorted({seconds for way in ways for seconds, _ in way})
    if costs.coding is None or not limits:
        return ()
    best = _limited(plan, costs, ways, limits[0])
    longest = _WORTH_BITS * best.step_seconds
    low, high = 0, len(limits) - 1  # limits[low] is short enough, limits[high] is not
    widest = _limited(plan, costs, ways, limits[high])
    if widest.step_seconds <= longest:
        return widest.codecs
    while high - low > 1:
        middle = (low + high) // 2
        tried = _limited(plan, costs, ways, limits[middle])
        if tried.step_seconds <= longest:
            best, low = tried, middle
        else:
            high = middle
    return best.codecs


_Way = Sequence[tuple[float, LinkCodec | None]]
"""What a message takes of a link, and the codec with which it does: the most bits first."""


def _ways(plan: Plan, costs: Costs) -> list[_Way]:
    """Of every link that carries something for the plan."""
    return [
        [(_seconds(crossing, link), _codec(crossing, link)) for link in candidates(costs, ends)]
        for route in routes(costs, plan.devices, plan.bounds, plan.skips)
        for crossing in (route.there, route.back)
        if crossing.size_bytes and (ends := (crossing.src, crossing.dst))
    ]


def _seconds(crossing: Crossing, link: Link) -> float:
    return link.occupied_seconds(crossing.size_bytes)


def _codec(crossing: Crossing, link: Link) -> LinkCodec | None:
    if link.coding is None:
        return None
    return LinkCodec(crossing.src, crossing.dst, link.coding.bits)


def _limited(plan: Plan, costs: Costs, ways: Sequence[_Way], limit_seconds: float) -> Plan:
    """With the most bits that keep each message below the limit, or as fast as can be."""
    found = []
    for way in ways:
        fast_enough = (codec for seconds, codec in way if seconds <= limit_seconds)
        found.append(next(fast_enough, min(way, key=lambda each: each[0])[1]))
    codecs = tuple(codec for codec in found if codec is not None)
    return with_simulated_step(replace(plan, codecs=codecs), costs)
