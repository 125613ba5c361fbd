"""Devices that are left out for a while because they failed: each failure twice as long."""

from __future__ import annotations

from edgeweave.core.clock import Clock
from edgeweave.core.errors import EdgeweaveError

__all__ = ["Absences"]

_MOST_SECONDS = 60.0


class Absences:
    """Who is out, and when to ask it again. Not safe from several threads."""

    def __init__(self, clock: Clock, first_seconds: float) -> None:
        self._clock = clock
        self._first_seconds = first_seconds
        self._until: dict[str, float] = {}
        self._seconds: dict[str, float] = {}
        self.last_error: EdgeweaveError | None = None

    def note(self, device: str, error: EdgeweaveError) -> None:
        """It failed, and is out."""
        self.last_error = error
        self.wait_longer(device)

    def wait_longer(self, device: str) -> None:
        """It is still not to be had."""
        known = self._seconds.get(device)
        seconds = self._first_seconds if known is None else min(2 * known, _MOST_SECONDS)
        self._seconds[device] = seconds
        self._until[device] = self._clock.now() + seconds

    def is_out(self, device: str) -> bool:
        return device in self._until

    def due(self) -> list[str]:
        """Those to be asked again now."""
        now = self._clock.now()
        return sorted(device for device, until in self._until.items() if until <= now)

    def end(self, device: str) -> None:
        """It is back; what it did is remembered in case it fails again."""
        self._until.pop(device, None)

    def forget(self, device: str) -> None:
        """Its process ended: one that comes under its name is another."""
        self._until.pop(device, None)
        self._seconds.pop(device, None)
