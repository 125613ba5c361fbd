"""Messages that arrive in part: when waiting for them ends, and what is learnt from that."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from edgeweave.core.clock import VirtualClock
from edgeweave.core.errors import FleetError
from edgeweave.device.parcels import Parcel, ParcelId, Parcels

SENDER = 3
KEY = ParcelId("values", 7, 0)


def parcels(clock: Any = None, *, first: float = 50.0, least: float = 0.25) -> Parcels:
    return Parcels(clock or VirtualClock(), first_seconds=first, least_seconds=least)


def part(value: float) -> torch.Tensor:
    return torch.full((2,), value)


def waited(box: Parcels, key: ParcelId = KEY, **options: Any) -> Parcel:
    return box.wait({key: SENDER}, **options)[key]


def values(parcel: Parcel) -> list[float | None]:
    return [None if each is None else float(each[0]) for each in parcel.parts]


def test_a_message_is_there_with_its_last_datagram_in_any_order() -> None:
    box = parcels()
    for index in (2, 0, 1):
        box.put(KEY, SENDER, index, 3, part(index))
    found = waited(box)
    assert (values(found), found.outcome) == ([0.0, 1.0, 2.0], "whole")


def test_an_end_tells_what_is_lost_at_once() -> None:
    box = parcels()
    box.put(KEY, SENDER, 0, 3, part(5))
    box.end(KEY, SENDER, 3)
    found = waited(box)
    assert (values(found), found.outcome) == ([5.0, None, None], "ended")


def test_an_end_of_nothing_is_no_loss() -> None:
    box = parcels()
    box.end(KEY, SENDER, 0)
    found = waited(box)
    assert (found.parts, found.outcome) == ((), "nothing")


def test_nobody_waits_for_a_device_that_is_gone_or_goes() -> None:
    box = parcels()
    box.put(KEY, SENDER, 0, 2, part(1))
    leaving = threading.Timer(0.05, box.set_gone, (SENDER, True))
    leaving.start()
    found = waited(box)
    leaving.join()
    assert (values(found), found.outcome) == ([1.0, None], "gone")
    assert waited(box, ParcelId("values", 8, 0)).outcome == "gone"


def test_deadlines_are_learnt_by_sender_and_way() -> None:
    clock = VirtualClock()
    box = parcels(clock)
    for number in range(60):
        key = ParcelId("values", number, 0)
        box.put(key, SENDER, 0, 1, part(0))
        waited(box, key)
    for way, seconds in (("values", 0.25), ("gradients", 50.0)):
        key = ParcelId(way, 99, 0)  # type: ignore[arg-type]
        at, outcome = box._closes(key, SENDER, clock.now(), None)
        assert (at - clock.now(), outcome) == (pytest.approx(seconds), "overdue")
    at, _ = box._closes(ParcelId("values", 99, 0), SENDER + 1, clock.now(), None)
    assert at - clock.now() == pytest.approx(50.0)


def test_what_is_overdue_is_given_up_and_coming_later_it_makes_waits_longer() -> None:
    clock = VirtualClock()
    box = parcels(clock, first=0.0)
    assert waited(box).outcome == "overdue"
    assert box.overdue == {SENDER: 1}
    box = parcels(clock, first=1.0)
    clock.sleep(2.0)
    before = box._closes(KEY, SENDER, 0.0, None)[0]
    assert waited(box, seconds=0.0).outcome == "overdue"
    box.put(KEY, SENDER, 0, 2, part(0))
    box.put(KEY, SENDER, 1, 2, part(0))
    assert box.late == {SENDER: 2}
    after = box._closes(ParcelId("values", 8, 0), SENDER, 0.0, None)[0]
    assert after == 2 * before  # once a message, however many datagrams


def test_a_datagram_behind_its_end_teaches_how_long_to_wait_after_ends() -> None:
    clock = VirtualClock()
    box = parcels(clock)
    box.end(KEY, SENDER, 1)
    assert waited(box).outcome == "ended"
    clock.sleep(0.02)
    box.put(KEY, SENDER, 0, 1, part(0))
    later = ParcelId("values", 8, 0)
    box.end(later, SENDER, 1)
    at, outcome = box._closes(later, SENDER, clock.now(), None)
    assert (at - clock.now(), outcome) == (pytest.approx(0.02), "ended")


def test_messages_of_rounds_that_are_over_are_kept_nowhere() -> None:
    box = parcels()
    box.put(KEY, SENDER, 0, 2, part(0))
    box.forget_before(8)
    box.put(KEY, SENDER, 1, 2, part(0))
    box.end(KEY, SENDER, 2)
    assert box._boxes == {}
    assert box.late == {SENDER: 1}


def test_a_wait_ends_with_the_run() -> None:
    box = parcels()
    ending = threading.Timer(0.05, box.fail, (FleetError("the run is over"),))
    ending.start()
    with pytest.raises(FleetError, match=r"^the run is over$"):
        waited(box)
    ending.join()
