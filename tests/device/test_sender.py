"""The sender: in order, beside computing, and an error is told once."""

from __future__ import annotations

import threading

import pytest

from edgeweave.core.clock import SystemClock, VirtualClock
from edgeweave.core.errors import EdgeweaveError, FleetError
from edgeweave.device.sender import Sender
from edgeweave.device.throttle import Throttle
from edgeweave.net import Frame, FrameHeader

LONG = 30.0


class Link:
    """A transport of which only sending is used: notes frames, waits or fails as told."""

    def __init__(self, *, open_at_once: bool = True, failing: frozenset[int] = frozenset()) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.failing = failing
        self.sent: list[int] = []
        self.stamps: list[float] = []
        self.calls = 0
        self.clock: VirtualClock | None = None
        if open_at_once:
            self.open.set()

    def send(self, key: str, frame: Frame, *, device: str) -> None:
        self.entered.set()
        self.calls += 1
        assert self.open.wait(LONG)
        if self.clock is not None:
            self.clock.sleep(0.25)
        if frame.header.microbatch in self.failing:
            raise FleetError(f"nobody listens to {key}")
        self.sent.append(frame.header.microbatch)
        self.stamps.append(frame.header.scalars["sent"])


def frame(number: int) -> Frame:
    return Frame(FrameHeader("activation", "pi-a", 0, 0, 0, number))


def sender_of(link: Link, errors: list[EdgeweaveError], **options: object) -> Sender:
    clock = link.clock or SystemClock()
    options = {"capacity": 8, "timeout_seconds": LONG, "throttle": Throttle(None, clock), **options}
    return Sender(link, clock, on_error=errors.append, **options)  # type: ignore[arg-type]


def test_frames_leave_in_the_order_they_were_posted() -> None:
    link, errors = Link(), []
    with sender_of(link, errors) as sender:
        for number in range(50):
            sender.post("key", frame(number), device="pi-b")
    assert link.sent == list(range(50))
    assert errors == []


def test_posting_does_not_wait_for_the_network() -> None:
    link, errors = Link(open_at_once=False), []
    with sender_of(link, errors) as sender:
        sender.post("key", frame(0), device="pi-b")
        assert link.entered.wait(LONG)
        sender.post("key", frame(1), device="pi-b")
        assert link.sent == []
        link.open.set()
    assert link.sent == [0, 1]


def test_what_was_posted_is_sent_before_leaving() -> None:
    link, errors = Link(open_at_once=False), []
    with sender_of(link, errors) as sender:
        for number in range(5):
            sender.post("key", frame(number), device="pi-b")
        link.open.set()
    assert link.sent == [0, 1, 2, 3, 4]


def test_the_first_error_is_reported_once_and_ends_sending() -> None:
    link, errors = Link(failing=frozenset({1, 2})), []
    with sender_of(link, errors) as sender:
        for number in range(5):
            sender.post("key", frame(number), device="pi-b")
    assert link.sent == [0]
    assert link.calls == 2
    assert [str(error) for error in errors] == ["nobody listens to key"]


def test_a_full_queue_is_an_error_after_its_deadline() -> None:
    link, errors = Link(open_at_once=False), []
    with sender_of(link, errors, capacity=1, timeout_seconds=0.01) as sender:
        sender.post("there", frame(0), device="pi-b")
        assert link.entered.wait(LONG)
        sender.post("there", frame(1), device="pi-b")
        with pytest.raises(FleetError) as stuck:
            sender.post("there", frame(2), device="pi-b")
        link.open.set()
    assert str(stuck.value) == (
        "the network took nothing for 0 s (next: activation to pi-b, there). Check the link."
    )


def test_leaving_by_an_error_drops_what_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    link, errors = Link(open_at_once=False), []
    join = threading.Thread.join

    def open_and_join(thread: threading.Thread, timeout: float | None = None) -> None:
        link.open.set()
        join(thread, timeout)

    def body(sender: Sender) -> None:
        for number in range(4):
            sender.post("key", frame(number), device="pi-b")
        assert link.entered.wait(LONG)
        monkeypatch.setattr(threading.Thread, "join", open_and_join)  # what leaving ends with
        raise KeyError("the stage failed")

    with pytest.raises(KeyError), sender_of(link, errors) as sender:
        body(sender)
    assert link.sent == [0]


def test_seconds_are_those_spent_handing_frames_over() -> None:
    link, errors = Link(), []
    link.clock = VirtualClock()
    with sender_of(link, errors) as sender:
        for number in range(3):
            sender.post("key", frame(number), device="pi-b")
    assert sender.seconds == 0.75


def test_a_frame_tells_since_when_nothing_but_its_own_link_held_it_up() -> None:
    link, errors = Link(open_at_once=False), []
    link.clock = VirtualClock()  # each sending takes 0.25 s
    with sender_of(link, errors) as sender:
        for number, device in enumerate(["pi-b", "pi-b", "pi-c", "pi-c", "pi-b"]):
            sender.post("key", frame(number), device=device)
        link.open.set()
    assert link.stamps == pytest.approx([0.0, 0.0, 0.5, 0.5, 1.0])
