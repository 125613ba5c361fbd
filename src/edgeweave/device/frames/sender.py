"""Code and send frames beside computing: a bounded queue and one thread, owned by ``with``."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

import msgspec

from edgeweave.core.clock import Clock
from edgeweave.core.errors import EdgeweaveError, FleetError
from edgeweave.device.frames.codec import FrameCoding
from edgeweave.device.frames.deflating import Deflating
from edgeweave.device.throttle import Throttle
from edgeweave.net import Frame, Transport

__all__ = ["Ping", "Sender"]


class Sender:
    """Hands frames to a transport in the order they were posted, coded if they are to be.

    Each tells in ``sent`` since when it could have been on its way: since it was posted and coded,
    or since frames to other devices no longer held it up.
    The first error goes to ``on_error`` and ends sending; later posts are dropped. ``post`` blocks
    when the queue is full, for at most ``timeout_seconds``.
    """

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        *,
        capacity: int,
        timeout_seconds: float,
        on_error: Callable[[EdgeweaveError], None],
        throttle: Throttle,
    ) -> None:
        self._throttle = throttle
        self._deflating = Deflating(throttle)
        self._transport = transport
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._on_error = on_error
        self._queue: queue.Queue[_Posted | None] = queue.Queue(capacity)
        self._busy_until: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name="edgeweave-sender")
        self._seconds = 0.0
        self._coding_seconds = 0.0
        self._failed = False

    @property
    def coding_seconds(self) -> float:
        """Time spent coding frames so far."""
        return self._coding_seconds

    @property
    def seconds(self) -> float:
        """Time spent handing frames to the network so far."""
        return self._seconds

    def post(
        self,
        key: str,
        frame: Frame,
        *,
        device: str,
        coding: FrameCoding | None = None,
        ping: Ping | None = None,
    ) -> None:
        """Queue a frame for ``device``, and a ping right before it.

        Its tensors must not change any more.
        """
        posted = _Posted(key, frame, device, self._clock.now(), coding, ping)
        try:
            self._queue.put(posted, timeout=self._timeout_seconds)
        except queue.Full:
            raise FleetError(
                f"the network took nothing for {self._timeout_seconds:.0f} s "
                f"(next: {frame.header.kind} to {device}, {key}). Check the link."
            ) from None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._failed = True  # what is queued need not go out any more: the thread drops it
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (posted := self._queue.get()) is not None:
            if self._failed:
                continue
            started = self._clock.now()
            try:
                if posted.coding is not None:
                    posted = self._coded(posted, posted.coding)
                    started = posted.seconds
                if posted.ping is not None:
                    ping = posted._replace(key=posted.ping.key, frame=posted.ping.frame)
                    self._transport.send(ping.key, self._stamped(ping), device=ping.device)
                self._transport.send(posted.key, self._stamped(posted), device=posted.device)
            except EdgeweaveError as error:
                self._failed = True
                self._on_error(error)
            except Exception as error:  # noqa: BLE001 - a thread's boundary: reported, never lost
                self._failed = True
                failed = FleetError(f"sending failed: {type(error).__name__}: {error}")
                failed.__cause__ = error
                self._on_error(failed)
            ended = self._busy_until[posted.device] = self._clock.now()
            self._seconds += ended - started

    def _coded(self, posted: _Posted, coding: FrameCoding) -> _Posted:
        started = self._clock.now()
        with self._throttle.pace("encode"):
            frame = self._deflating.encoded(posted.frame, coding, device=posted.device)
        ended = self._clock.now()
        self._coding_seconds += ended - started
        return posted._replace(frame=frame, seconds=ended)

    def _stamped(self, posted: _Posted) -> Frame:
        others = (at for device, at in self._busy_until.items() if device != posted.device)
        header = posted.frame.header
        scalars = {**header.scalars, "sent": max((posted.seconds, *others))}
        return Frame(msgspec.structs.replace(header, scalars=scalars), posted.frame.tensors)


class Ping(NamedTuple):
    """A frame of no bytes, and where to."""

    key: str
    frame: Frame


class _Posted(NamedTuple):
    key: str
    frame: Frame
    device: str
    seconds: float
    coding: FrameCoding | None
    ping: Ping | None
