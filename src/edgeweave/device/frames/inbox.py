"""Frames that arrived and wait to be used. Bounded, and every wait has a deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from edgeweave.core.errors import EdgeweaveError, WireError
from edgeweave.net.frame import Frame

__all__ = ["FrameId", "Inbox", "InboxStatistics"]


class FrameId(NamedTuple):
    """What a receiver waits for. ``sender`` is a stage; -1 is the coordinator."""

    kind: str
    sender: int
    round: int
    microbatch: int


@dataclass(frozen=True, slots=True)
class InboxStatistics:
    """A snapshot of one inbox."""

    waiting: int
    """Frames that arrived and nobody took yet."""
    received: int
    failed: bool
    """Whether the inbox ended by an error, which every wait now raises."""


class Inbox:
    """Matches frames with those who wait for them.

    A sender that overfills the inbox breaks the protocol (schedules bound what is in flight), so
    ``put`` refuses instead of blocking the network's thread. After ``fail`` every wait raises the
    first error given.
    """

    def __init__(self, *, capacity: int) -> None:
        self._capacity = capacity
        self._frames: dict[FrameId, Frame] = {}
        self._changed = threading.Condition()
        self._error: EdgeweaveError | None = None
        self._received = 0

    def put(self, frame: Frame) -> None:
        """Store a frame; ``WireError`` if it came twice or the inbox is full."""
        header = frame.header
        key = FrameId(header.kind, header.stage, header.step, header.microbatch)
        with self._changed:
            if key in self._frames:
                raise WireError(f"frame {key} came twice from {header.device}.")
            if len(self._frames) >= self._capacity:
                raise WireError(
                    f"the inbox is full ({self._capacity} frames) when {key} comes from "
                    f"{header.device}. The sender ignores the schedule."
                )
            self._frames[key] = frame
            self._received += 1
            self._changed.notify_all()

    def wait(
        self, key: FrameId, *, timeout_seconds: float, late: Callable[[FrameId], EdgeweaveError]
    ) -> Frame:
        """Take a frame out, waiting for it; raise ``late(key)`` when the time is over."""
        with self._changed:
            arrived = self._changed.wait_for(
                lambda: key in self._frames or self._error is not None, timeout_seconds
            )
            if self._error is not None:
                raise self._error
            if not arrived:
                raise late(key)
            return self._frames.pop(key)

    def first_of(
        self,
        options: Sequence[Sequence[FrameId]],
        *,
        timeout_seconds: float,
        late: Callable[[FrameId], EdgeweaveError],
    ) -> int:
        """Wait until all frames of one option are here; the first such option. Takes none out.

        When the time is over, raises ``late`` of the first frame that the first option lacks.
        """

        def ready() -> int | None:
            return next(
                (i for i, keys in enumerate(options) if all(k in self._frames for k in keys)), None
            )

        with self._changed:
            self._changed.wait_for(
                lambda: ready() is not None or self._error is not None, timeout_seconds
            )
            if self._error is not None:
                raise self._error
            found = ready()
            if found is None:
                raise late(next(key for key in options[0] if key not in self._frames))
            return found

    def fail(self, error: EdgeweaveError) -> None:
        """Make every wait, now and later, raise ``error``. The first error stays."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    @property
    def error(self) -> EdgeweaveError | None:
        """The first error given to ``fail``, if there was one."""
        return self._error

    def statistics(self) -> InboxStatistics:
        with self._changed:
            return InboxStatistics(len(self._frames), self._received, self._error is not None)
