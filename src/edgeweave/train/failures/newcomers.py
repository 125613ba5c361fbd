"""Devices that come, or come back, while a run goes on: measured beside it, then told of."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from edgeweave.core.errors import EdgeweaveError
from edgeweave.fleet import Fleet
from edgeweave.net import Subscription, check_hello, hello_of
from edgeweave.plan import DeviceCosts, Link

__all__ = ["Newcomer", "Newcomers"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A device that may take part from now on. Without ``costs`` nothing is known of any device."""

    device: str
    costs: DeviceCosts | None = None
    links: Mapping[tuple[str, str], Link] = field(default_factory=dict)


class Newcomers:
    """Watches a fleet for those that are not ``known`` or were lost. Owned by ``with``.

    ``measure(device)`` may take long: it runs on a thread of its own, one device at a time.
    """

    def __init__(
        self, fleet: Fleet, known: Collection[str], measure: Callable[[str], Newcomer]
    ) -> None:
        self._fleet = fleet
        self._here = set(known)
        self._measure = measure
        self._changing = threading.Lock()
        self._waiting: dict[str, Future[Newcomer]] = {}
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="edgeweave-newcomers")
        self._watch: Subscription | None = None

    def __enter__(self) -> Self:
        self._watch = self._fleet.watch(self._gone, self._came)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._watch is not None:
            self._watch.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def ready(self) -> list[Newcomer]:
        """Those that came and are measured; each is told of once."""
        with self._changing:
            done = {device: f for device, f in self._waiting.items() if f.done()}
            for device in done:
                del self._waiting[device]
        found = []
        for device, future in done.items():
            try:
                found.append(future.result())
            except EdgeweaveError as error:
                _log.warning("%s came and cannot take part: %s", device, error)
        return found

    def _came(self, device: str) -> None:
        with self._changing:
            if device in self._here:
                return
            self._here.add(device)
            self._waiting[device] = self._pool.submit(self._met, device)
        _log.info("%s is there", device)

    def _gone(self, device: str) -> None:
        with self._changing:
            self._here.discard(device)
            self._waiting.pop(device, None)

    def _met(self, device: str) -> Newcomer:
        check_hello(hello_of(self._fleet.transport.name), self._fleet.greet(device).hello)
        return self._measure(device)
