"""Sending to one neighbour, beside everything else: a bounded queue and a thread of its own.

A neighbour that is slow, or gone, delays and fails for itself alone: what cannot be sent is dropped
and said in the log, because liveliness and deadlines tell a peer what to do about it.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from edgeweave.core.errors import EdgeweaveError

__all__ = ["Outbox", "Outboxes"]

_log = logging.getLogger(__name__)

_CAPACITY = 32


class Outbox:
    """Does what is posted, one after the other."""

    def __init__(self, neighbour: str, *, stop_seconds: float, capacity: int = _CAPACITY) -> None:
        self._neighbour = neighbour
        self._stop_seconds = stop_seconds
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(capacity)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"edgeweave-to-{neighbour}")

    def post(self, work: Callable[[], None]) -> None:
        """Do it later. Dropped if too much is waiting already."""
        try:
            self._queue.put_nowait(work)
        except queue.Full:
            _log.warning("%s takes nothing any more: a message to it is dropped", self._neighbour)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped.set()
        try:
            self._queue.put(None, timeout=self._stop_seconds)
        except queue.Full:
            _log.warning("%s has not taken a message before the end", self._neighbour)
        self._thread.join()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            if self._stopped.is_set():
                return
            try:
                work()
            except EdgeweaveError as error:
                _log.info("%s could not be told: %s", self._neighbour, error)
            except Exception:  # noqa: BLE001 - a thread's boundary: said in the log
                _log.exception("sending to %s failed", self._neighbour)


class Outboxes:
    """One for each neighbour that something was sent to, from its first message to ``close``."""

    def __init__(self, *, stop_seconds: float, capacity: int = _CAPACITY) -> None:
        """``capacity`` of each, in messages."""
        self._stop_seconds = stop_seconds
        self._capacity = capacity
        self._opening = threading.Lock()
        self._opened: dict[str, Outbox] = {}

    def to(self, neighbour: str) -> Outbox:
        """The outbox of a neighbour."""
        with self._opening:
            found = self._opened.get(neighbour)
            if found is None:
                found = Outbox(neighbour, stop_seconds=self._stop_seconds, capacity=self._capacity)
                self._opened[neighbour] = found.__enter__()
            return found

    def close(self) -> None:
        """End all of them."""
        for outbox in self._opened.values():
            outbox.__exit__(None, None, None)
