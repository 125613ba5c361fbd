"""Watches over the waits of a run: a device that stands still is as lost as one that died.

    coordinator's thread     |-- waiting -------------------------------| error, or the result
    this thread                      ... learnt deadline: suspects |
    its helpers                        pulse? ->  <- pulse   pulse? ->

The wait itself goes on: a result that comes ends the suspicion, and teaches to be more patient.
Knows devices by name and asks them by a function; what it learns is in ``deadlines``, whom it
condemns is decided in ``suspicion``.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from edgeweave.core.clock import Clock
from edgeweave.core.errors import EdgeweaveError, FleetError
from edgeweave.device import Pulse
from edgeweave.train.failures.deadlines import Deadline, Deadlines
from edgeweave.train.failures.suspicion import Ask, Suspicion, Verdict

__all__ = ["Vigil", "VigilStatistics"]

_log = logging.getLogger(__name__)

_MOST_OPEN: Final = 24
"""Pulses of one device that may be under way at once, those over others included."""


@dataclass(frozen=True, slots=True)
class VigilStatistics:
    """A snapshot of what a vigil did and learnt."""

    n_suspicions: int
    n_false: int
    """Suspicions that a result ended."""
    n_pulses: int
    deadlines: Deadlines


@dataclass(slots=True)
class _Wait:
    kind: str
    what: str
    began: float
    suspect_at: float
    suspected: bool = False


class Vigil:
    """Owns its thread and those that ask, from the first wait to the end of its ``with`` block.

    ``ask`` returns a pulse or raises ``EdgeweaveError``. ``on_verdict`` is
    called on the vigil's thread, with what was waited for, and ends the run; ``on_error`` too, if
    the vigil itself fails. ``links`` and ``link_seconds`` as a ``Suspicion`` has them.
    """

    def __init__(
        self,
        devices: Sequence[str],
        ask: Callable[[Ask], Pulse],
        clock: Clock,
        deadlines: Deadlines,
        *,
        on_verdict: Callable[[Verdict, str], None],
        on_error: Callable[[EdgeweaveError], None],
        links: Sequence[tuple[str, str]] = (),
        link_seconds: float = 0.0,
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._deadlines = deadlines
        self._links = links
        self._link_seconds = link_seconds
        self._on_verdict = on_verdict
        self._on_error = on_error
        self._trips = dict.fromkeys(devices, Deadline())
        self._open = dict.fromkeys(devices, 0)
        self._news = threading.Condition()
        self._wait: _Wait | None = None
        self._wakes_at = -math.inf
        self._closing = False
        self._round = ""
        self._n_suspicions = self._n_false = self._n_pulses = 0
        self._thread = threading.Thread(target=self._run, name="edgeweave-vigil")
        self._pool = ThreadPoolExecutor(_MOST_OPEN * len(devices), "edgeweave-pulse")

    def __enter__(self) -> Self:
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
            self._thread.join()
        self._pool.shutdown(cancel_futures=True)

    def round_begins(self, kind: str) -> None:
        """Waits of a training step, an evaluation and a comparison differ: say which it is."""
        self._round = kind

    def round_ends(self, seconds: float) -> None:
        """Its last result is here."""
        if self._round == "train":
            with self._news:
                self._deadlines = self._deadlines.stepped(seconds)

    @contextmanager
    def waiting(self, kind: str, what: str) -> Iterator[None]:
        """Watch over what is done inside: a wait of the round's ``kind``, for ``what``."""
        kind = f"{self._round} {kind}"
        began = self._clock.now()
        with self._news:
            suspect_at = began + self._deadlines.suspect_seconds(kind)
            self._wait = wait = _Wait(kind, what, began, suspect_at)
            if self._thread.ident is None:  # the first input of a run waits for no thread
                self._thread.start()
            elif suspect_at < self._wakes_at:
                self._news.notify_all()
        try:
            yield
        except BaseException:
            with self._news:
                self._wait = None
            raise
        with self._news:
            self._wait = None
            self._learn(wait, self._clock.now() - began)

    def statistics(self) -> VigilStatistics:
        with self._news:
            return VigilStatistics(
                self._n_suspicions, self._n_false, self._n_pulses, self._deadlines
            )

    def _learn(self, wait: _Wait, seconds: float) -> None:
        self._deadlines = self._deadlines.heard(wait.kind, max(seconds, 0.0))
        if wait.suspected:
            self._n_false += 1
            self._deadlines = self._deadlines.was_too_short(wait.kind)

    def _run(self) -> None:
        try:
            with self._news:
                for device in self._trips:  # learns how long an answer takes
                    self._send(Ask(device, None, self._deadlines.slack_seconds), None)
                while not self._closing:
                    self._watch()
        except Exception as error:  # noqa: BLE001 - a thread's boundary: reported, never lost
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        failed = FleetError(f"the vigil failed: {type(error).__name__}: {error}")
        failed.__cause__ = error
        self._on_error(failed)

    def _watch(self) -> None:
        """Sleep until the present wait is too long, and suspect then. Holds the lock."""
        wait, now = self._wait, self._clock.now()
        if wait is None or wait.suspected:
            self._sleep(None)
        elif now < wait.suspect_at:
            self._sleep(wait.suspect_at - now)
        else:
            wait.suspected = True
            self._n_suspicions += 1
            self._suspect(wait)

    def _sleep(self, seconds: float | None) -> None:
        self._wakes_at = math.inf if seconds is None else self._clock.now() + seconds
        self._news.wait(seconds)
        self._wakes_at = -math.inf

    def _suspect(self, wait: _Wait) -> None:
        """Ask everybody until the wait is over, or somebody is lost. Holds the lock."""
        deadlines = self._deadlines
        patience = deadlines.give_up_seconds() - deadlines.suspect_seconds(wait.kind)
        retry = {device: trip.seconds for device, trip in self._trips.items()}
        suspicion = Suspicion(
            self._clock.now(),
            patience,
            retry,
            links=self._links,
            link_seconds=self._link_seconds,
        )
        _log.debug("%s is late: asking for pulses", wait.what)
        while self._wait is wait and not self._closing:
            now = self._clock.now()
            verdict = suspicion.look(now)
            if verdict is not None:
                self._on_verdict(verdict, wait.what)
                return
            for ask in suspicion.due(now):
                self._send(ask, suspicion)
            self._sleep(suspicion.look_seconds)

    def _send(self, ask: Ask, suspicion: Suspicion | None) -> None:
        if self._open[ask.device] < _MOST_OPEN:
            self._open[ask.device] += 1
            self._n_pulses += 1
            self._pool.submit(self._take_pulse, ask, suspicion)

    def _take_pulse(self, ask: Ask, suspicion: Suspicion | None) -> None:
        asked, pulse = self._clock.now(), None
        try:
            pulse = self._ask(ask)
        except EdgeweaveError as error:
            _log.debug("no pulse of %s: %s", ask.device, error)
        except Exception as error:  # noqa: BLE001 - a thread's boundary: reported, never lost
            self._fail(error)
        now = self._clock.now()
        with self._news:
            self._open[ask.device] -= 1
            if pulse is None:
                return
            if ask.via is None:
                self._trips[ask.device] = self._trips[ask.device].heard(max(now - asked, 0.0))
            if suspicion is not None:
                suspicion.answered(ask.device, pulse, now, via=ask.via)
