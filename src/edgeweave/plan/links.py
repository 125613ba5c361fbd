"""What a link between two devices takes for a message, as it is and with a codec."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from edgeweave.core.errors import ConfigError
from edgeweave.core.loss import drawn_rounds, mean_rounds
from edgeweave.plan._checks import require_not_negative

__all__ = ["UNSEEN_LINK", "Coding", "Link", "LinkCoding"]

_FIX = "Measure again."


@dataclass(frozen=True, slots=True)
class LinkCoding:
    """What a codec of so many bits a value makes of a link.

    ``share``: bytes on the wire for each byte before coding. Encoding and decoding go on beside
    computing and sending, each on a thread of its own.
    """

    bits: int
    share: float
    encode_seconds_per_byte: float
    decode_seconds_per_byte: float


@dataclass(frozen=True, slots=True)
class Link:
    """One direction between two devices; ``loss`` is the share of packets sent more than once.

    Sizes are those of the values; ``coding`` says how many bytes of them travel, all if None.

    >>> Link(bytes_per_second=1e6, latency_seconds=0.02).occupied_seconds(500_000)
    0.5
    """

    bytes_per_second: float
    latency_seconds: float
    loss: float = 0.0
    coding: LinkCoding | None = None

    def __post_init__(self) -> None:
        require_not_negative(self.latency_seconds, "latency_seconds of a link", fix=_FIX)
        require_not_negative(self.bytes_per_second, "bytes_per_second of a link", fix=_FIX)
        if self.bytes_per_second == 0:
            raise ConfigError(
                "bytes_per_second of a link must be above zero (got 0). Leave the device out."
            )
        if not 0 <= self.loss < 1:
            raise ConfigError(
                f"loss of a link is a share, at least 0 and below 1 (got {self.loss}). "
                "Measure again."
            )

    @property
    def goodput(self) -> float:
        """Bytes per second before coding: what the wire carries, or what either codec keeps up."""
        coding = self.coding
        if coding is None:
            return self.bytes_per_second
        return 1 / max(
            coding.share / self.bytes_per_second,
            coding.encode_seconds_per_byte,
            coding.decode_seconds_per_byte,
        )

    def wire_bytes(self, size_bytes: int) -> int:
        """What travels of a message."""
        return size_bytes if self.coding is None else ceil(size_bytes * self.coding.share)

    def occupied_seconds(self, size_bytes: int) -> float:
        """How long a message keeps the next one waiting; it is there one latency later."""
        return size_bytes / self.goodput

    def arrival_seconds(self, size_bytes: int) -> float:
        """The latency, what a message waits for lost packets on average, and for its codec."""
        return self._arrival_seconds(
            size_bytes, mean_rounds(self.wire_bytes(size_bytes), self.loss)
        )

    def drawn_arrival_seconds(self, size_bytes: int, chance: float) -> float:
        """The same, unluckier than a share ``chance`` of all messages."""
        rounds = drawn_rounds(self.wire_bytes(size_bytes), self.loss, chance)
        return self._arrival_seconds(size_bytes, rounds)

    def _arrival_seconds(self, size_bytes: int, rounds: float) -> float:
        seconds = self.latency_seconds * (1 + 2 * rounds)
        if self.coding is None:
            return seconds
        per_byte = self.coding.encode_seconds_per_byte + self.coding.decode_seconds_per_byte
        return seconds + size_bytes * per_byte


UNSEEN_LINK = Link(bytes_per_second=1e8, latency_seconds=1e-3)
"""What a link is taken for that was not measured."""


@dataclass(frozen=True, slots=True)
class Coding:
    """The bits a value may have on links between devices, and how many it has before.

    ``widths``: most bits first, the last being as far as accuracy allows. ``overhead_bits`` is what
    a block's scale adds to each value. ``always``: no link carries values as they are.
    """

    widths: tuple[int, ...]
    always: bool = False
    value_bits: int = 32
    overhead_bits: float = 0.25

    def __post_init__(self) -> None:
        if not self.widths or sorted(set(self.widths), reverse=True) != list(self.widths):
            raise ConfigError(
                f"widths of codecs are different numbers of bits, most first (got {self.widths})."
            )

    def share(self, bits: int) -> float:
        """Bytes of so many bits a value, for each byte before."""
        return min(1.0, (bits + self.overhead_bits) / self.value_bits)
