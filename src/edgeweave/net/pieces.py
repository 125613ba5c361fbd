"""Frames travel in pieces, so that a heartbeat never waits behind a megabyte. Knows no network.

    piece attachment = magic "EW" | version | 0 | index | sender | number      24 bytes
                       + the frame's header, on piece 0 only
    piece payload    = the next 64 000 bytes of the frame's payload (the last piece: the rest)

``sender`` is a random number of the sending process, ``number`` counts its frames. A piece and what
Zenoh adds to it fit in one 65 535-byte batch of Zenoh. The receiver allocates once, after it has
accepted the header, and copies each piece to its place; a frame of one piece is viewed where it is.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np

from edgeweave.core.errors import WireError
from edgeweave.core.version import PROTOCOL_VERSION
from edgeweave.net.frame import Frame, FrameHeader, check_header, decode, decode_header

__all__ = ["MOST_UNFINISHED", "PIECE_BYTES", "Assembler", "chunks", "split"]

PIECE_BYTES: Final = 64_000

MOST_UNFINISHED: Final = 4
"""Frames of one sender that may be unfinished at once; a fifth displaces the oldest."""

_MOST_SENDERS = 256
_MOST_REFUSED = 256
_MAGIC = b"EW"
_PREFIX = struct.Struct("<2sBxIQQ")

_Origin = tuple[int, int]


def split(
    header: bytes, views: Iterable[memoryview], *, sender: int, number: int
) -> Iterator[tuple[bytes, bytes]]:
    """Cut an encoded frame into (attachment, payload) pairs; each payload byte is copied once."""
    index = 0
    for index, chunk in enumerate(chunks(views)):
        prefix = _PREFIX.pack(_MAGIC, PROTOCOL_VERSION, index, sender, number)
        yield (prefix + header if index == 0 else prefix), chunk


def chunks(views: Iterable[memoryview]) -> Iterator[bytes]:
    """The concatenation of ``views`` in runs of ``PIECE_BYTES``; one empty run if there is nothing.

    >>> [len(run) for run in chunks([memoryview(bytes(64_000)), memoryview(b"ab")])]
    [64000, 2]
    """
    parts: list[memoryview] = []
    room = PIECE_BYTES
    n_runs = 0
    for view in views:
        start = 0
        while start < len(view):
            part = view[start : start + room]
            parts.append(part)
            start += len(part)
            room -= len(part)
            if room == 0:
                yield b"".join(parts)
                n_runs += 1
                parts, room = [], PIECE_BYTES
    if parts or not n_runs:
        yield b"".join(parts)


class _Partial:
    """A frame under way: its memory, and how much of it has come."""

    __slots__ = ("filled", "header", "memory", "next_index")

    def __init__(self, header: FrameHeader, size_bytes: int) -> None:
        self.header = header
        self.memory = np.empty(size_bytes, dtype=np.uint8).data
        self.filled = 0
        self.next_index = 0

    def append(self, index: int, chunk: bytes | bytearray) -> bool:
        """Copy a piece to its place; whether the frame is whole now."""
        end = self.filled + len(chunk)
        if index != self.next_index:
            raise WireError(
                f"{self}: pieces come in order (expected piece {self.next_index}, got {index})."
            )
        if not chunk or len(chunk) > PIECE_BYTES or end > len(self.memory):
            raise WireError(
                f"{self}: a piece holds 1 to {PIECE_BYTES} bytes and ends within the payload "
                f"(piece {index} holds {len(chunk)}, {len(self.memory) - self.filled} are missing)."
            )
        self.memory[self.filled : end] = chunk
        self.filled = end
        self.next_index += 1
        return end == len(self.memory)

    def __str__(self) -> str:
        return f"frame {self.header.kind[:40]!r} from {self.header.device[:40]!r}"


class Assembler:
    """Puts the frames of any number of senders back together. For one thread.

    ``expect`` sees every header before memory is allocated and raises ``WireError`` to refuse the
    frame. ``add`` raises ``WireError`` once per refused or broken frame; the rest of its pieces are
    ignored in silence. A frame that is given up because its sender began others is told to
    ``on_dropped``.
    """

    def __init__(
        self,
        limit_bytes: int,
        expect: Callable[[FrameHeader], None],
        *,
        on_dropped: Callable[[WireError], None],
    ) -> None:
        self._limit_bytes = limit_bytes
        self._expect = expect
        self._on_dropped = on_dropped
        self._unfinished: OrderedDict[int, OrderedDict[int, _Partial]] = OrderedDict()
        self._sender_of: dict[str, int] = {}
        self._refused: OrderedDict[_Origin, None] = OrderedDict()

    @property
    def n_unfinished(self) -> int:
        """Frames begun and not whole."""
        return sum(len(frames) for frames in self._unfinished.values())

    def add(self, attachment: bytes, chunk: bytes | bytearray) -> Frame | None:
        """Take one piece; the frame if this piece completed it."""
        index, origin = _read_prefix(attachment)
        if origin in self._refused:
            return None
        try:
            if index == 0:
                return self._begin(origin, memoryview(attachment)[_PREFIX.size :], chunk)
            return self._continue(origin, index, chunk)
        except WireError:
            self._forget(origin)
            self._refused[origin] = None
            if len(self._refused) > _MOST_REFUSED:
                self._refused.popitem(last=False)
            raise

    def _begin(
        self, origin: _Origin, header_bytes: memoryview, chunk: bytes | bytearray
    ) -> Frame | None:
        header = decode_header(header_bytes)
        size_bytes = check_header(header, self._limit_bytes)
        self._expect(header)
        if size_bytes <= PIECE_BYTES:
            return decode(header, chunk)
        self._make_room(origin, header.device)
        partial = _Partial(header, size_bytes)
        partial.append(0, chunk)
        self._unfinished.setdefault(origin[0], OrderedDict())[origin[1]] = partial
        return None

    def _continue(self, origin: _Origin, index: int, chunk: bytes | bytearray) -> Frame | None:
        sender, number = origin
        partial = self._unfinished.get(sender, OrderedDict()).get(number)
        if partial is None:
            raise WireError(
                f"a frame begins with its piece 0 (piece {index} of frame {number} of the sender "
                f"{sender:x} came without it)."
            )
        if not partial.append(index, chunk):
            return None
        self._forget(origin)
        return decode(partial.header, partial.memory)

    def _make_room(self, origin: _Origin, device: str) -> None:
        sender, number = origin
        before = self._sender_of.get(device)
        if before is not None and before != sender:
            self._drop_all(before, f"{device!r} started anew")
        if len(self._unfinished) >= _MOST_SENDERS and sender not in self._unfinished:
            self._drop_all(next(iter(self._unfinished)), "too many senders are sending")
        self._sender_of[device] = sender
        frames = self._unfinished.get(sender, OrderedDict())
        if number in frames:
            raise WireError(f"{frames[number]}: a frame begins once (its piece 0 came again).")
        while len(frames) >= MOST_UNFINISHED:
            _, oldest = frames.popitem(last=False)
            self._report(oldest, "its sender went on to other frames")

    def _drop_all(self, sender: int, reason: str) -> None:
        for partial in self._unfinished.pop(sender, OrderedDict()).values():
            self._sender_of.pop(partial.header.device, None)
            self._report(partial, reason)

    def _report(self, partial: _Partial, reason: str) -> None:
        self._on_dropped(
            WireError(
                f"{partial}: dropped unfinished, {partial.filled} of {len(partial.memory)} bytes "
                f"had come ({reason})."
            )
        )

    def _forget(self, origin: _Origin) -> None:
        sender, number = origin
        frames = self._unfinished.get(sender, OrderedDict())
        partial = frames.pop(number, None)
        if partial is not None and not frames:
            del self._unfinished[sender]
            self._sender_of.pop(partial.header.device, None)


def _read_prefix(attachment: bytes) -> tuple[int, _Origin]:
    if len(attachment) < _PREFIX.size or attachment[:2] != _MAGIC:
        raise WireError(
            f"a piece begins with EW and {_PREFIX.size} bytes (got {bytes(attachment[:8])!r}, "
            f"{len(attachment)} bytes)."
        )
    _, version, index, sender, number = _PREFIX.unpack_from(attachment)
    if version != PROTOCOL_VERSION:
        raise WireError(
            f"both sides speak the same protocol (here: {PROTOCOL_VERSION}, in the piece: "
            f"{version}). Upgrade the older side: pip install --upgrade edgeweave."
        )
    return index, (sender, number)
