"""Hold a device to a fraction of one host core, by sleeping after each piece of work.

What counts is the speed asked for in *throughput*: work right after a sleep costs 10 to 30 % more
CPU than in a busy loop (cold caches, clock), so sleeping in proportion to the CPU time of that very
piece would make the device slower than asked. Pieces that recur (a stage's forward, its backward)
are therefore rehearsed at full speed, and later paced to ``rehearsed CPU seconds / speed`` of wall
time. What was never rehearsed sleeps in proportion to its own CPU time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median

from edgeweave.core.clock import Clock
from edgeweave.core.errors import ConfigError

__all__ = ["Throttle"]

_MOST_DEBT_SECONDS = 0.05


class Throttle:
    """Paces work on one thread. ``speed=None`` is a real device: nothing is held back."""

    def __init__(
        self,
        speed: float | None,
        clock: Clock,
        *,
        cpu_seconds: Callable[[], float] = time.thread_time,
    ) -> None:
        self._speeds = [None if speed is None else _checked(speed)]
        self._clock = clock
        self._cpu_seconds = cpu_seconds
        self._rehearsed: dict[Hashable, float] = {}
        self._debt = 0.0

    @property
    def speed(self) -> float | None:
        return self._speeds[0]

    def on_another_thread(self) -> Throttle:
        """One for work beside this one's: as if the device had another core, as fast as this."""
        other = Throttle(None, self._clock, cpu_seconds=self._cpu_seconds)
        other._speeds = self._speeds
        return other

    def change_speed(self, speed: float) -> None:
        """Be slower or faster from the next piece of work on; ``ConfigError`` on a real device."""
        if self.speed is None:
            raise ConfigError(
                f"only an emulated device changes its speed (asked for {speed}). "
                "Start it with a speed."
            )
        self._speeds[0] = _checked(speed)

    def stopwatch(self) -> Callable[[], float]:
        """What durations are read from: CPU seconds where emulated, wall seconds where real."""
        return self._cpu_seconds if self.speed is not None else self._clock.now

    def slowed(self, seconds: float) -> float:
        """How long this device takes for what takes ``seconds`` at full speed."""
        return seconds / (self.speed or 1.0)

    def rehearse(self, key: Hashable, samples: Sequence[float]) -> None:
        """Remember what a piece of work costs at full speed: the median of the samples."""
        self._rehearsed[key] = median(samples)

    def hold(self, key: Hashable, seconds: float) -> None:
        """Let a piece of work take ``seconds`` of this device's time from now on."""
        self._rehearsed[key] = seconds * (self.speed or 1.0)

    @contextmanager
    def pace(self, key: Hashable) -> Iterator[None]:
        """Stretch the work done inside to what this device would take."""
        speed = self.speed
        if speed is None:
            yield
            return
        started, cpu_started = self._clock.now(), self._cpu_seconds()
        yield
        cost = self._rehearsed.get(key)
        if cost is None:
            cost = self._cpu_seconds() - cpu_started
        target = cost / speed - self._debt
        self._clock.sleep(target - (self._clock.now() - started))
        late = self._clock.now() - started - target
        self._debt = min(max(late, 0.0), _MOST_DEBT_SECONDS)


def _checked(speed: float) -> float:
    if not 0 < speed <= 1:
        raise ConfigError(
            f"speed is a fraction of one core, above 0 and at most 1 (got {speed}). "
            "Emulate a faster device on a faster host."
        )
    return speed
