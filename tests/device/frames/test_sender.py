"""The sender: in order, coded, beside computing, and an error is told once."""

from __future__ import annotations

import threading

import pytest
import torch

from edgeweave.codec import uniform
from edgeweave.core.clock import SystemClock, VirtualClock
from edgeweave.core.errors import EdgeweaveError, FleetError, WireError
from edgeweave.device.frames import deflating
from edgeweave.device.frames.codec import FrameCoding, encoded_frame
from edgeweave.device.frames.sender import Sender
from edgeweave.device.throttle import Throttle
from edgeweave.net import Frame, FrameHeader, specs_of

LONG = 30.0


class Link:
    """A transport of which only sending is used: notes frames, waits or fails as told."""

    def __init__(self, *, open_at_once: bool = True, failing: frozenset[int] = frozenset()) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.failing = failing
        self.sent: list[int] = []
        self.frames: list[Frame] = []
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
        self.frames.append(frame)
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


HALF_A_SECOND = 0.5
CODING = FrameCoding(uniform(8), 3)


def tensor_frame_of(number: int, tensor: torch.Tensor | None = None) -> Frame:
    tensors = {"x": torch.linspace(0, 1, 300) if tensor is None else tensor}
    header = FrameHeader("activation", "pi-a", 0, 0, 0, number, tensors=specs_of(tensors))
    return Frame(header, tuple(tensors.values()))


@pytest.fixture
def coding_threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that coded a frame, in order."""
    threads: list[str] = []

    def noted(plain: Frame, coding: FrameCoding) -> Frame:
        threads.append(threading.current_thread().name)
        return encoded_frame(plain, coding)

    monkeypatch.setattr(deflating, "encoded_frame", noted)
    return threads


def test_frames_are_coded_on_the_sender_s_thread_and_in_order(coding_threads: list[str]) -> None:
    link, errors = Link(), []
    with sender_of(link, errors) as sender:
        for number in range(6):
            coding = CODING if number % 2 else None
            sender.post("key", tensor_frame_of(number), device="pi-b", coding=coding)
    assert coding_threads == ["edgeweave-sender"] * 3
    assert link.sent == [0, 1, 2, 3, 4, 5]
    assert [sent.header.codec for sent in link.frames] == ["none", "edgeweave"] * 3
    coded = encoded_frame(tensor_frame_of(1), CODING)
    assert torch.equal(link.frames[1].tensors[0], coded.tensors[0])
    assert link.frames[1].header.tensors == coded.header.tensors
    assert errors == []


def test_posting_does_not_wait_for_coding(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, link, errors = threading.Event(), Link(), []

    def slow(plain: Frame, coding: FrameCoding) -> Frame:
        assert go_on.wait(LONG)
        return encoded_frame(plain, coding)

    monkeypatch.setattr(deflating, "encoded_frame", slow)
    with sender_of(link, errors) as sender:
        for number in range(3):
            sender.post("key", tensor_frame_of(number), device="pi-b", coding=CODING)
        assert link.calls == 0
        go_on.set()
    assert link.sent == [0, 1, 2]


def paced_sender(link: Link, errors: list[EdgeweaveError], clock: VirtualClock) -> Sender:
    """On a device on which coding a frame takes half a second."""
    throttle = Throttle(0.5, clock, cpu_seconds=lambda: 0.0)
    throttle.hold("encode", HALF_A_SECOND)
    return sender_of(link, errors, throttle=throttle)


def test_a_coded_frame_is_stamped_when_it_is_coded() -> None:
    link, errors = Link(), []
    link.clock = VirtualClock()  # each sending takes 0.25 s
    with paced_sender(link, errors, link.clock) as sender:
        sender.post("key", tensor_frame_of(0), device="pi-b", coding=CODING)
        sender.post("key", tensor_frame_of(1), device="pi-b")
        sender.post("key", tensor_frame_of(2), device="pi-b", coding=CODING)
    assert link.stamps[0] == 0.5
    assert link.stamps[2] == 0.5 + 0.25 + 0.25 + 0.5


def test_coding_seconds_are_not_among_those_of_sending() -> None:
    link, errors = Link(), []
    link.clock = VirtualClock()
    with paced_sender(link, errors, link.clock) as sender:
        for number in range(4):
            coding = CODING if number else None
            sender.post("key", tensor_frame_of(number), device="pi-b", coding=coding)
    assert sender.coding_seconds == 3 * HALF_A_SECOND
    assert sender.seconds == 4 * 0.25


def test_an_error_of_coding_is_reported_once_and_ends_sending() -> None:
    link, errors = Link(), []
    deep = torch.ones((1,) * 17)
    with sender_of(link, errors) as sender:
        sender.post("key", tensor_frame_of(0), device="pi-b", coding=CODING)
        sender.post("key", tensor_frame_of(1, deep), device="pi-b", coding=CODING)
        sender.post("key", tensor_frame_of(2, deep), device="pi-b", coding=CODING)
        sender.post("key", tensor_frame_of(3), device="pi-b")
    assert link.sent == [0]
    assert [type(error) for error in errors] == [WireError]
    assert str(errors[0]).startswith("a coded tensor has at most 16 dimensions")


def test_whatever_goes_wrong_in_coding_ends_sending(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(plain: Frame, coding: FrameCoding) -> Frame:
        raise MemoryError("no memory")

    monkeypatch.setattr(deflating, "encoded_frame", failing)
    link, errors = Link(), []
    with sender_of(link, errors) as sender:
        sender.post("key", tensor_frame_of(0), device="pi-b", coding=CODING)
        sender.post("key", tensor_frame_of(1), device="pi-b")
    assert link.sent == []
    assert [str(error) for error in errors] == ["sending failed: MemoryError: no memory"]
