"""The throttle: exact arithmetic on a clock and a CPU counter that the test owns."""

from __future__ import annotations

import pytest

from edgeweave.core.clock import VirtualClock
from edgeweave.core.errors import ConfigError
from edgeweave.device.throttle import Throttle


class Machine:
    """A host on which work takes wall and CPU time, and a sleep may end late."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.cpu = 0.0
        self.oversleep = 0.0
        self.slept: list[float] = []
        real_sleep = self.clock.sleep

        def sleep(seconds: float) -> None:
            self.slept.append(seconds)
            real_sleep(max(seconds, 0.0) + (self.oversleep if seconds > 0 else 0.0))

        self.clock.sleep = sleep  # type: ignore[method-assign]
        self._run = real_sleep

    def throttle(self, speed: float | None) -> Throttle:
        return Throttle(speed, self.clock, cpu_seconds=lambda: self.cpu)

    def work(self, wall_seconds: float, cpu_seconds: float | None = None) -> None:
        self._run(wall_seconds)
        self.cpu += wall_seconds if cpu_seconds is None else cpu_seconds


def paced(machine: Machine, throttle: Throttle, key: str, wall: float, cpu: float) -> float:
    """How long a piece of work took, paced."""
    started = machine.clock.now()
    with throttle.pace(key):
        machine.work(wall, cpu)
    return machine.clock.now() - started


def test_work_that_was_rehearsed_takes_its_median_time_at_that_speed() -> None:
    machine = Machine()
    throttle = machine.throttle(0.25)
    throttle.rehearse("forward", [9.0, 1.0, 2.0])
    assert paced(machine, throttle, "forward", wall=2.5, cpu=2.4) == 8.0
    assert machine.slept == [5.5]


def test_work_that_was_not_rehearsed_takes_its_own_cpu_time_at_that_speed() -> None:
    machine = Machine()
    throttle = machine.throttle(0.5)
    assert paced(machine, throttle, "new", wall=3.0, cpu=2.0) == 4.0


def test_work_that_waited_for_a_core_is_not_slowed_twice() -> None:
    machine = Machine()
    throttle = machine.throttle(0.5)
    assert paced(machine, throttle, "new", wall=5.0, cpu=2.0) == 5.0
    assert machine.slept == [-1.0]


def test_a_late_end_is_made_up_for_in_the_next_piece() -> None:
    machine = Machine()
    throttle = machine.throttle(0.5)
    throttle.rehearse("forward", [1.0])
    machine.oversleep = 0.0078125
    assert paced(machine, throttle, "forward", wall=1.0, cpu=1.0) == 2.0078125
    machine.oversleep = 0.0
    assert paced(machine, throttle, "forward", wall=1.0, cpu=1.0) == 2.0 - 0.0078125
    assert paced(machine, throttle, "forward", wall=1.0, cpu=1.0) == 2.0


def test_debts_are_bounded_so_that_a_pause_is_no_licence_to_run_ahead() -> None:
    machine = Machine()
    throttle = machine.throttle(0.5)
    throttle.rehearse("forward", [1.0])
    assert paced(machine, throttle, "forward", wall=60.0, cpu=1.0) == 60.0
    assert paced(machine, throttle, "forward", wall=1.0, cpu=1.0) == pytest.approx(1.95)
    assert paced(machine, throttle, "forward", wall=1.0, cpu=1.0) == pytest.approx(2.0)


def test_a_real_device_is_not_held_back() -> None:
    machine = Machine()
    throttle = machine.throttle(None)
    throttle.rehearse("forward", [100.0])
    assert paced(machine, throttle, "forward", wall=1.0, cpu=1.0) == 1.0
    assert machine.slept == []


def test_a_real_device_measures_wall_time_and_an_emulated_one_cpu_time() -> None:
    machine = Machine()
    real, emulated = machine.throttle(None).stopwatch(), machine.throttle(0.5).stopwatch()
    machine.work(3.0, 2.0)
    assert (real(), emulated()) == (3.0, 2.0)


@pytest.mark.parametrize(("speed", "expected"), [(None, 2.0), (1.0, 2.0), (0.25, 8.0)])
def test_slowed_says_what_this_device_takes(speed: float | None, expected: float) -> None:
    assert Machine().throttle(speed).slowed(2.0) == expected


def test_an_error_in_the_work_is_not_slept_on() -> None:
    machine = Machine()
    throttle = machine.throttle(0.5)
    with pytest.raises(KeyError), throttle.pace("forward"):
        raise KeyError("the stage failed")
    assert machine.slept == []


@pytest.mark.parametrize("speed", [0.0, -0.5, 1.01, float("nan"), float("inf")])
def test_a_speed_is_a_fraction_of_a_core(speed: float) -> None:
    with pytest.raises(ConfigError) as refused:
        Throttle(speed, VirtualClock())
    assert str(refused.value) == (
        f"speed is a fraction of one core, above 0 and at most 1 (got {speed}). "
        "Emulate a faster device on a faster host."
    )


def test_a_device_can_become_slower_while_it_works() -> None:
    machine = Machine()
    throttle = machine.throttle(0.5)
    throttle.rehearse("forward", [1.0])
    assert paced(machine, throttle, "forward", wall=1.0, cpu=1.0) == 2.0
    throttle.change_speed(0.125)
    assert paced(machine, throttle, "forward", wall=1.0, cpu=1.0) == 8.0


def test_a_real_device_does_not_change_its_speed() -> None:
    with pytest.raises(ConfigError) as refused:
        Machine().throttle(None).change_speed(0.5)
    assert str(refused.value) == (
        "only an emulated device changes its speed (asked for 0.5). Start it with a speed."
    )


def test_work_on_another_thread_is_slowed_as_much_and_apart() -> None:
    machine = Machine()
    throttle = machine.throttle(0.5)
    throttle.rehearse("forward", [1.0])
    other = throttle.on_another_thread()
    assert paced(machine, other, "forward", wall=3.0, cpu=2.0) == 4.0  # its own cost: 2 s
    assert paced(machine, throttle, "forward", wall=60.0, cpu=1.0) == 60.0
    assert paced(machine, other, "encode", wall=1.0, cpu=1.0) == 2.0  # no debt of the other one


def test_another_thread_becomes_slower_with_the_device() -> None:
    machine = Machine()
    throttle = machine.throttle(0.5)
    other = throttle.on_another_thread()
    third = other.on_another_thread()
    throttle.change_speed(0.125)
    assert (other.speed, third.speed) == (0.125, 0.125)
    assert paced(machine, other, "encode", wall=1.0, cpu=1.0) == 8.0
    assert paced(machine, third, "decode", wall=1.0, cpu=1.0) == 8.0
    assert other.slowed(1.0) == 8.0
    throttle.change_speed(1.0)
    assert paced(machine, other, "encode", wall=1.0, cpu=1.0) == 1.0


def test_another_thread_of_a_real_device_is_not_held_back() -> None:
    machine = Machine()
    other = machine.throttle(None).on_another_thread()
    assert paced(machine, other, "encode", wall=1.0, cpu=1.0) == 1.0
    assert machine.slept == []
    with pytest.raises(ConfigError, match="only an emulated device changes its speed"):
        other.change_speed(0.5)
