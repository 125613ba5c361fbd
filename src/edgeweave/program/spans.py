"""Which indices of a dimension somebody holds: ascending half-open intervals. Plain arithmetic.

neurons     0 1 2 | 3 4 5 | 6 7 8 9      even(10, 3): spare neurons go to the last ones
span        ((0, 3),)  ((3, 6),)  ((6, 10),)
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Span", "even", "grown", "joined", "moved", "overlap", "positions", "shrunk", "size"]

Span = tuple[tuple[int, int], ...]
"""Ascending, disjoint intervals ``(start, stop)``, none of them empty."""


def even(n_neurons: int, n_members: int, granule: int = 1) -> tuple[Span, ...]:
    """Contiguous slices, as equal as can be, of whole granules; the last ones get the spare.

    With fewer granules than members, the first members get nothing.

    >>> even(10, 4)
    (((0, 2),), ((2, 4),), ((4, 7),), ((7, 10),))
    """
    n_granules = n_neurons // granule
    least, spare = divmod(n_granules, n_members)
    sizes = [least + (member >= n_members - spare) for member in range(n_members)]
    starts = [sum(sizes[:member]) * granule for member in range(n_members + 1)]
    return tuple(
        ((starts[member], starts[member + 1]),) if sizes[member] else ()
        for member in range(n_members)
    )


def size(span: Span) -> int:
    """How many indices it holds."""
    return sum(stop - start for start, stop in span)


def joined(intervals: Iterable[tuple[int, int]]) -> Span:
    """The span of disjoint intervals in any order; neighbours become one."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted(intervals):
        if start == stop:
            continue
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return tuple(found)


def overlap(first: Span, second: Span) -> Span:
    """The indices in both."""
    return joined(
        (max(a, c), min(b, d)) for a, b in first for c, d in second if max(a, c) < min(b, d)
    )


def positions(inner: Span, outer: Span) -> Span:
    """Where the indices of ``inner`` lie among those that ``outer`` holds, counted from zero.

    >>> positions(((7, 9),), ((0, 2), (6, 10)))
    ((3, 5),)
    """
    found, before = [], 0
    for start, stop in outer:
        for a, b in overlap(inner, ((start, stop),)):
            found.append((before + a - start, before + b - start))
        before += stop - start
    return joined(found)


def moved(span: Span, by: int) -> Span:
    """Every index plus ``by``."""
    return tuple((start + by, stop + by) for start, stop in span)


def grown(span: Span, factor: int) -> Span:
    """Every index becomes ``factor`` of them, as flattening ``(C, H, W)`` does to channels."""
    return tuple((start * factor, stop * factor) for start, stop in span)


def shrunk(span: Span, factor: int) -> Span | None:
    """The reverse of ``grown``, or None if a block of ``factor`` indices is cut."""
    if any(start % factor or stop % factor for start, stop in span):
        return None
    return tuple((start // factor, stop // factor) for start, stop in span)
