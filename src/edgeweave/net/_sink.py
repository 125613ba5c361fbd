"""The receiving end of a subscription: pieces in, frames and errors out. Both transports use it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from edgeweave.core.errors import WireError
from edgeweave.net.frame import Frame, FrameHeader
from edgeweave.net.pieces import Assembler
from edgeweave.net.transport import Tally

__all__ = ["Receiver", "Sink", "guarded"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Receiver:
    """What a subscriber brought: who takes frames and errors, and what may come."""

    on_frame: Callable[[Frame], None]
    on_error: Callable[[WireError], None]
    expect: Callable[[FrameHeader], None]
    limit_bytes: int


class Sink:
    """Assembles the pieces of one subscription and calls its callbacks. Never raises."""

    def __init__(self, key: str, receiver: Receiver, tally: Tally) -> None:
        self._key = key
        self._receiver = receiver
        self._tally = tally
        self._assembler = Assembler(receiver.limit_bytes, receiver.expect, on_dropped=self._refuse)

    def take(self, attachment: bytes, chunk: bytes) -> None:
        """Take one piece; hand its frame on if it is whole now."""
        guarded(self._tally, self._key, lambda: self._take(attachment, chunk))

    def _take(self, attachment: bytes, chunk: bytes) -> None:
        try:
            frame = self._assembler.add(attachment, chunk)
        except WireError as error:
            self._refuse(error)
            return
        if frame is None:
            return
        size_bytes = sum(tensor.nbytes for tensor in frame.tensors)
        self._tally.add(frames_received=1, bytes_received=size_bytes)
        self._receiver.on_frame(frame)

    def _refuse(self, error: WireError) -> None:
        self._tally.add(frames_refused=1)
        self._receiver.on_error(error)


def guarded(tally: Tally, key: str, call: Callable[[], None]) -> None:
    """Run a user's callback at the edge of a thread of ours: an exception is logged and counted."""
    try:
        call()
    except Exception:  # noqa: BLE001 - the thread belongs to the network and must live on
        tally.add(callbacks_failed=1)
        _log.exception("a callback of %s failed; the next message is handled all the same", key)
