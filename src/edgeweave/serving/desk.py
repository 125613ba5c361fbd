"""Where requests wait and who sends them: in order, and no more under way than the plan says.

    submit -> [ waiting ] --thread--> term.send    answered: the request leaves
                  ^                      |
                  '----- given back -----'         its term ended first: it is sent in the next

A request leaves when it is answered, when it cannot be computed, or at its deadline; whichever is
first. What comes later of it is a duplicate, counted and dropped.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import torch

from edgeweave.core.clock import Clock
from edgeweave.core.errors import (
    EdgeweaveError,
    FleetError,
    QueueFull,
    RequestTimeout,
)
from edgeweave.serving.options import ServeOptions
from edgeweave.serving.requests import EndpointClosed, Request, Shipment

__all__ = ["Desk", "DeskStatistics", "Sending"]

_REMEMBERED = 10_000


class Sending(Protocol):
    """What sends shipments: a plan at work."""

    @property
    def has_room(self) -> bool:
        """Whether one more may be under way."""

    def send(self, shipment: Shipment) -> bool:
        """Take a shipment over and send it; False if the term has ended and takes nothing.

        ``EdgeweaveError`` if a device cannot be reached: it is taken over all the same.
        """


@dataclass(frozen=True, slots=True)
class DeskStatistics:
    """A snapshot of what became of requests."""

    waiting: int
    open: int
    """Accepted and not answered, those that wait included."""
    answered: int
    refused: int
    """That could not be computed."""
    expired: int
    resent: int
    duplicates: int
    """Answers to requests that had left already."""
    latencies: tuple[float, ...]
    """Seconds from asking to the answer, of the last ten thousand answers."""
    latency_seconds: float
    """Of all answers, added up."""
    first_seconds: float | None
    last_seconds: float | None
    """When the first request was asked, and the last answer came, on the clock."""
    turned_away: int = 0
    """Not accepted, because the queue was full."""


class Desk:
    """Owns its thread between ``with`` and its end. ``build`` makes an answer of outputs.

    ``on_broken(term, error)`` is told of a term that cannot send; it is used no more.
    """

    def __init__(
        self,
        clock: Clock,
        options: ServeOptions,
        *,
        build: Callable[[Mapping[str, torch.Tensor]], Any],
        on_broken: Callable[[Sending, EdgeweaveError], None],
        stop_seconds: float,
    ) -> None:
        self._clock = clock
        self._options = options
        self._build = build
        self._on_broken = on_broken
        self._stop_seconds = stop_seconds
        self._news = threading.Condition()
        self._waiting: deque[Request] = deque()
        self._open: dict[int, Request] = {}
        self._alone: set[int] = set()
        self._term: Sending | None = None
        self._closing = False
        self._ended = False
        self._number = 0
        self._next_deadline = float("inf")
        self._answered = self._refused = self._expired = self._resent = self._duplicates = 0
        self._turned_away = 0
        self._latencies: deque[float] = deque(maxlen=_REMEMBERED)
        self._latency_seconds = 0.0
        self._first: float | None = None
        self._last: float | None = None
        self._thread = threading.Thread(target=self._run, name="edgeweave-desk")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._news:
            self._ended = True
            left = list(self._open.values())
            self._open.clear()
            self._waiting.clear()
            self._news.notify_all()
        for request in left:
            request.fail(
                EndpointClosed(
                    "the endpoint was closed before this request was answered. Ask anew."
                )
            )
        self._thread.join()

    def accept(
        self,
        tensors: Mapping[str, torch.Tensor],
        samples: int,
        *,
        timeout_seconds: float,
        wait_seconds: float,
    ) -> Request:
        """Take a request in, waiting for room so long; ``QueueFull`` if there is none then.

        Its ``timeout_seconds`` begin now, so that waiting for room is part of them.
        """
        asked = self._clock.now()
        with self._news:
            room = self._news.wait_for(self._may_enter, wait_seconds)
            self._check_open()
            if not room:
                self._turned_away += 1
                raise QueueFull(
                    f"{len(self._open)} requests are unanswered already (queue_size: "
                    f"{self._options.queue_size}). Ask again in a moment, or serve with more "
                    "devices."
                )
            request = Request(self._number, tensors, samples, asked, asked + timeout_seconds)
            self._number += 1
            self._open[request.number] = request
            self._waiting.append(request)
            self._next_deadline = min(self._next_deadline, request.deadline_seconds)
            self._first = asked if self._first is None else self._first
            self._news.notify_all()
        request.future.add_done_callback(lambda _: self._given_up(request))
        return request

    def use(self, term: Sending) -> None:
        """Send what waits in this term from now on."""
        with self._news:
            self._term = term
            self._news.notify_all()

    def suspend(self, term: Sending) -> None:
        """Send nothing in this term any more."""
        with self._news:
            if self._term is term:
                self._term = None

    def give_back(self, shipments: Iterable[Shipment], *, alone: bool = False) -> None:
        """Let requests wait again, before those that came after them; ``alone`` joins them no more.

        Those that left meanwhile stay gone.
        """
        with self._news:
            back = [r for s in shipments for r in s.requests if r.number in self._open]
            self._resent += len(back)
            if alone:
                self._alone.update(request.number for request in back)
            ordered = sorted([*back, *self._waiting], key=lambda request: request.number)
            self._waiting = deque(ordered)
            self._news.notify_all()

    def answered(self, shipment: Shipment, outputs: Mapping[str, torch.Tensor]) -> None:
        """The outputs of a shipment are here."""
        for request, part in zip(shipment.requests, shipment.divided(outputs), strict=True):
            if self._left(request):
                with self._news:
                    self._answered += 1
                    self._last = self._clock.now()
                    seconds = self._last - request.asked_seconds
                    self._latencies.append(seconds)
                    self._latency_seconds += seconds
                request.answer(self._build(part))

    def refused(self, shipment: Shipment, error: EdgeweaveError) -> None:
        """A shipment cannot be computed: the request is told so; joined ones are tried alone."""
        if len(shipment.requests) > 1:
            self.give_back([shipment], alone=True)
            return
        (request,) = shipment.requests
        if self._left(request):
            with self._news:
                self._refused += 1
            request.fail(error)

    def room_changed(self) -> None:
        """A term may have room again."""
        with self._news:
            self._news.notify_all()

    def finish(self) -> None:
        """Accept nothing more, and return when all are answered, or at their deadlines."""
        with self._news:
            self._closing = True
            self._news.notify_all()
            latest = max((r.deadline_seconds for r in self._open.values()), default=0.0)
            most = max(latest - self._clock.now(), 0.0) + self._stop_seconds
            self._news.wait_for(lambda: not self._open, most)

    def statistics(self) -> DeskStatistics:
        with self._news:
            return DeskStatistics(
                len(self._waiting),
                len(self._open),
                self._answered,
                self._refused,
                self._expired,
                self._resent,
                self._duplicates,
                tuple(self._latencies),
                self._latency_seconds,
                self._first,
                self._last,
                self._turned_away,
            )

    def _left(self, request: Request) -> bool:
        """Take a request off the books; False if it had left before."""
        with self._news:
            self._alone.discard(request.number)
            if self._open.pop(request.number, None) is None:
                self._duplicates += 1
                return False
            self._news.notify_all()
            return True

    def _given_up(self, request: Request) -> None:
        """A request is done; one that its user cancelled leaves its place to others."""
        with self._news:
            if request.future.cancelled() and self._open.pop(request.number, None) is not None:
                self._alone.discard(request.number)
                self._waiting.remove(request)
                self._news.notify_all()

    def _may_enter(self) -> bool:
        return len(self._open) < self._options.queue_size or self._closing or self._ended

    def _check_open(self) -> None:
        if self._closing or self._ended:
            raise EndpointClosed("the endpoint is closing and accepts no request. Open another.")

    def _run(self) -> None:
        while True:
            with self._news:
                if self._ended:
                    return
                now = self._clock.now()  # one for all: what is due between two would be missed
                expired = self._taken_expired(now)
                term, shipment = (None, None) if expired else self._next(now)
                if not expired and shipment is None:
                    self._news.wait(self._idle_seconds(now))
            for request in expired:
                request.fail(_too_late(request))
            if term is not None and shipment is not None:
                self._send(term, shipment)

    def _send(self, term: Sending, shipment: Shipment) -> None:
        try:
            is_taken = term.send(shipment)
        except EdgeweaveError as error:
            self._break(term, error)
        except Exception as error:  # noqa: BLE001 - a thread's boundary: reported, never lost
            failed = FleetError(f"sending failed: {type(error).__name__}: {error}")
            failed.__cause__ = error
            self._break(term, failed)
        else:
            if not is_taken:
                self.suspend(term)
                self.give_back([shipment])

    def _break(self, term: Sending, error: EdgeweaveError) -> None:
        self.suspend(term)
        self._on_broken(term, error)

    def _next(self, now: float) -> tuple[Sending | None, Shipment | None]:
        """What to send now, if anything. Holds the lock."""
        if self._term is None or not self._waiting or not self._term.has_room:
            return None, None
        joined = self._joined()
        if not joined:
            return None, None
        if self._may_grow(joined, now):
            return None, None
        for _ in joined:
            self._waiting.popleft()
        return self._term, Shipment(tuple(joined))

    def _joined(self) -> list[Request]:
        """The first that waits, and those behind it that may go along; none if it was given up."""
        if not self._waiting[0].begin():
            return []  # whoever gives it up takes it off, and says so
        joined = [self._waiting[0]]
        samples = joined[0].samples
        if joined[0].number in self._alone:
            return joined
        for request in list(self._waiting)[1:]:
            samples += request.samples
            if samples > self._options.join_samples or request.number in self._alone:
                break
            if not request.begin():
                break  # given up: whoever does so takes it off
            joined.append(request)
        return joined

    def _may_grow(self, joined: list[Request], now: float) -> bool:
        """Whether to wait for more that could go along."""
        samples = sum(request.samples for request in joined)
        return (
            samples < self._options.join_samples
            and len(joined) == len(self._waiting)
            and now < joined[0].asked_seconds + self._options.join_seconds
        )

    def _idle_seconds(self, now: float) -> float | None:
        """Until there may be something to do without news."""
        moments = [self._next_deadline]
        if self._waiting and self._options.join_seconds:
            moments.append(self._waiting[0].asked_seconds + self._options.join_seconds)
        ahead = [moment - now for moment in moments if moment > now]
        soonest = min(ahead, default=0.0)
        return None if soonest == float("inf") else max(soonest, 0.0)

    def _taken_expired(self, now: float) -> list[Request]:
        """Those whose deadline is over, off the books. Holds the lock."""
        if now < self._next_deadline:
            return []
        expired = [r for r in self._open.values() if r.deadline_seconds <= now]
        gone = {request.number for request in expired}
        for number in gone:
            del self._open[number]
        self._alone -= gone
        self._waiting = deque(r for r in self._waiting if r.number not in gone)
        self._expired += len(expired)
        self._next_deadline = min(
            (r.deadline_seconds for r in self._open.values()), default=float("inf")
        )
        self._news.notify_all()
        return expired


def _too_late(request: Request) -> RequestTimeout:
    seconds = request.deadline_seconds - request.asked_seconds
    return RequestTimeout(
        f"no answer came in {seconds:.1f} s (request {request.number}). The devices are too slow "
        "for so many requests, or gone: look at `edgeweave status`, or allow more time."
    )
