"""What a small message takes of the device at one end: laying it out, and changing threads.

Sending is on a thread for each receiver, and receiving on the network's: a message is handed from
the computing thread to another one and back. The network between is left out.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from statistics import median
from typing import Final

import torch

from edgeweave.device.frames.outbox import Outbox
from edgeweave.net import Frame, FrameHeader, decode, encode, specs_of

__all__ = ["handling_seconds"]

_SAMPLES: Final = 32
_DEADLINE_SECONDS: Final = 10.0


def handling_seconds(now: Callable[[], float]) -> float:
    """The median over some messages, by the clock ``now``."""
    tensors = {"row": torch.zeros(1, dtype=torch.int32), "x": torch.zeros(1, 256)}
    frame = Frame(
        FrameHeader("values", "a", 0, 0, 0, 0, specs_of(tensors)), tuple(tensors.values())
    )
    arrived: queue.SimpleQueue[Frame] = queue.SimpleQueue()

    def hand_over() -> None:
        laid_out = encode(frame)
        decode(frame.header, b"".join(laid_out.views))
        arrived.put(frame)

    taken = []
    with Outbox("itself", stop_seconds=_DEADLINE_SECONDS) as outbox:
        for _ in range(_SAMPLES):
            started = now()
            outbox.post(hand_over)
            arrived.get(timeout=_DEADLINE_SECONDS)
            taken.append(now() - started)
    return median(taken)
