"""What a device takes for microbatches of a size that was not measured, from sizes that were."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgeweave.plan import DeviceCosts

__all__ = ["device_costs_at"]


def device_costs_at(measured: Mapping[int, DeviceCosts], size: int) -> DeviceCosts:
    """Each unit on the line through the two measured sizes next to ``size``, and never below 0.

    So it is where a unit takes a fixed time and one for each sample; caches bend the line. With
    one measured size the line goes through zero.

    >>> measured = {n: DeviceCosts("pi", (3.0 + n,), (2.0 * n,), None) for n in (4, 8)}
    >>> device_costs_at(measured, 16).forward_seconds
    (19.0,)
    """
    if size in measured:
        return measured[size]
    if len(measured) == 1:
        measured = {0: _nothing(next(iter(measured.values()))), **measured}
    known = sorted(measured)
    above = min(max(bisect(known, size), 1), len(known) - 1)
    low, high = known[above - 1], known[above]
    share = (size - low) / (high - low)

    def on_the_line(at_low: Sequence[float], at_high: Sequence[float]) -> tuple[float, ...]:
        pairs = zip(at_low, at_high, strict=True)
        return tuple(max(first + share * (second - first), 0.0) for first, second in pairs)

    first, second = measured[low], measured[high]
    return replace(
        second,
        forward_seconds=on_the_line(first.forward_seconds, second.forward_seconds),
        backward_seconds=on_the_line(first.backward_seconds, second.backward_seconds),
    )


def _nothing(costs: DeviceCosts) -> DeviceCosts:
    zeros = (0.0,) * len(costs.forward_seconds)
    return replace(costs, forward_seconds=zeros, backward_seconds=zeros)
