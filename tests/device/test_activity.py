"""What a stage says of its compute thread, on a clock that the test owns."""

from __future__ import annotations

import pytest

from edgeweave.core.clock import VirtualClock
from edgeweave.device import COORDINATOR, FrameId, Pulse
from edgeweave.device.activity import Activity
from tests.device.stages.examples import assignment


class Thread:
    """The compute thread, played by the test."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.awaited: FrameId | None = None
        self.activity = Activity(assignment(1), self.clock, lambda: self.awaited)

    def compute(self, kind: str, seconds: float) -> None:
        with self.activity.of("compute", kind, 0):
            self.clock.sleep(seconds)


def test_a_wait_names_the_frame_and_whom_it_comes_from() -> None:
    thread = Thread()
    with thread.activity.of("wait", "wait", 3):
        thread.awaited = FrameId("activation", 0, 7, 3)
        thread.clock.sleep(2.0)
        assert thread.activity.pulse(7) == Pulse(
            "run-1", 7, "waits", "the activation of microbatch 3 from stage 0 on pi-a", 2.0
        )


def test_between_rounds_a_stage_idles() -> None:
    thread = Thread()
    with thread.activity.of("idle", "idle", -1):
        thread.awaited = FrameId("begin", COORDINATOR, 0, 0)
        assert thread.activity.pulse(0).doing == "idles"


def test_a_wait_between_two_frames_is_work() -> None:
    thread = Thread()
    with thread.activity.of("wait", "wait", -1):
        assert thread.activity.pulse(0).doing == "works"


def test_an_action_says_its_number_its_time_and_what_such_ones_took_before() -> None:
    thread = Thread()
    thread.compute("forward", 0.8)
    thread.compute("backward", 5.0)
    thread.compute("forward", 1.6)
    with thread.activity.of("compute", "forward", 2):
        thread.clock.sleep(3.0)
        pulse = thread.activity.pulse(1)
    assert (pulse.doing, pulse.what) == ("computes", "the forward of microbatch 2")
    assert (pulse.action, pulse.seconds) == (4, pytest.approx(3.0))
    assert pulse.usual_seconds == pytest.approx(0.8 + (1.6 - 0.8) / 8)
    assert thread.activity.pulse(1).doing == "works"


def test_what_was_never_done_before_has_no_usual_time() -> None:
    thread = Thread()
    with thread.activity.of("compute", "update", -1):
        pulse = thread.activity.pulse(0)
    assert (pulse.what, pulse.usual_seconds) == ("the update", None)


def test_an_action_that_fails_counts_and_is_over() -> None:
    thread = Thread()
    with pytest.raises(RuntimeError), thread.activity.of("compute", "forward", 0):
        raise RuntimeError
    assert thread.activity.pulse(0).doing == "works"
    assert thread.activity.pulse(0).action == 1
