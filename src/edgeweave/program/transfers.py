"""What members of a sliced program hand each other, and where its gradients go back to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgeweave.program.graph import Program
from edgeweave.program.shares import Asked, Lies, Partial
from edgeweave.program.spans import Span, overlap

__all__ = ["Held", "Segment", "Shard", "Transfer", "transfers_to"]


@dataclass(frozen=True, slots=True)
class Held:
    """Which segment makes a value, and how it then lies over its members."""

    segment: int
    lies: Lies


@dataclass(frozen=True, slots=True)
class Shard:
    """One member's part of a segment."""

    segment: int
    member: int


@dataclass(frozen=True, slots=True)
class Segment:
    """What a group computes between two exchanges: a program per member, or None for nothing."""

    group: int
    programs: tuple[Program | None, ...]
    asked: Mapping[str, Asked]
    """How values of earlier segments must lie."""
    loss_weight: float
    """What the loss counts in each member's backward. Members that compute it minimise the mean of
    their losses, which differ where losses of messages do: what each makes of it, it sends back to
    all that it heard from. (Were each to use the gradient of its own neurons alone, nobody would
    minimise anything: under loss such training diverges.)"""


@dataclass(frozen=True, slots=True)
class Transfer:
    """A part of a value that goes from where it is made to where it is needed.

    ``span`` are indices of dimension ``dim`` of the whole value; ``dim`` None is all of it.
    Parts for the same shard add up. The gradient comes back the same way, and adds up too.
    """

    value: str
    source: Shard
    target: Shard
    dim: int | None
    span: Span


def transfers_to(
    number: int,
    segments: Sequence[Segment],
    held: Mapping[str, Held],
) -> Iterator[Transfer]:
    """Everything that the members of segment ``number`` need of earlier ones."""
    for name, asked in segments[number].asked.items():
        for member in range(len(segments[number].programs)):
            shard = Shard(number, member)
            yield from _to_member(name, asked, shard, segments, held[name])


def _to_member(
    name: str,
    asked: Asked,
    target: Shard,
    segments: Sequence[Segment],
    held: Held,
) -> Iterator[Transfer]:
    here, there = segments[target.segment], segments[held.segment]
    n_there, member = len(there.programs), target.member
    dim = asked[0].dim if asked else None
    span = asked[0].spans[member] if asked else ()
    if asked and not span:
        return
    if held.lies is None:
        own = member if here.group == there.group else member % n_there
        yield Transfer(name, Shard(held.segment, own), target, dim, span)
        return
    for holder, own_span in enumerate(held.lies.spans):
        source = Shard(held.segment, holder)
        if isinstance(held.lies, Partial):
            if own_span:
                yield Transfer(name, source, target, dim, span)
            continue
        part = overlap(own_span, span) if asked else own_span
        if part:
            yield Transfer(name, source, target, held.lies.dim, part)
