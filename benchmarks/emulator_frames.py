"""Frames whose arrival is measured: who sends them to whom, and under which keys."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Final

import torch

from benchmarks.children import Child
from edgeweave.core.loss import PACKET_BYTES
from edgeweave.net import (
    Frame,
    FrameHeader,
    Links,
    LinkShape,
    NetSettings,
    Reliability,
    ShapedTransport,
    encode,
    frame_key,
    frame_pattern,
    specs_of,
)
from edgeweave.net.link_model import HEADER_BYTES

__all__ = [
    "LAST",
    "RECEIVER",
    "SENDER",
    "STAGE",
    "Arrival",
    "Line",
    "pattern",
    "settings_of",
    "wire_bytes",
]

SENDER: Final = "sender"
RECEIVER: Final = "receiver"
STAGE: Final = 1
LAST: Final = "last"

_FLEET, _RUN = "default", "emulator"

Arrival = tuple[int, float, float]
"""Number, sent at, arrived at."""


def settings_of(connect: tuple[str, ...] = ()) -> NetSettings:
    return NetSettings(fleet=_FLEET, listen=("tcp/127.0.0.1:0",), connect=connect)


def pattern(stage: int) -> str:
    return frame_pattern(_FLEET, _RUN, 0, stage)


def wire_bytes(frame: Frame) -> int:
    """What a frame takes of a link: itself, and the headers of its packets."""
    encoded = encode(frame)
    size_bytes = len(encoded.header) + sum(len(view) for view in encoded.views)
    return size_bytes + math.ceil(size_bytes / PACKET_BYTES) * HEADER_BYTES


class Line:
    """One way from this process to the receiving one, which can be given any shape."""

    def __init__(self, transport: ShapedTransport, receiver: Child, *, seed: int) -> None:
        self._transport = transport
        self._receiver = receiver
        self._seed = seed
        self._series = 0

    def shape(self, shape: LinkShape) -> None:
        """Be such a link from now on; nothing may be under way."""
        self._transport.reshape(Links.of({(SENDER, RECEIVER): shape}, seed=self._seed))

    def frame(self, number: int, payload_bytes: int) -> Frame:
        tensors = {"x": torch.zeros(payload_bytes, dtype=torch.uint8)} if payload_bytes else {}
        scalars = {"sent": time.monotonic()}
        header = FrameHeader(
            "probe", SENDER, 0, 0, self._series, number, specs_of(tensors), scalars
        )
        return Frame(header, tuple(tensors.values()))

    def arrivals(
        self,
        moments: Iterable[float],
        *,
        payload_bytes: int,
        reliability: Reliability,
        settle_seconds: float,
    ) -> list[Arrival]:
        """Send a frame at each of the moments (seconds from now, or as soon as the link takes it).

        Those that arrived, in the order of their numbers.
        """
        began = time.monotonic()
        for number, moment in enumerate(moments):
            wait_seconds = began + moment - time.monotonic()
            if wait_seconds > 0:
                time.sleep(wait_seconds)
            self._send("probe", self.frame(number, payload_bytes), reliability)
        end = FrameHeader(LAST, SENDER, 0, 0, self._series, 0, ())
        self._send(LAST, Frame(end, ()), Reliability.RELIABLE)
        asked = {"series": self._series, "seconds": settle_seconds}
        self._series += 1
        return sorted(tuple(each) for each in self._receiver.ask(asked)["arrived"])

    def _send(self, kind: str, frame: Frame, reliability: Reliability) -> None:
        key = frame_key(_FLEET, _RUN, 0, STAGE, kind)
        self._transport.send(key, frame, device=RECEIVER, reliability=reliability)
