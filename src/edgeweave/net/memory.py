"""A fabric inside one process, for tests: the contract of the network without sockets.

Frames take the whole path of real ones (encode, split, assemble, check). Delivery is in order, on
one dispatcher thread or, with ``caller_driven``, whenever the test calls ``deliver``. Each request
runs its handler on a thread of its own, one at a time per served key. Tests break things on purpose
with ``kill``, ``drop`` and ``mend``.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from edgeweave.core.errors import FleetError
from edgeweave.core.timeouts import Timeouts
from edgeweave.net._ears import Ear, Role
from edgeweave.net.keys import check_device_name, check_name
from edgeweave.net.memory_transport import MemoryTransport

__all__ = ["MemoryFabric"]


class MemoryFabric:
    """The place where the transports of one fleet meet; it owns its threads until ``close``.

    >>> with MemoryFabric() as fabric:
    ...     a, b = fabric.join("a"), fabric.join("b")
    ...     served = a.serve("ew/default/a/echo", lambda data: data[::-1])
    ...     b.request("ew/default/a/echo", b"abc", device="a", timeout_seconds=5)
    b'cba'
    """

    def __init__(
        self,
        fleet: str = "default",
        *,
        timeouts: Timeouts | None = None,
        caller_driven: bool = False,
    ) -> None:
        self.fleet = check_name(fleet, "fleet name")
        self.timeouts = timeouts or Timeouts()
        self.changed = threading.Condition(threading.RLock())
        self._transports: dict[str, MemoryTransport] = {}
        self._ears: list[Ear] = []
        self._dropped: set[tuple[str, str]] = set()
        self._workers: set[threading.Thread] = set()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._dispatcher: threading.Thread | None = None
        if not caller_driven:
            self._dispatcher = threading.Thread(target=self._dispatch, name="memory-fabric")
            self._dispatcher.start()

    def join(self, name: str) -> MemoryTransport:
        """A transport for a device of this name; ``FleetError`` if the name is taken."""
        transport = MemoryTransport(check_device_name(name), self)
        with self.changed:
            if name in self._transports:
                raise FleetError(
                    f"device names are unique on a fabric ({name!r} is taken). Choose another."
                )
            self._transports[name] = transport
        return transport

    def deliver(self) -> int:
        """Deliver what waits, on this thread; how many deliveries that took."""
        for n_jobs in itertools.count():
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return n_jobs
            if job is not None:
                job()
        raise AssertionError("counting does not end")

    def kill(self, name: str) -> None:
        """End a device as ``kill -9`` does: tokens vanish, requests to it fail, nobody hears it."""
        with self.changed:
            transport = self._transports.get(name)
        if transport is None:
            raise FleetError(f"no device {name!r} is on the fabric. Join it first.")
        self.leave(transport, wait=False)

    def drop(self, source: str, target: str) -> None:
        """Lose every message from ``source`` to ``target``; liveliness does not notice."""
        with self.changed:
            self._dropped.add((source, target))

    def mend(self, source: str, target: str) -> None:
        """Undo ``drop``; what was lost stays lost."""
        with self.changed:
            self._dropped.discard((source, target))

    def close(self) -> None:
        """Close every transport and end the threads. Closing twice is harmless."""
        with self.changed:
            transports = list(self._transports.values())
        for transport in transports:
            self.leave(transport)
        dispatcher, self._dispatcher = self._dispatcher, None
        if dispatcher is not None:
            self._jobs.put(None)
            dispatcher.join(self.timeouts.stop)
        with self.changed:
            workers = list(self._workers)
        for worker in workers:
            worker.join(self.timeouts.stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # What transports use.

    def add(self, ear: Ear) -> Ear:
        """Let an ear hear; tokens become news, and a watcher is told of the tokens there are."""
        with self.changed:
            self._ears.append(ear)
            ear.on_close = self.remove
            if ear.role is Role.TOKEN:
                self._tell_watchers(ear.key, alive=True)
            if ear.role is Role.NEWS:
                for key in self.keys_of_tokens(ear.key):
                    self.post(ear, key, True)
            self.changed.notify_all()
        return ear

    def remove(self, ear: Ear, *, wait: bool = True) -> None:
        """Take an ear away, and wait until its callback is not running (unless it asks itself)."""
        with self.changed:
            if ear.closed:
                return
            ear.closed = True
            self._ears.remove(ear)
            if ear.role is Role.TOKEN and ear.key not in self.keys_of_tokens(ear.key):
                self._tell_watchers(ear.key, alive=False)
            self.changed.notify_all()
        if wait and ear.calling.acquire(timeout=self.timeouts.stop):
            ear.calling.release()

    def leave(self, transport: MemoryTransport, *, wait: bool = True) -> None:
        """Take a transport and all its ears away."""
        with self.changed:
            if self._transports.get(transport.name) is not transport:
                return
            del self._transports[transport.name]
            transport.gone = True
            ears = [ear for ear in self._ears if ear.owner == transport.name]
            self.changed.notify_all()
        for ear in ears:
            self.remove(ear, wait=wait)

    def hearing(self, role: Role, key: str) -> list[Ear]:
        """The ears of a role that hear a key."""
        with self.changed:
            return [ear for ear in self._ears if ear.role is role and ear.hears(key)]

    def keys_of_tokens(self, pattern: str) -> list[str]:
        """The keys of tokens that match a pattern, sorted."""
        return sorted({ear.key for ear in self.hearing(Role.TOKEN, pattern)})

    def is_dropped(self, source: str, target: str) -> bool:
        """Whether messages from ``source`` to ``target`` are lost."""
        with self.changed:
            return (source, target) in self._dropped

    def post(self, ear: Ear, *arguments: object) -> None:
        """Call an ear later, in order with everything else."""
        self._jobs.put(lambda: self._call(ear, *arguments))

    def work(self, job: Callable[[], None]) -> None:
        """Run a request's handler on a thread of its own."""

        def run() -> None:
            try:
                job()
            finally:
                with self.changed:
                    self._workers.discard(threading.current_thread())

        worker = threading.Thread(target=run, name="memory-fabric-request")
        with self.changed:
            self._workers.add(worker)
            worker.start()  # or else ``close`` may join one that has not begun

    def _call(self, ear: Ear, *arguments: object) -> None:
        with ear.calling:
            if not ear.closed:
                ear.call(*arguments)

    def _tell_watchers(self, key: str, *, alive: bool) -> None:
        for ear in self.hearing(Role.NEWS, key):
            self.post(ear, key, alive)

    def _dispatch(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
