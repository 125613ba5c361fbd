"""One stage that listens, and a stranger who sends it anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edgeweave.core.clock import SystemClock
from edgeweave.core.errors import EdgeweaveError
from edgeweave.core.timeouts import Timeouts
from edgeweave.device.stages.exchange import StageExchange
from edgeweave.device.throttle import Throttle
from edgeweave.net import Frame, MemoryFabric, Transport, frame_key
from edgeweave.net._ears import Role
from tests.device.stages.examples import LONG, assignment, mlp_stages


class Side:
    """Stage 1 of 3 on one side, and a stranger who sends it anything."""

    def __init__(self, fabric: MemoryFabric) -> None:
        self.fabric = fabric
        self.stranger: Transport = fabric.join("stranger")
        self.exchange = StageExchange(
            assignment(1),
            mlp_stages()[1],
            fabric.join("pi-b"),
            fleet="default",
            clock=SystemClock(),
            timeouts=Timeouts(frame=LONG, send=1.0),
            throttle=Throttle(None, SystemClock()),
        )

    def send(self, sent: Frame, *, stage: int = 1) -> None:
        self.stranger.send(
            frame_key("default", "run-1", 0, stage, sent.header.kind), sent, device="pi-b"
        )

    def send_raw(self, attachment: bytes, chunk: bytes) -> None:
        """A piece that no honest sender makes."""
        for ear in self.fabric.hearing(Role.FRAMES, frame_key("default", "run-1", 0, 1, "begin")):
            self.fabric.post(ear, [(attachment, chunk)])

    def refusal(self) -> EdgeweaveError:
        """Why the stage no longer works."""
        with pytest.raises(EdgeweaveError) as refused:
            self.exchange.wait("gradient", 2, 99, 99)
        return refused.value


@contextmanager
def listening_side() -> Iterator[Side]:
    """A side whose stage listens."""
    with MemoryFabric(timeouts=Timeouts(send=1.0)) as fabric:
        made = Side(fabric)
        with made.exchange:
            yield made
