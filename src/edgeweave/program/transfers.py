"""What members of a sliced program hand each other, and where its gradients go back to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgeweave.program.graph import Program
from edgeweave.program.shares import Asked, Lies, Partial
from edgeweave.program.spans import Span, overlap

__all__ = ["Held", "Place", "Segment", "Transfer", "transfers_to"]


@dataclass(frozen=True, slots=True)
class Held:
    """Which segment makes a value, and how it then lies over its members."""

    segment: int
    lies: Lies


@dataclass(frozen=True, slots=True)
class Place:
    """A member of the group of a segment."""

    segment: int
    member: int


@dataclass(frozen=True, slots=True)
class Segment:
    """What a group computes between two exchanges: a program per member, or None for nothing."""

    group: int
    programs: tuple[Program | None, ...]
    asked: Mapping[str, Asked]
    """How values of earlier segments must lie."""
    is_tail: bool
    """Every member computes the loss from everything, and knows the gradient of everything."""
    loss_weight: float
    """What the loss counts in each member's backward: members that compute it share it."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """A part of a value that goes from where it is made to where it is needed.

    ``span`` are indices of dimension ``dim`` of the whole value; ``dim`` None is all of it.
    Parts for the same place add up. ``returned`` scales the gradient that comes back the same
    way; 0: none does.
    """

    value: str
    source: Place
    target: Place
    dim: int | None
    span: Span
    returned: float


def transfers_to(
    number: int,
    segments: Sequence[Segment],
    held: Mapping[str, Held],
) -> Iterator[Transfer]:
    """Everything that the members of segment ``number`` need of earlier ones."""
    for name, asked in segments[number].asked.items():
        for member in range(len(segments[number].programs)):
            place = Place(number, member)
            yield from _to_member(name, asked, place, segments, held[name])


def _to_member(
    name: str,
    asked: Asked,
    target: Place,
    segments: Sequence[Segment],
    held: Held,
) -> Iterator[Transfer]:
    here, there = segments[target.segment], segments[held.segment]
    n_here, n_there = len(here.programs), len(there.programs)
    is_same_group = here.group == there.group
    member = target.member
    dim = asked[0].dim if asked else None
    span = asked[0].spans[member] if asked else ()
    if asked and not span:
        return
    if held.lies is None:
        source = Place(held.segment, member if is_same_group else member % n_there)
        # Each copy knows the gradient of its own uses, unless all know that of all uses.
        returned = 1.0 / n_here if here.is_tail else 1.0
        yield Transfer(name, source, target, dim, span, returned)
        return
    for holder, own in enumerate(held.lies.spans):
        returned = 1.0
        if here.is_tail:
            returned = float(member == (holder if is_same_group else holder % n_here))
        source = Place(held.segment, holder)
        if isinstance(held.lies, Partial):
            if own:
                yield Transfer(name, source, target, dim, span, returned)
            continue
        along = held.lies.dim
        part = overlap(own, span) if asked else own
        if part:
            yield Transfer(name, source, target, along, part, returned)
