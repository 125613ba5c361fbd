"""What peers say to each other as frames: a message's kind, its numbers, and a model or none."""

from __future__ import annotations

import math
from typing import Final

from edgeweave.core.errors import WireError
from edgeweave.mixing import KINDS, Message
from edgeweave.net import Frame, FrameHeader, specs_of

__all__ = ["check_header", "frame_of", "message_of"]

_MODEL = "model"
_CODED: Final = "edgeweave"


def frame_of(message: Message, sender: str, rank: int) -> Frame:
    """The frame of a message from the peer ``sender``, which is number ``rank`` of the graph."""
    tensors = {} if message.tensor is None else {_MODEL: message.tensor}
    header = FrameHeader(
        message.kind,
        sender,
        rank,
        0,
        0,
        0,
        specs_of(tensors),
        dict(message.scalars),
        _CODED if message.coded else "none",
    )
    return Frame(header, tuple(tensors.values()))


def message_of(frame: Frame) -> Message:
    """The message of a frame whose header was found right."""
    header = frame.header
    return Message(
        header.kind,  # type: ignore[arg-type]  # one of KINDS: ``check_header`` saw to it
        header.scalars,
        frame.tensors[0] if frame.tensors else None,
        coded=header.codec == _CODED,
    )


def check_header(header: FrameHeader) -> None:
    """``WireError`` if it is of no message that a peer sends."""
    if header.kind not in KINDS or len(header.tensors) > 1 or header.stage < 0:
        raise WireError(f"a peer sends {', '.join(KINDS)} (got {header.kind[:40]!r}).")
    if not all(map(math.isfinite, header.scalars.values())):
        raise WireError(f"scalars of a peer are finite numbers (got {header.scalars}).")
