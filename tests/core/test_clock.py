"""Clocks: the system's moves by itself, the virtual one when told."""

from __future__ import annotations

from edgeweave.core.clock import Clock, SystemClock, VirtualClock


def test_the_virtual_clock_starts_where_it_is_told() -> None:
    assert VirtualClock(5.0).now() == 5.0


def test_the_virtual_clock_moves_by_what_is_slept() -> None:
    clock = VirtualClock()
    clock.sleep(0.5)
    clock.sleep(0.25)
    assert clock.now() == 0.75


def test_the_virtual_clock_never_runs_backwards() -> None:
    clock = VirtualClock(1.0)
    clock.sleep(-3.0)
    assert clock.now() == 1.0


def test_the_system_clock_never_runs_backwards() -> None:
    clock: Clock = SystemClock()
    before = clock.now()
    clock.sleep(-1.0)
    clock.sleep(0.0)
    assert clock.now() >= before
