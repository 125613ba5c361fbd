"""The desk: requests in order, so many under way, each leaves once. No device, no network."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from edgeweave.core.clock import Clock, SystemClock
from edgeweave.core.errors import (
    EdgeweaveError,
    FleetError,
    QueueFull,
    RequestError,
    RequestTimeout,
)
from edgeweave.serving.desk import Desk, Sending
from edgeweave.serving.options import ServeOptions
from edgeweave.serving.requests import Shipment
from tests.fleet.worlds import wait_until

LONG = 30.0


@dataclass
class Term:
    """Takes shipments, up to ``window`` at once, and answers when it is told to."""

    window: int = 100
    error: Exception | None = None
    has_ended: bool = False
    sent: list[Shipment] = field(default_factory=list)
    open: list[Shipment] = field(default_factory=list)

    @property
    def has_room(self) -> bool:
        return len(self.open) < self.window

    def send(self, shipment: Shipment) -> bool:
        if self.error is not None:
            raise self.error
        if self.has_ended:
            return False
        self.sent.append(shipment)
        self.open.append(shipment)
        return True

    def numbers(self) -> list[list[int]]:
        return [[request.number for request in shipment.requests] for shipment in self.sent]


@dataclass
class Counter:
    """A desk, and what it said was broken."""

    desk: Desk
    broken: list[tuple[Sending, EdgeweaveError]]

    def ask(self, value: float = 0.0, *, samples: int = 1, seconds: float = LONG) -> Future[Any]:
        tensors = {"x": torch.full((samples,), value)}
        return self.desk.accept(tensors, samples, timeout_seconds=seconds, wait_seconds=0.0).future

    def answer(self, term: Term, index: int = 0) -> None:
        """Twice what was sent, as the model of these tests answers."""
        shipment = term.open.pop(index)
        self.desk.answered(shipment, {"y": 2 * shipment.tensors()["x"]})
        self.desk.room_changed()


@dataclass
class Hasty(SystemClock):
    """A clock by which a while passes between any two looks at it."""

    ahead: float = 0.0

    def now(self) -> float:
        self.ahead += 0.03
        return super().now() + self.ahead


@contextmanager
def opened(*, clock: Clock | None = None, **options: Any) -> Iterator[Counter]:
    broken: list[tuple[Sending, EdgeweaveError]] = []
    desk = Desk(
        clock or SystemClock(),
        ServeOptions(**options),
        build=lambda outputs: outputs["y"].tolist(),
        on_broken=lambda term, error: broken.append((term, error)),
        stop_seconds=5.0,
    )
    with desk:
        yield Counter(desk, broken)


def wait_sent(term: Term, n_shipments: int) -> None:
    wait_until(lambda: len(term.sent) >= n_shipments, f"{n_shipments} shipments are sent")


def test_requests_are_sent_in_order_as_far_as_there_is_room() -> None:
    with opened() as counter:
        term = Term(window=2)
        futures = [counter.ask(value) for value in range(4)]
        counter.desk.use(term)
        wait_sent(term, 2)
        assert (term.numbers(), counter.desk.statistics().waiting) == ([[0], [1]], 2)
        counter.answer(term)
        wait_sent(term, 3)
        assert futures[0].result(LONG) == [0.0]
        for _ in range(3):
            counter.answer(term)
            wait_sent(term, min(len(term.sent) + 1, 4))
        assert [future.result(LONG) for future in futures] == [[0.0], [2.0], [4.0], [6.0]]


def test_what_a_term_had_goes_first_in_the_next() -> None:
    with opened() as counter:
        old, new = Term(window=2), Term()
        futures = [counter.ask(value) for value in range(4)]
        counter.desk.use(old)
        wait_sent(old, 2)
        counter.desk.suspend(old)
        counter.desk.give_back(reversed(old.open))
        counter.desk.use(new)
        wait_sent(new, 4)
        assert new.numbers() == [[0], [1], [2], [3]]
        for _ in range(4):
            counter.answer(new)
        assert [future.result(LONG) for future in futures] == [[0.0], [2.0], [4.0], [6.0]]
        assert counter.desk.statistics().resent == 2


def test_of_two_answers_the_first_counts() -> None:
    with opened() as counter:
        old, new = Term(), Term()
        counter.desk.use(old)
        future = counter.ask(1.0)
        wait_sent(old, 1)
        counter.desk.give_back(old.open)
        counter.desk.use(new)
        wait_sent(new, 1)
        counter.answer(old)
        counter.answer(new)
        assert future.result(LONG) == [2.0]
        statistics = counter.desk.statistics()
        assert (statistics.answered, statistics.duplicates) == (1, 1)


def test_one_that_was_answered_is_not_sent_again() -> None:
    with opened() as counter:
        old, new = Term(), Term()
        counter.desk.use(old)
        counter.ask(1.0)
        wait_sent(old, 1)
        late = list(old.open)
        counter.answer(old)
        counter.desk.give_back(late)
        counter.desk.use(new)
        counter.ask(5.0)
        wait_sent(new, 1)
        assert new.numbers() == [[1]]


def test_a_full_queue_refuses_or_waits() -> None:
    with opened(queue_size=2) as counter:
        term = Term()
        counter.desk.use(term)
        counter.ask(), counter.ask()
        with pytest.raises(QueueFull, match=r"^2 requests are unanswered already \(queue_size: 2"):
            counter.ask()
        assert counter.desk.statistics().turned_away == 1
        wait_sent(term, 2)
        threading.Timer(0.05, lambda: counter.answer(term)).start()
        counter.desk.accept({"x": torch.ones(1)}, 1, timeout_seconds=LONG, wait_seconds=LONG)
        assert counter.desk.statistics().open == 2


def test_waiting_for_room_is_part_of_the_time_that_a_request_has() -> None:
    with opened(queue_size=1) as counter:
        term = Term()
        counter.desk.use(term)
        counter.ask()
        wait_sent(term, 1)
        had_room: list[float] = []

        def make_room() -> None:
            had_room.append(SystemClock().now())
            counter.answer(term)

        threading.Timer(0.05, make_room).start()
        late = counter.desk.accept({"x": torch.ones(1)}, 1, timeout_seconds=LONG, wait_seconds=LONG)
        assert late.deadline_seconds < had_room[0] + LONG
        assert late.deadline_seconds == late.asked_seconds + LONG


@pytest.mark.parametrize("is_sent", [True, False])
def test_a_request_fails_at_its_deadline_wherever_it_is(is_sent: bool) -> None:
    with opened() as counter:
        term = Term()
        if is_sent:
            counter.desk.use(term)
        later = counter.ask(seconds=LONG)
        with pytest.raises(RequestTimeout, match=r"no answer came in 0\.1 s \(request 1\)"):
            counter.ask(seconds=0.1).result(LONG)
        statistics = counter.desk.statistics()
        assert (statistics.expired, statistics.open, later.done()) == (1, 1, False)
        if is_sent:
            counter.answer(term, index=1)
            assert counter.desk.statistics().duplicates == 1


def test_a_request_that_was_given_up_is_not_sent() -> None:
    with opened() as counter:
        first, second = counter.ask(), counter.ask()
        assert first.cancel()
        term = Term()
        counter.desk.use(term)
        wait_sent(term, 1)
        assert term.numbers() == [[1]]
        counter.answer(term)
        assert second.result(LONG) == [0.0]
        assert counter.desk.statistics().open == 0


def test_a_request_that_was_given_up_leaves_its_place_and_does_not_expire() -> None:
    with opened(queue_size=2) as counter:
        term = Term(window=1)
        counter.desk.use(term)
        first = counter.ask(seconds=0.3)
        wait_sent(term, 1)
        assert counter.ask(seconds=0.3).cancel()
        assert counter.desk.statistics().open == 1
        counter.ask()
        with pytest.raises(RequestTimeout):
            first.result(LONG)
        assert counter.desk.statistics().expired == 1


def test_whatever_sending_raises_is_told_and_deadlines_hold() -> None:
    with opened() as counter:
        counter.desk.use(Term(error=RuntimeError("no memory")))
        future = counter.ask(seconds=0.2)
        with pytest.raises(RequestTimeout):
            future.result(LONG)
        ((_, error),) = counter.broken
        assert str(error) == "sending failed: RuntimeError: no memory"


def test_a_term_that_cannot_send_is_told_of_and_used_no_more() -> None:
    with opened() as counter:
        error = FleetError("gone")
        term, new = Term(error=error), Term()
        counter.desk.use(term)
        counter.ask()
        wait_until(lambda: counter.broken == [(term, error)], "it is told of")
        counter.ask()
        counter.desk.use(new)
        wait_sent(new, 1)
        assert (len(counter.broken), new.numbers()) == (1, [[1]])  # the first is the term's to give


def test_what_a_term_that_has_ended_does_not_take_is_sent_in_the_next() -> None:
    with opened() as counter:
        old, new = Term(has_ended=True), Term()
        futures = [counter.ask(1.0), counter.ask(2.0)]
        counter.desk.use(old)
        wait_until(lambda: counter.desk.statistics().resent == 1, "the first is given back")
        counter.desk.use(new)
        wait_sent(new, 2)
        assert (new.numbers(), counter.broken) == ([[0], [1]], [])
        counter.answer(new)
        counter.answer(new)
        assert [future.result(LONG) for future in futures] == [[2.0], [4.0]]


def test_requests_that_wait_are_joined_and_each_gets_its_own_rows() -> None:
    with opened(join_samples=4) as counter:
        futures = [counter.ask(float(value), samples=n) for value, n in ((1, 1), (2, 2), (3, 2))]
        term = Term()
        counter.desk.use(term)
        wait_sent(term, 2)
        assert term.numbers() == [[0, 1], [2]]
        counter.answer(term)
        counter.answer(term)
        assert [f.result(LONG) for f in futures] == [[2.0], [4.0, 4.0], [6.0, 6.0]]


def test_one_waits_for_others_to_join_it_only_so_long() -> None:
    with opened(join_samples=3, join_seconds=0.2) as counter:
        term = Term()
        counter.desk.use(term)
        counter.ask()
        assert term.sent == []
        counter.ask()
        wait_sent(term, 1)
        assert term.numbers() == [[0, 1]]
        for _ in range(3):
            counter.ask()
        wait_sent(term, 2)
        assert term.numbers()[1] == [2, 3, 4]


@pytest.mark.parametrize("join_seconds", [0.02, 0.05, 0.08, 0.11, 0.14])
def test_a_wait_for_others_that_ends_between_two_looks_at_the_clock_ends(
    join_seconds: float,
) -> None:
    """Bug: who decides to wait on, and for how long, asked the clock twice."""
    with opened(clock=Hasty(), join_samples=3, join_seconds=join_seconds) as counter:
        term = Term()
        counter.desk.use(term)
        counter.ask()
        wait_sent(term, 1)


def test_of_joined_requests_that_are_refused_only_the_bad_one_fails() -> None:
    with opened(join_samples=3) as counter:
        futures = [counter.ask(float(value)) for value in range(3)]
        term = Term()
        counter.desk.use(term)
        wait_sent(term, 1)
        counter.desk.refused(term.open.pop(), RequestError("bad"))
        wait_sent(term, 4)
        assert term.numbers()[1:] == [[0], [1], [2]]
        bad = term.open.pop(1)
        counter.desk.refused(bad, RequestError("bad"))
        counter.answer(term)
        counter.answer(term)
        assert (futures[0].result(LONG), futures[2].result(LONG)) == ([0.0], [4.0])
        with pytest.raises(RequestError, match=r"^bad$"):
            futures[1].result(LONG)
        assert counter.desk.statistics().refused == 1


def test_closing_answers_what_was_accepted_and_accepts_nothing_more() -> None:
    with opened() as counter:
        term = Term()
        counter.desk.use(term)
        future = counter.ask(1.0)
        wait_sent(term, 1)
        closing = threading.Thread(target=counter.desk.finish)
        closing.start()

        def is_refused() -> bool:
            try:
                counter.ask(seconds=0.01)
            except RequestError as error:
                return "the endpoint is closing" in str(error)
            return False

        wait_until(is_refused, "it closes")
        counter.answer(term)
        closing.join(LONG)
        assert future.result(LONG) == [2.0]


def test_closing_waits_for_a_request_with_a_longer_deadline_of_its_own() -> None:
    with opened(timeout_seconds=0.01) as counter:
        counter.desk._stop_seconds = 0.0
        term = Term()
        counter.desk.use(term)
        future = counter.ask(1.0, seconds=LONG)
        wait_sent(term, 1)
        threading.Timer(0.2, lambda: counter.answer(term)).start()
        counter.desk.finish()
        assert future.result(0) == [2.0]


def test_what_is_left_at_the_end_fails_with_a_reason() -> None:
    with opened() as counter:
        future = counter.ask()
    with pytest.raises(RequestError, match="was closed before this request was answered"):
        future.result(LONG)
