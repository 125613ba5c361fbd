"""When scripted trouble happens and when it is undone, on a clock that the test owns."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest

from edgeweave.core.clock import SystemClock, VirtualClock
from edgeweave.core.errors import FleetError
from edgeweave.fleet import Chaos
from edgeweave.fleet.chaos import World
from edgeweave.fleet.chaos_runner import ChaosRunner
from edgeweave.net import Links
from tests.fleet.worlds import DEADLINE_SECONDS

FIRST = World({"a": 0.5, "b": 1.0}, Links())


class Fake:
    """A fleet that is as it was told to be."""

    def __init__(self, chaos: Chaos) -> None:
        self.clock = VirtualClock(100.0)
        self.started = 0.0
        self.world = FIRST
        self.worlds: list[World] = []
        self.runner = ChaosRunner(chaos, FIRST, self.change, self.clock)

    def change(self, before: World, after: World) -> None:
        assert before == self.world
        self.world = after
        self.worlds.append(after)

    def begin(self) -> None:
        """The first step."""
        self.started = self.clock.now()
        self.runner.step_begins(0)

    def until(self, seconds: float) -> None:
        """The clock reaches so many seconds after the first step, and the thread would wake."""
        self.clock.sleep(self.started + seconds - self.clock.now())
        self.runner.tick()

    def log(self) -> list[tuple[str, int]]:
        return [(record.what, record.step) for record in self.runner.log]


def test_events_on_steps_happen_before_their_step_and_once() -> None:
    fake = Fake(Chaos().kill("b", at_step=2).slow("a", 0.1, at_step=1, for_steps=2))
    speeds = []
    for step in (0, 1, 2, 3, 0, 1, 2):  # a second run of the same fleet
        fake.runner.step_begins(step)
        speeds.append(fake.world.speeds["a"])
    assert speeds == [0.5, 0.1, 0.1, 0.5, 0.5, 0.5, 0.5]
    assert fake.world.killed == {"b"}
    assert fake.log() == [("slow a to 0.1", 1), ("kill b", 2), ("end of slow a to 0.1", 3)]


def test_a_restarted_device_is_dead_until_its_time_is_over() -> None:
    fake = Fake(Chaos().restart("a", at_step=1, for_seconds=2.0).restart("b", for_steps=1))
    fake.begin()
    assert fake.world.killed == {"b"}
    fake.runner.step_begins(1)
    assert fake.world.killed == {"a"}
    fake.until(2.0)
    assert fake.world == FIRST
    assert [what for what, _step in fake.log()] == [
        "restart b",
        "end of restart b",
        "restart a",
        "end of restart a",
    ]


def test_a_device_that_is_killed_for_good_is_not_started_by_the_end_of_a_restart() -> None:
    fake = Fake(Chaos().restart("a", for_steps=2).kill("a", at_step=1))
    for step in range(4):
        fake.runner.step_begins(step)
    assert fake.world.killed == {"a"}


def test_a_run_resumed_after_an_event_does_not_see_it() -> None:
    fake = Fake(Chaos().kill("b", at_step=2).slow("a", 0.1, at_step=6))
    for step in (5, 6):
        fake.runner.step_begins(step)
    assert fake.log() == [("slow a to 0.1", 6)]


def test_seconds_count_from_the_first_step() -> None:
    fake = Fake(Chaos().stop("a", at_seconds=1.0, for_seconds=2.0))
    fake.clock.sleep(50.0)
    fake.runner.tick()
    assert fake.log() == []
    fake.begin()
    fake.until(0.9)
    assert not fake.world.stopped
    fake.until(1.0)
    assert fake.world.stopped == {"a"}
    fake.until(2.9)
    assert fake.world.stopped == {"a"}
    fake.until(3.0)
    assert not fake.world.stopped
    assert [record.seconds for record in fake.runner.log] == [1.0, 3.0]


def test_what_is_due_at_second_0_happens_with_the_first_step() -> None:
    fake = Fake(Chaos().stop("a", at_seconds=0.0))
    fake.runner.step_begins(0)
    assert fake.world.stopped == {"a"}


def test_a_late_clock_keeps_the_order_of_the_script() -> None:
    script = Chaos().stop("b", at_seconds=3.0).stop("a", at_seconds=1.0, for_seconds=1.0)
    fake = Fake(script)
    fake.begin()
    fake.until(10.0)
    assert [what for what, _step in fake.log()] == ["stop a", "end of stop a", "stop b"]
    assert [world.stopped for world in fake.worlds] == [{"a"}, set(), {"b"}]


def test_what_ends_and_begins_with_one_step_happens_one_after_the_other() -> None:
    fake = Fake(Chaos().slow("a", 0.1, at_step=1, for_steps=1).slow("a", 0.2, at_step=2))
    for step in range(3):
        fake.runner.step_begins(step)
    assert [world.speeds["a"] for world in fake.worlds] == [0.1, 0.5, 0.2]


class Ticking(VirtualClock):
    """A second passes with every look at it."""

    def now(self) -> float:
        self.sleep(1.0)
        return super().now()


def test_the_first_step_begins_at_second_0_however_long_a_look_at_the_clock_takes() -> None:
    runner = ChaosRunner(Chaos().kill("b", at_step=0), FIRST, lambda *_: None, Ticking())
    runner.step_begins(0)
    assert [record.seconds for record in runner.log] == [0.0]


def test_an_event_on_a_step_may_end_on_the_clock_and_the_other_way_round() -> None:
    script = Chaos().stop("a", at_step=1, for_seconds=2.0).slow("b", 0.2, at_seconds=1, for_steps=2)
    fake = Fake(script)
    fake.begin()
    fake.until(1.0)
    fake.runner.step_begins(1)
    assert (fake.world.stopped, fake.world.speeds["b"]) == ({"a"}, 0.2)
    fake.until(3.0)
    assert not fake.world.stopped
    fake.runner.step_begins(2)
    assert fake.world == FIRST


def test_undoing_an_act_keeps_what_another_one_changed() -> None:
    script = (
        Chaos()
        .slow("a", 0.4, at_step=1, for_steps=2)
        .slow("a", 0.1, at_step=2)
        .link_down("a", "b", at_step=1, for_steps=1)
        .drop("a", "b", 0.2, at_step=1)
    )
    fake = Fake(script)
    for step in range(4):
        fake.runner.step_begins(step)
    assert fake.world.speeds["a"] == 0.1
    shape = fake.world.links.shape("a", "b")
    assert (shape.up, shape.loss) == (True, 0.2)


def test_the_same_script_gives_the_same_log() -> None:
    script = Chaos().kill("b", at_step=2).slow("a", 0.1, at_step=1, for_steps=2)
    logs = []
    for _repetition in range(2):
        fake = Fake(script)
        for step in range(5):
            fake.runner.step_begins(step)
        logs.append(fake.log())
    assert logs[0] == logs[1] != []


def test_the_thread_lets_events_happen_on_a_real_clock_and_ends_with_its_block() -> None:
    undone = threading.Event()

    def change(before: World, after: World) -> None:
        if before.stopped and not after.stopped:
            undone.set()

    script = Chaos().stop("a", at_seconds=0.01, for_seconds=0.01)
    with ChaosRunner(script, FIRST, change, SystemClock()) as runner:
        runner.step_begins(0)
        assert undone.wait(DEADLINE_SECONDS)
    assert [record.what for record in runner.log] == ["stop a", "end of stop a"]
    assert "chaos" not in {thread.name for thread in threading.enumerate()}


def test_a_script_on_steps_alone_needs_no_thread() -> None:
    with ChaosRunner(Chaos().kill("a", at_step=1), FIRST, lambda *_: None, VirtualClock()):
        assert "chaos" not in {thread.name for thread in threading.enumerate()}


class Refusing:
    """A fleet that cannot be changed."""

    def __init__(self) -> None:
        self.tried = threading.Event()
        script = Chaos().stop("a", at_seconds=0.01).kill("b", at_seconds=0.01)
        self.runner = ChaosRunner(script, FIRST, self.change, SystemClock())

    def change(self, before: World, after: World) -> None:
        self.tried.set()
        raise OSError("no such process")

    def fail(self) -> None:
        """The first step, and the failure that follows on the thread."""
        self.runner.step_begins(0)
        assert self.tried.wait(DEADLINE_SECONDS)
        self.runner._thread.join(DEADLINE_SECONDS)


def test_a_change_that_fails_on_the_thread_is_told_with_the_next_step() -> None:
    refusing = Refusing()
    with refusing.runner as runner:
        refusing.fail()
        with pytest.raises(FleetError) as failed:
            runner.step_begins(1)
    assert str(failed.value) == (
        "the chaos of this fleet failed: no such process (it was to 'stop a'; nothing scripted "
        "after that happens). Mend that or leave the event out, and start the fleet anew."
    )
    assert isinstance(failed.value.__cause__, OSError)
    assert [record.what for record in runner.log] == ["stop a"]


def test_a_change_that_fails_after_the_last_step_is_told_on_leaving() -> None:
    refusing = Refusing()
    with pytest.raises(FleetError, match="failed: no such process"), refusing.runner:
        refusing.fail()


def test_a_change_that_fails_does_not_hide_the_error_of_its_block() -> None:
    refusing = Refusing()

    def body(stack: ExitStack) -> None:
        stack.enter_context(refusing.runner)
        refusing.fail()
        raise KeyError

    with pytest.raises(KeyError), ExitStack() as stack:
        body(stack)


def test_a_change_that_fails_does_not_hide_the_error_of_a_block_that_closes_its_stack() -> None:
    """As a fleet does: the runner is not told of the error."""
    refusing = Refusing()

    def body() -> None:
        stack = ExitStack()
        try:
            stack.enter_context(refusing.runner)
            refusing.fail()
            raise KeyError
        except KeyError:
            stack.close()
            raise

    with pytest.raises(KeyError):
        body()
