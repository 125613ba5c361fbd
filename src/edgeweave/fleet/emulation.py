"""Makes a local fleet be as a script's ``World`` says: signals to processes, ``Emulate`` to agents.

A device that is dead, stands still or is being started cannot be told anything; it is told when it
goes on, or has come.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from edgeweave.core.errors import EdgeweaveError
from edgeweave.device import Emulate
from edgeweave.fleet.chaos import World
from edgeweave.net import Links

__all__ = ["Emulation"]

_log = logging.getLogger(__name__)


class Emulation:
    """The hands of a script. ``world`` is how the fleet was started.

    ``send_signal(device, number)`` raises ``ProcessLookupError`` if the process has gone;
    ``tell(device, message)`` has a deadline of its own, and past it raises ``EdgeweaveError``,
    which is logged: that device is told the next time something changes. ``reshape`` changes the
    coordinator's own links, or all of them if ``tells_links`` is False. ``start(device, speed,
    links)`` starts the process of one that was killed, and does not wait until it is there.
    """

    def __init__(
        self,
        world: World,
        *,
        send_signal: Callable[[str, int], None],
        start: Callable[[str, float, Links | None], None],
        tell: Callable[[str, Emulate], None],
        reshape: Callable[[Links], None],
        tells_links: bool = True,
    ) -> None:
        self._send_signal = send_signal
        self._start = start
        self._tell = tell
        self._reshape = reshape
        self._tells_links = tells_links
        self._lock = threading.Lock()
        links = self._links_told(world)
        self._told = {device: (speed, links) for device, speed in world.speeds.items()}
        self._coming: set[str] = set()
        """Started again, and not there yet."""
        self._world = world

    def change(self, before: World, after: World) -> None:
        """Go from one world to the next."""
        with self._lock:
            self._world = after
            for device in sorted(after.killed - before.killed):
                self._signal(device, signal.SIGKILL)
                self._coming.discard(device)
            for device in sorted(before.killed - after.killed):
                self._begin_again(device)
            for device in sorted(_still(after) - _still(before)):
                self._signal(device, signal.SIGSTOP)
            for device in sorted(_still(before) - after.stopped - after.killed):
                self._signal(device, signal.SIGCONT)
            if after.links != before.links:
                self._reshape(after.links)
            self._tell_all(after.speeds.keys())

    def came(self, device: str) -> None:
        """A device is there: if it was started again, tell it what has changed meanwhile."""
        with self._lock:
            if device in self._coming:
                self._coming.discard(device)
                self._tell_all([device])

    def release(self, world: World) -> None:
        """Let those that stand still go on, so that they can end."""
        with self._lock:
            for device in sorted(_still(world)):
                self._signal(device, signal.SIGCONT)

    def _begin_again(self, device: str) -> None:
        speed, links = self._world.speeds[device], self._links_told(self._world)
        self._start(device, speed, links)
        self._told[device] = speed, links
        self._coming.add(device)

    def _tell_all(self, devices: Iterable[str]) -> None:
        """Those of them that can be told, and do not know yet."""
        world = self._world
        able = sorted({*devices} - world.killed - world.stopped - self._coming)
        wanted = {d: (world.speeds[d], self._links_told(world)) for d in able}
        news = [device for device in able if wanted[device] != self._told[device]]
        if not news:
            return
        with ThreadPoolExecutor(max_workers=len(news)) as pool:
            heard = pool.map(lambda device: self._told_to(device, *wanted[device]), news)
            for device, has_heard in zip(news, heard, strict=True):
                if has_heard:
                    self._told[device] = wanted[device]

    def _links_told(self, world: World) -> Links | None:
        return world.links if self._tells_links else None

    def _told_to(self, device: str, speed: float, links: Links | None) -> bool:
        old_speed, old_links = self._told[device]
        message = Emulate(
            speed=None if speed == old_speed else speed,
            links=None if links == old_links else links,
        )
        try:
            self._tell(device, message)
        except EdgeweaveError as error:
            _log.warning("%s was not told of the chaos: %s", device, error)
            return False
        return True

    def _signal(self, device: str, number: int) -> None:
        try:
            self._send_signal(device, number)
        except ProcessLookupError:
            _log.warning("%s: signal %d came too late, its process has gone", device, number)


def _still(world: World) -> frozenset[str]:
    """The processes that are stopped."""
    return world.stopped - world.killed
