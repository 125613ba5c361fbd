"""The inbox: frames meet those who wait for them, or an error does."""

from __future__ import annotations

import threading

import pytest

from edgeweave.core.errors import DeviceLost, DeviceTimeout, EdgeweaveError, FleetError, WireError
from edgeweave.device.frames.inbox import FrameId, Inbox
from edgeweave.net import Frame, FrameHeader

LONG = 30.0


def frame(kind: str = "input", stage: int = -1, step: int = 0, microbatch: int = 0) -> Frame:
    return Frame(FrameHeader(kind, "pi-a", stage, 0, step, microbatch))


def too_late(key: FrameId) -> EdgeweaveError:
    return DeviceTimeout(f"waited for {key.kind}", device="pi-a")


def test_a_frame_that_is_there_is_taken_at_once_and_only_once() -> None:
    inbox = Inbox(capacity=2)
    sent = frame()
    inbox.put(sent)
    key = FrameId("input", -1, 0, 0)
    assert inbox.wait(key, timeout_seconds=0, late=too_late) is sent
    assert inbox.statistics().waiting == 0
    with pytest.raises(DeviceTimeout):
        inbox.wait(key, timeout_seconds=0, late=too_late)


@pytest.mark.parametrize(
    "other",
    [
        FrameId("gradient", -1, 0, 0),
        FrameId("input", 1, 0, 0),
        FrameId("input", -1, 1, 0),
        FrameId("input", -1, 0, 1),
    ],
)
def test_only_the_very_frame_is_matched(other: FrameId) -> None:
    inbox = Inbox(capacity=2)
    inbox.put(frame())
    with pytest.raises(DeviceTimeout):
        inbox.wait(other, timeout_seconds=0, late=too_late)
    assert inbox.statistics().waiting == 1


def test_a_wait_ends_when_its_frame_comes() -> None:
    inbox = Inbox(capacity=2)
    taken: list[Frame] = []
    key = FrameId("input", -1, 0, 1)
    waiter = threading.Thread(
        target=lambda: taken.append(inbox.wait(key, timeout_seconds=LONG, late=too_late))
    )
    waiter.start()
    inbox.put(frame(microbatch=0))
    inbox.put(frame(microbatch=1))
    waiter.join(LONG)
    assert [f.header.microbatch for f in taken] == [1]


def test_a_wait_that_lasts_too_long_raises_what_its_caller_chose() -> None:
    with pytest.raises(DeviceTimeout, match=r"^waited for input$"):
        Inbox(capacity=1).wait(FrameId("input", -1, 0, 0), timeout_seconds=0.01, late=too_late)


def test_a_frame_that_comes_twice_is_refused() -> None:
    inbox = Inbox(capacity=4)
    inbox.put(frame())
    with pytest.raises(WireError) as refused:
        inbox.put(frame())
    assert str(refused.value) == (
        "frame FrameId(kind='input', sender=-1, round=0, microbatch=0) came twice from pi-a."
    )


def test_a_sender_that_ignores_the_schedule_is_refused() -> None:
    inbox = Inbox(capacity=2)
    inbox.put(frame(microbatch=0))
    inbox.put(frame(microbatch=1))
    with pytest.raises(WireError) as refused:
        inbox.put(frame(microbatch=2))
    assert str(refused.value) == (
        "the inbox is full (2 frames) when FrameId(kind='input', sender=-1, round=0, "
        "microbatch=2) comes from pi-a. The sender ignores the schedule."
    )


def test_failing_wakes_everybody_who_waits() -> None:
    inbox = Inbox(capacity=2)
    raised: list[EdgeweaveError] = []

    def wait(microbatch: int) -> None:
        try:
            key = FrameId("input", -1, 0, microbatch)
            inbox.wait(key, timeout_seconds=LONG, late=too_late)
        except EdgeweaveError as error:
            raised.append(error)

    waiters = [threading.Thread(target=wait, args=(number,)) for number in range(3)]
    for waiter in waiters:
        waiter.start()
    cause = DeviceLost("gone", device="pi-b")
    inbox.fail(cause)
    for waiter in waiters:
        waiter.join(LONG)
    assert raised == [cause] * 3


def test_the_first_error_stays_and_later_waits_raise_it() -> None:
    inbox = Inbox(capacity=2)
    first = FleetError("first")
    inbox.put(frame())
    inbox.fail(first)
    inbox.fail(FleetError("second"))
    assert inbox.error is first
    with pytest.raises(FleetError, match=r"^first$"):
        inbox.wait(FrameId("input", -1, 0, 0), timeout_seconds=0, late=too_late)


def test_statistics_count_what_came_and_what_waits() -> None:
    inbox = Inbox(capacity=3)
    inbox.put(frame(microbatch=0))
    inbox.put(frame(microbatch=1))
    inbox.wait(FrameId("input", -1, 0, 0), timeout_seconds=0, late=too_late)
    found = inbox.statistics()
    assert (found.waiting, found.received, found.failed) == (1, 2, False)
    inbox.fail(FleetError("over"))
    assert inbox.statistics().failed


FORWARD = [FrameId("input", -1, 0, 1), FrameId("activation", 0, 0, 1)]
BACKWARD = [FrameId("gradient", 2, 0, 0)]


def test_the_first_option_whose_frames_are_all_here_is_chosen_and_left_in_place() -> None:
    inbox = Inbox(capacity=4)
    inbox.put(frame("input", -1, microbatch=1))
    inbox.put(frame("gradient", 2))
    assert inbox.first_of([FORWARD, BACKWARD], timeout_seconds=0, late=too_late) == 1
    inbox.put(frame("activation", 0, microbatch=1))
    assert inbox.first_of([FORWARD, BACKWARD], timeout_seconds=0, late=too_late) == 0
    assert inbox.statistics().waiting == 3


def test_waiting_for_options_ends_with_the_first_that_becomes_possible() -> None:
    inbox = Inbox(capacity=4)
    chosen: list[int] = []
    waiter = threading.Thread(
        target=lambda: chosen.append(
            inbox.first_of([FORWARD, BACKWARD], timeout_seconds=LONG, late=too_late)
        )
    )
    waiter.start()
    inbox.put(frame("activation", 0, microbatch=1))
    inbox.put(frame("gradient", 2))
    waiter.join(LONG)
    assert chosen == [1]


def test_waiting_for_options_too_long_names_what_the_first_lacks() -> None:
    inbox = Inbox(capacity=4)
    inbox.put(frame("input", -1, microbatch=1))
    with pytest.raises(DeviceTimeout, match="waited for activation"):
        inbox.first_of([FORWARD, BACKWARD], timeout_seconds=0, late=too_late)


def test_waiting_for_options_raises_what_ended_the_inbox() -> None:
    inbox = Inbox(capacity=4)
    inbox.put(frame("gradient", 2))
    inbox.fail(FleetError("gone"))
    with pytest.raises(FleetError, match="gone"):
        inbox.first_of([BACKWARD], timeout_seconds=0, late=too_late)
