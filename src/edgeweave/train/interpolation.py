"""What a device takes for microbatches of a size that was not measured, from sizes that were."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping, Sequence

from edgeweave.device import UnitTimings

__all__ = ["timings_at"]


def timings_at(measured: Mapping[int, UnitTimings], size: int) -> UnitTimings:
    """Each unit on the line through the two measured sizes next to ``size``, and never below 0.

    So it is where a unit takes a fixed time and one for each sample; caches bend the line. With
    one measured size the line goes through zero.

    >>> measured = {4: UnitTimings((5.0,), (6.0,), 0.1), 8: UnitTimings((7.0,), (10.0,), 0.1)}
    >>> timings_at(measured, 16).forward_seconds
    (11.0,)
    """
    if size in measured:
        return measured[size]
    if len(measured) == 1:
        measured = {0: next(iter(measured.values())).stretched(0.0), **measured}
    known = sorted(measured)
    above = min(max(bisect(known, size), 1), len(known) - 1)
    low, high = known[above - 1], known[above]
    share = (size - low) / (high - low)

    def on_the_line(at_low: Sequence[float], at_high: Sequence[float]) -> tuple[float, ...]:
        pairs = zip(at_low, at_high, strict=True)
        return tuple(max(first + share * (second - first), 0.0) for first, second in pairs)

    first, second = measured[low], measured[high]
    return UnitTimings(
        on_the_line(first.forward_seconds, second.forward_seconds),
        on_the_line(first.backward_seconds, second.backward_seconds),
        second.update_seconds_per_byte,
    )
