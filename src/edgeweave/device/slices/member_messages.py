"""What transfers of a sliced program carry between devices: whose, how large, in which pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from edgeweave.codec import PAYLOAD_BYTES, Codec, n_datagrams
from edgeweave.program import DTYPES, Routes, Shard, Sliced, Transfer, Value

__all__ = ["Message", "Wire", "Wiring", "messages"]

_CODED_HEADER_BYTES: Final = 64
_BLOCK_BYTES: Final = 9
"""What a block of a codec takes beside its values, at most."""


@dataclass(frozen=True, slots=True)
class Message:
    """What one transfer carries: who sends it to whom, and what its tensor is like."""

    transfer: int
    sender: int
    receiver: int
    value: Value
    dim: int | None
    n_indices: int
    codec: Codec | None
    """None: as it is."""

    @property
    def item_bytes(self) -> float:
        """What an element takes on the wire, about; of a codec with its blocks and header."""
        if self.codec is None:
            return DTYPES[self.value.dtype].itemsize
        share = PAYLOAD_BYTES / (PAYLOAD_BYTES - _CODED_HEADER_BYTES)
        return share * (self.codec.bits / 8 + _BLOCK_BYTES / self.codec.block)

    def shape(self, samples: int) -> tuple[int, ...]:
        """Of the part, for a number of samples."""
        whole = self.value.shape_at(samples)
        if self.dim is None:
            return whole
        return (*whole[: self.dim], self.n_indices, *whole[self.dim + 1 :])

    def n_datagrams(self, samples: int) -> int:
        return n_datagrams(self.shape(samples), self.item_bytes)


def messages(sliced: Sliced, codec: Codec | None) -> tuple[Message, ...]:
    """Those of all transfers, by number; members are numbered as in ``Sliced.members``."""
    ranks = {who: rank for rank, who in enumerate(sliced.members)}
    values = sliced.program.values()
    return tuple(
        Message(
            number,
            ranks[sliced.segments[transfer.source.segment].group, transfer.source.member],
            ranks[sliced.segments[transfer.target.segment].group, transfer.target.member],
            values[transfer.value],
            transfer.dim,
            sum(stop - start for start, stop in transfer.span),
            codec if DTYPES[values[transfer.value].dtype].is_floating_point else None,
        )
        for number, transfer in enumerate(sliced.transfers)
    )


@dataclass(frozen=True, slots=True)
class Wire:
    """A transfer and the message that carries it."""

    transfer: Transfer
    message: Message

    @property
    def number(self) -> int:
        return self.message.transfer


@dataclass(frozen=True, slots=True)
class Wiring:
    """By segment, what one member is handed and what it hands on, itself included."""

    arriving: Mapping[int, Sequence[Wire]]
    leaving: Mapping[int, Sequence[Wire]]
    returning: Mapping[int, Sequence[Wire]]
    """Those of ``leaving`` whose gradients come back, in the order in which their receivers
    compute backward: so sums add up as in a rehearsal."""

    @classmethod
    def of(cls, routes: Routes, messages: Sequence[Message], sliced: Sliced, rank: int) -> Wiring:
        group, member = sliced.members[rank]
        known = dict(zip(sliced.transfers, messages, strict=True))
        segments = [n for n, segment in enumerate(sliced.segments) if segment.group == group]

        def wires(transfers: Mapping[Shard, Sequence[Transfer]]) -> dict[int, list[Wire]]:
            return {
                segment: [Wire(t, known[t]) for t in transfers.get(Shard(segment, member), ())]
                for segment in segments
            }

        leaving = wires(routes.leaving)
        returning = {
            segment: sorted(
                (wire for wire in found if wire.message.value.requires_grad), key=_backward_order
            )
            for segment, found in leaving.items()
        }
        return cls(wires(routes.arriving), leaving, returning)


def _backward_order(wire: Wire) -> tuple[int, int, int]:
    target = wire.transfer.target
    return -target.segment, target.member, wire.number
