"""Lets a ``Chaos`` happen: on steps when it is told of them, on seconds by a thread of its own.

    step_begins(7) --+                      +--> log: what, at which step, after how many seconds
                     +--> Course --> World -+
    the clock -------+                      +--> change(before, after)

A moment's world is the first one with all acts under way applied in order, so undoing an act never
brings back what another one changed. Knows no process and no network.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from types import TracebackType
from typing import Self

from edgeweave.core.clock import Clock
from edgeweave.core.errors import FleetError
from edgeweave.fleet.chaos import Chaos, ChaosEvent, World

__all__ = ["ChaosRecord", "ChaosRunner", "Course"]

_log = logging.getLogger(__name__)

_JOIN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class ChaosRecord:
    """What happened. ``step``: about to begin, or for an event on seconds the one under way."""

    what: str
    step: int
    seconds: float
    """Since the first step began."""


@dataclass(frozen=True, slots=True)
class _Active:
    event: ChaosEvent
    until_step: int | None
    until_seconds: float | None


class Course:
    """Which acts of a script are under way. Time comes in as arguments.

    Moves are iterators: with each record ``world`` has changed by that record alone.
    """

    def __init__(self, chaos: Chaos, world: World) -> None:
        self._first = world
        self._pending = list(chaos.events)
        self._active: list[_Active] = []
        self._step = 0

    @property
    def world(self) -> World:
        """With all acts under way."""
        world = self._first
        for active in self._active:
            world = active.event.act.act_on(world)
        return world

    def step_begins(self, step: int, seconds: float) -> Iterator[ChaosRecord]:
        """What happens before this step; first what ends with the step before it."""
        self._step = step
        for active in list(self._active):
            if active.until_step is not None and active.until_step <= step:
                yield self._end(active, seconds)
        for event in list(self._pending):
            if event.at_step == step:
                yield self._begin(event, seconds, seconds)

    def reach(self, seconds: float) -> Iterator[ChaosRecord]:
        """What happens on the clock until now, in the order of its times."""
        while (due := self._due()) is not None and due[0] <= seconds:
            at_seconds, what = due
            if isinstance(what, _Active):
                yield self._end(what, seconds)
            else:
                yield self._begin(what, at_seconds, seconds)

    def next_seconds(self) -> float | None:
        """When something happens on the clock next, if anything does."""
        due = self._due()
        return None if due is None else due[0]

    def _due(self) -> tuple[float, _Active | ChaosEvent] | None:
        due: list[tuple[float, _Active | ChaosEvent]] = []
        due += [(a.until_seconds, a) for a in self._active if a.until_seconds is not None]
        due += [(e.at_seconds, e) for e in self._pending if e.at_seconds is not None]
        return min(due, key=lambda pair: pair[0], default=None)

    def _begin(self, event: ChaosEvent, at_seconds: float, seconds: float) -> ChaosRecord:
        self._pending.remove(event)
        until_step = None if event.for_steps is None else self._step + event.for_steps
        until_seconds = None if event.for_seconds is None else at_seconds + event.for_seconds
        self._active.append(_Active(event, until_step, until_seconds))
        return ChaosRecord(str(event.act), self._step, seconds)

    def _end(self, active: _Active, seconds: float) -> ChaosRecord:
        self._active.remove(active)
        return ChaosRecord(f"end of {active.event.act}", self._step, seconds)


class ChaosRunner:
    """Owns the thread of a script. ``change(before, after)`` makes a fleet be as a world says.

    ``change`` is called for one change at a time, on the thread that brought it about, and for what
    begins and ends between two looks at the clock too. If it fails on the thread of the script, the
    script goes no further, and the next step, or else leaving, raises ``FleetError``.
    """

    def __init__(
        self, chaos: Chaos, world: World, change: Callable[[World, World], None], clock: Clock
    ) -> None:
        self._course = Course(chaos, world)
        self._change = change
        self._clock = clock
        self._is_timed = any(e.at_seconds is not None or e.for_seconds for e in chaos.events)
        self._news = threading.Condition()
        self._started: float | None = None
        self._closing = False
        self._failure: Exception | None = None
        self._failure_told = False
        self._log: list[ChaosRecord] = []
        self._thread = threading.Thread(target=self._serve, name="chaos")

    def __enter__(self) -> Self:
        if self._is_timed:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._news:
            self._closing = True
            self._news.notify_all()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_SECONDS)
            if self._thread.is_alive():
                _log.error("the chaos thread did not end within %.0f s", _JOIN_SECONDS)
        # A fleet closes its stack without handing on the error of its block.
        if error is None and sys.exception() is None and not self._failure_told:
            self._check()

    @property
    def log(self) -> tuple[ChaosRecord, ...]:
        """What has happened so far, in order."""
        with self._news:
            return tuple(self._log)

    @property
    def world(self) -> World:
        """How the fleet is meant to be now."""
        with self._news:
            return self._course.world

    def step_begins(self, step: int) -> None:
        """Let what is due before this step happen. Returns when the living devices know."""
        with self._news:
            self._check()
            now = self._clock.now()
            if self._started is None:
                self._started = now
            seconds = now - self._started
            course = self._course
            self._advance(chain(course.reach(seconds), course.step_begins(step, seconds)))
            self._news.notify_all()

    def tick(self) -> None:
        """Let what is due on the clock happen. The thread calls this; tests may."""
        with self._news:
            if self._started is not None:
                self._advance(self._course.reach(self._clock.now() - self._started))

    def _advance(self, records: Iterable[ChaosRecord]) -> None:
        before = self._course.world
        for record in records:
            _log.info("step %d, %.2f s: %s", record.step, record.seconds, record.what)
            self._log.append(record)
            after = self._course.world
            if after != before:
                self._change(before, after)
            before = after

    def _check(self) -> None:
        """Raise what ended the script early."""
        failure = self._failure
        if failure is not None:
            self._failure_told = True
            raise FleetError(
                f"the chaos of this fleet failed: {failure or type(failure).__name__} (it was to "
                f"{self._log[-1].what!r}; nothing scripted after that happens). Mend that or leave "
                "the event out, and start the fleet anew."
            ) from failure

    def _serve(self) -> None:
        try:
            with self._news:
                while not self._closing:
                    self.tick()
                    self._news.wait(self._wait_seconds())
        except Exception as error:  # noqa: BLE001 - the boundary of the thread: raised in others
            _log.exception("chaos failed")
            with self._news:
                self._failure = error

    def _wait_seconds(self) -> float | None:
        due = self._course.next_seconds()
        if self._started is None or due is None:
            return None
        return max(due - (self._clock.now() - self._started), 0.0)
