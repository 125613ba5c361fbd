"""Liveliness over emulated links: a token is not seen while nothing passes between its device and
this one. Both directions count, because a link on which nothing is acknowledged is closed.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections.abc import Callable

from edgeweave.core.errors import ConfigError
from edgeweave.core.units import format_seconds
from edgeweave.net.keys import device_of
from edgeweave.net.link import Links, link_name

__all__ = ["Silences", "Watch"]

_log = logging.getLogger(__name__)


class Silences:
    """Since when nothing passes between this device and each other. For callers under one lock."""

    def __init__(self, name: str, links: Links, *, now: float, lease_seconds: float) -> None:
        self._name = link_name(name)
        self._lease_seconds = lease_seconds
        self._since: dict[str, float] = {}
        self.reshape(links, now)

    def reshape(self, links: Links, now: float) -> None:
        """From now on the links are these."""
        self._links = links
        self._reshaped_at = now
        named = {name for source, target, _ in links.pairs for name in (source, target)}
        for device in named | self._since.keys():
            if self._is_down(device):
                self._since.setdefault(device, now)
            else:
                self._since.pop(device, None)

    def gone_at(self, key: str) -> float | None:
        """When a token is held for gone because of silence; None while its device is heard."""
        try:
            device = link_name(device_of(key))
        except ConfigError:
            return None  # a token that belongs to no device
        if not self._is_down(device):
            return None
        return self._since.setdefault(device, self._reshaped_at) + self._lease_seconds

    def _is_down(self, device: str) -> bool:
        there, back = (self._name, device), (device, self._name)
        return not (self._links.shape(*there).up and self._links.shape(*back).up)


class Watch:
    """One watcher: what the fabric knows of tokens goes in, what this device would know comes out.

    ``on_change`` runs on a thread of its own, or in ``drain`` if there is none. Everything but
    ``drain`` and ``close`` is called under one lock.
    """

    def __init__(
        self, on_change: Callable[[str, bool], None], silences: Silences, *, threaded: bool
    ) -> None:
        self._on_change = on_change
        self._silences = silences
        self._there: dict[str, bool] = {}
        self._told: set[str] = set()
        self._news: queue.SimpleQueue[tuple[str, bool] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        if threaded:
            self._thread = threading.Thread(target=self._run, name="edgeweave-watch")
            self._thread.start()

    def take(self, key: str, *, alive: bool) -> None:
        """What the fabric says of a token."""
        self._there[key] = alive

    def look(self, now: float) -> float:
        """Make news of what changed by now; when to look again (never: infinite)."""
        next_at = math.inf
        for key, alive in tuple(self._there.items()):
            gone_at = self._silences.gone_at(key)
            if gone_at is not None and now < gone_at:
                next_at = min(next_at, gone_at)
                continue
            seen = alive and gone_at is None
            if seen != (key in self._told):
                (self._told.add if seen else self._told.discard)(key)
                self._news.put((key, seen))
            if not alive:
                del self._there[key]
        return next_at

    def drain(self) -> int:
        """Tell the news there is, on this thread; how many."""
        n_told = 0
        while not self._news.empty():
            n_told += 1
            self._tell(self._news.get())
        return n_told

    def close(self, stop_seconds: float) -> None:
        """End it, and wait for a callback that is running, unless this is called from it."""
        self._closed.set()
        self._news.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(stop_seconds)
            if self._thread.is_alive():
                _log.warning(
                    "a watcher's callback still runs %s after its watch was closed: %r",
                    format_seconds(stop_seconds),
                    self._on_change,
                )

    def _run(self) -> None:
        while (news := self._news.get()) is not None:
            self._tell(news)

    def _tell(self, news: tuple[str, bool] | None) -> None:
        if news is not None and not self._closed.is_set():
            self._on_change(*news)
