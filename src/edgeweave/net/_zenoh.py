"""The handles Zenoh gives out, wrapped so that they end when told to, and wait for what runs."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

import zenoh
from zenoh.handlers import Callback

from edgeweave.core.errors import FleetError
from edgeweave.core.units import format_seconds
from edgeweave.net.remote import no_listener_error
from edgeweave.net.transport import Priority, Reliability

__all__ = ["Entity", "Publisher", "Recent", "Server", "close", "drop"]

_K = TypeVar("_K")
_V = TypeVar("_V")

_log = logging.getLogger(__name__)

_PRIORITY = {
    Priority.CONTROL: zenoh.Priority.INTERACTIVE_HIGH,
    Priority.DATA: zenoh.Priority.DATA,
    Priority.BACKGROUND: zenoh.Priority.BACKGROUND,
}


class _Undeclarable(Protocol):
    def undeclare(self) -> object: ...


class _Closable(Protocol):
    def close(self) -> object: ...


class _Droppable(Protocol):
    def drop(self) -> object: ...


def close(session: _Closable) -> None:
    """Close a session. (Zenoh's stubs leave these methods untyped.)"""
    session.close()


def drop(query: _Droppable) -> None:
    """Let a query end without a reply."""
    query.drop()


def _undeclare(entity: _Undeclarable) -> None:
    entity.undeclare()


class Recent(Generic[_K, _V]):
    """The most recently used of what was made per key. Safe from several threads.

    One that is displaced is not closed, as another thread may be using it: Zenoh ends it when its
    last user lets go.
    """

    def __init__(self, make: Callable[[_K], _V], most: int) -> None:
        self._make = make
        self._most = most
        self._lock = threading.Lock()
        self._made: OrderedDict[_K, _V] = OrderedDict()

    def get(self, key: _K) -> _V:
        """What belongs to ``key``, made now if it is not there."""
        with self._lock:
            if key not in self._made:
                self._made[key] = self._make(key)
            self._made.move_to_end(key)
            if len(self._made) > self._most:
                self._made.popitem(last=False)
            return self._made[key]

    def take_all(self) -> list[_V]:
        """Everything, which is forgotten here."""
        with self._lock:
            made = list(self._made.values())
            self._made.clear()
        return made


class Entity:
    """A declared subscriber, queryable or token, and the thread its callback runs on."""

    def __init__(
        self,
        key: str,
        *,
        stop_seconds: float,
        on_closed: Callable[[Entity], None],
    ) -> None:
        self._key = key
        self._stop_seconds = stop_seconds
        self._on_closed = on_closed
        self._entity: _Undeclarable | None = None
        self._closed = threading.Event()
        self._drained = threading.Event()
        self._thread_id: int | None = None

    def declare(
        self, declare: Callable[..., _Undeclarable], on_message: Callable[[Any], None]
    ) -> None:
        """Declare with a callback that ends with this object."""

        def call(message: Any) -> None:
            self._thread_id = threading.get_ident()
            if not self._closed.is_set():
                on_message(message)
            elif isinstance(message, zenoh.Query):
                drop(message)

        self._entity = declare(self._key, Callback(call, self._drained.set, indirect=True))

    def declare_token(self, declare: Callable[[str], _Undeclarable]) -> None:
        """Declare something without a callback."""
        self._drained.set()
        self._entity = declare(self._key)

    def close(self) -> None:
        """Undeclare, and wait for a callback that is running, unless this is called from it."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._on_closed(self)
        if self._entity is not None:
            _undeclare(self._entity)
        if threading.get_ident() == self._thread_id:
            return
        if not self._drained.wait(self._stop_seconds):
            _log.warning(
                "a callback of %s still runs after %s",
                self._key,
                format_seconds(self._stop_seconds),
            )


class Matching:
    """Whether anybody is there for what a publisher or querier says, kept up to date by Zenoh."""

    def __init__(self, entity: zenoh.Publisher | zenoh.Querier) -> None:
        self._changed = threading.Condition()
        self._matched = False
        self._ever_matched = False
        # Directly on Zenoh's thread: it is short, and a thread per key would not be.
        self._listener: _Undeclarable = entity.declare_matching_listener(
            Callback(self._on_matching, indirect=False)
        )
        # The stub says bool; what comes is an object with one.
        status: Any = entity.matching_status
        if status.matching:
            self._on_matching(status)

    def wait(self, first_seconds: float) -> float | None:
        """None if somebody is there, else how long this waited for that.

        It waits ``first_seconds`` for the first one ever, and not at all for one to come back.
        """
        if self._matched:
            return None
        with self._changed:
            wait_seconds = 0.0 if self._ever_matched else first_seconds
            if self._changed.wait_for(lambda: self._matched, wait_seconds):
                return None
            return wait_seconds

    def close(self) -> None:
        _undeclare(self._listener)

    def _on_matching(self, status: zenoh.MatchingStatus) -> None:
        with self._changed:
            self._matched = status.matching
            self._ever_matched = self._ever_matched or status.matching
            self._changed.notify_all()


class Publisher:
    """Puts the pieces of frames under one key, at one priority and reliability."""

    def __init__(
        self, session: zenoh.Session, key: str, priority: Priority, reliability: Reliability
    ) -> None:
        self._key = key
        self._one_frame = threading.Lock()
        # Zenoh drops what is best effort a millisecond after its queue is full, whatever the
        # congestion control. A burst, which is in pieces here, is therefore none of it.
        reliable = reliability is not Reliability.LOSS_TOLERANT
        self._publisher = session.declare_publisher(
            key,
            congestion_control=zenoh.CongestionControl.BLOCK,
            priority=_PRIORITY[priority],
            reliability=(zenoh.Reliability.RELIABLE if reliable else zenoh.Reliability.BEST_EFFORT),
            express=True,
        )
        self._matching = Matching(self._publisher)

    def wait_for_listener(self, device: str, first_seconds: float) -> None:
        """Return when somebody listens; see ``Transport.wait_for_listener``."""
        waited_seconds = self._matching.wait(first_seconds)
        if waited_seconds is not None:
            raise no_listener_error(device, self._key, waited_seconds)

    def put(
        self, pieces: Iterable[tuple[bytes, bytes]], device: str, timeout_seconds: float
    ) -> None:
        """Put the pieces of one frame, after those of the frame before."""
        with self._one_frame:
            self.wait_for_listener(device, timeout_seconds)
            for attachment, chunk in pieces:
                started = time.monotonic()
                self._publisher.put(chunk, attachment=attachment)
                if time.monotonic() - started >= timeout_seconds:
                    raise FleetError(
                        f"the link to {device!r} took nothing of {self._key} for "
                        f"{format_seconds(timeout_seconds)} and was closed. "
                        "Its receiver is too slow or stuck: look into its log."
                    )

    def close(self) -> None:
        self._matching.close()
        _undeclare(self._publisher)


class Server:
    """Whoever serves a key, as far as this session knows."""

    def __init__(self, session: zenoh.Session, key: str) -> None:
        self._querier = session.declare_querier(key)
        self._matching = Matching(self._querier)

    def is_there(self, first_seconds: float) -> bool:
        """Whether somebody serves; waits only for the first one ever."""
        return self._matching.wait(first_seconds) is None

    def close(self) -> None:
        self._matching.close()
        _undeclare(self._querier)
