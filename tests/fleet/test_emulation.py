"""What is done to processes and agents when the world of a script changes."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from edgeweave.core.errors import DeviceTimeout
from edgeweave.device import Emulate
from edgeweave.fleet.chaos import LinkDown, Slow, World
from edgeweave.fleet.emulation import Emulation
from edgeweave.net import Links

FIRST = World({"a": 0.5, "b": 1.0}, Links())
DOWN = LinkDown("a", "b").act_on(FIRST)


class Hands:
    """Records what an ``Emulation`` does; devices in ``deaf`` do not answer."""

    def __init__(self, *, tells_links: bool = True) -> None:
        self.signals: list[tuple[str, int]] = []
        self.told: dict[str, Emulate] = {}
        self.started: list[tuple[str, float, Links | None]] = []
        self.own: list[Links] = []
        self.deaf: set[str] = set()
        self.gone: set[str] = set()
        self.emulation = Emulation(
            FIRST,
            send_signal=self._send_signal,
            start=lambda *told: self.started.append(told),
            tell=self._tell,
            reshape=self.own.append,
            tells_links=tells_links,
        )

    def _send_signal(self, device: str, number: int) -> None:
        if device in self.gone:
            raise ProcessLookupError
        self.signals.append((device, number))

    def _tell(self, device: str, message: Emulate) -> None:
        if device in self.deaf:
            raise DeviceTimeout(f"{device} is silent.", device=device)
        self.told[device] = message


def test_a_slower_device_is_told_its_speed_and_no_other_is_told_anything() -> None:
    hands = Hands()
    hands.emulation.change(FIRST, Slow("a", 0.2).act_on(FIRST))
    assert hands.told == {"a": Emulate(speed=0.2, links=None)}
    assert (hands.own, hands.signals) == ([], [])


def test_changed_links_are_told_to_all_and_to_the_coordinator() -> None:
    hands = Hands()
    hands.emulation.change(FIRST, DOWN)
    message = Emulate(speed=None, links=DOWN.links)
    assert hands.told == {"a": message, "b": message}
    assert hands.own == [DOWN.links]


def test_in_kernel_mode_links_are_not_the_agents_business() -> None:
    hands = Hands(tells_links=False)
    hands.emulation.change(FIRST, Slow("a", 0.2).act_on(DOWN))
    assert hands.told == {"a": Emulate(speed=0.2, links=None)}
    assert hands.own == [DOWN.links]


def test_who_stands_still_is_told_when_it_goes_on() -> None:
    hands = Hands()
    stopped = replace(FIRST, stopped=frozenset({"a"}))
    hands.emulation.change(FIRST, stopped)
    hands.emulation.change(stopped, replace(DOWN, stopped=frozenset({"a"})))
    assert list(hands.told) == ["b"]
    hands.emulation.change(replace(DOWN, stopped=frozenset({"a"})), DOWN)
    assert hands.told["a"] == Emulate(speed=None, links=DOWN.links)
    assert hands.signals == [("a", signal.SIGSTOP), ("a", signal.SIGCONT)]


def test_the_dead_are_neither_stopped_nor_continued_nor_told() -> None:
    hands = Hands()
    dead = replace(FIRST, killed=frozenset({"a"}))
    hands.emulation.change(FIRST, dead)
    hands.emulation.change(dead, replace(DOWN, killed=dead.killed, stopped=frozenset({"a"})))
    assert hands.signals == [("a", signal.SIGKILL)]
    assert list(hands.told) == ["b"]


DEAD = replace(FIRST, killed=frozenset({"a"}))


def restarted(hands: Hands, after: World) -> World:
    """``a`` is killed and started again, in a world that has changed meanwhile."""
    hands.emulation.change(FIRST, DEAD)
    hands.emulation.change(DEAD, replace(after, killed=DEAD.killed))
    hands.emulation.change(replace(after, killed=DEAD.killed), after)
    hands.told.clear()
    return after


def test_who_is_killed_no_more_is_started_as_the_world_is_now() -> None:
    hands = Hands()
    restarted(hands, Slow("a", 0.2).act_on(DOWN))
    assert hands.signals == [("a", signal.SIGKILL)]
    assert hands.started == [("a", 0.2, DOWN.links)]
    hands.emulation.came("a")
    assert hands.told == {}  # it was started so


def test_who_was_started_is_told_what_changed_once_it_is_there() -> None:
    hands = Hands()
    world = restarted(hands, FIRST)
    slow = Slow("a", 0.2).act_on(world)
    hands.emulation.change(world, slow)
    hands.emulation.change(slow, LinkDown("a", "b").act_on(slow))
    message = Emulate(speed=None, links=DOWN.links)
    assert hands.told == {"b": message}
    hands.emulation.came("a")
    hands.emulation.came("b")
    assert hands.told == {"a": Emulate(speed=0.2, links=DOWN.links), "b": message}


def test_who_is_killed_again_before_it_is_there_is_told_nothing() -> None:
    hands = Hands()
    world = restarted(hands, FIRST)
    hands.emulation.change(world, replace(DOWN, killed=DEAD.killed))
    hands.emulation.came("a")  # news that comes late
    assert list(hands.told) == ["b"]
    assert hands.signals == [("a", signal.SIGKILL)] * 2


def test_in_kernel_mode_who_is_started_is_not_told_of_links() -> None:
    hands = Hands(tells_links=False)
    restarted(hands, DOWN)
    assert hands.started == [("a", 0.5, None)]


def test_who_is_to_stand_still_is_stopped_as_soon_as_it_is_started() -> None:
    hands = Hands()
    both = replace(DEAD, stopped=frozenset({"a"}))
    stopped = replace(FIRST, stopped=frozenset({"a"}))
    hands.emulation.change(FIRST, both)
    hands.emulation.change(both, stopped)
    hands.emulation.change(stopped, FIRST)
    assert hands.signals == [("a", n) for n in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT)]
    assert [device for device, *_ in hands.started] == ["a"]


def test_a_device_that_does_not_answer_is_logged_and_told_with_the_next_change(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hands = Hands()
    hands.deaf = {"a"}
    slow = Slow("a", 0.2).act_on(FIRST)
    hands.emulation.change(FIRST, slow)
    assert "a was not told of the chaos: a is silent." in caplog.text
    hands.deaf = set()
    hands.emulation.change(slow, Slow("b", 0.1).act_on(slow))
    assert hands.told == {"a": Emulate(0.2, None), "b": Emulate(0.1, None)}


def test_a_signal_to_a_process_that_has_gone_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    hands = Hands()
    hands.gone = {"a"}
    hands.emulation.change(FIRST, replace(FIRST, killed=frozenset({"a"})))
    assert "a: signal 9 came too late, its process has gone" in caplog.text


def test_at_the_end_whoever_stands_still_goes_on() -> None:
    hands = Hands()
    hands.emulation.release(replace(FIRST, stopped=frozenset({"a", "b"}), killed=frozenset({"b"})))
    assert hands.signals == [("a", signal.SIGCONT)]
