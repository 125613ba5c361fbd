"""Time as an argument: code that waits takes a ``Clock``, so that tests own the time."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "SystemClock", "VirtualClock"]


class Clock(Protocol):
    """A monotonic clock one can sleep on. Seconds, as floats."""

    def now(self) -> float:
        """Seconds since an arbitrary, fixed moment."""

    def sleep(self, seconds: float) -> None:
        """Return after ``seconds``; at once if that is not positive."""


class SystemClock:
    """The monotonic clock of this machine."""

    def now(self) -> float:
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            time.sleep(seconds)


class VirtualClock:
    """A clock that moves only when somebody sleeps on it or advances it.

    >>> clock = VirtualClock()
    >>> clock.sleep(1.5)
    >>> clock.now()
    1.5
    """

    def __init__(self, start_seconds: float = 0.0) -> None:
        self._now = start_seconds

    def now(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += max(seconds, 0.0)
