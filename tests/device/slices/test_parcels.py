"""Messages that arrive in part: when waiting for them ends, and what is learnt from that."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from edgeweave.core.clock import VirtualClock
from edgeweave.core.errors import FleetError
from edgeweave.device.slices.parcels import Parcel, ParcelId, Parcels

SENDER = 3
KEY = ParcelId("values", 7, 0)


def parcels(clock: Any = None, *, first: float = 50.0, least: float = 0.25) -> Parcels:
    return Parcels(clock or VirtualClock(), first_seconds=first, least_seconds=least)


def put(box: Parcels, key: ParcelId, count: int, *numbers: int) -> None:
    """Of ``count`` datagrams these arrive, each with its number in it."""
    arrived = torch.tensor(numbers, dtype=torch.int32)
    box.put(key, SENDER, count, arrived, arrived[:, None].expand(-1, 2).float())


def waited(box: Parcels, key: ParcelId = KEY, **options: Any) -> Parcel:
    return box.wait({key: SENDER}, **options)[key]


def numbers(parcel: Parcel) -> list[int]:
    assert parcel.rows.tolist() == [[number, number] for number in parcel.numbers.tolist()]
    return parcel.numbers.tolist()


def test_a_message_is_whole_or_says_which_of_its_datagrams_are_lost() -> None:
    box = parcels()
    put(box, KEY, 3, 0, 1, 2)
    found = waited(box)
    assert (numbers(found), found.outcome) == ([0, 1, 2], "whole")
    put(box, KEY, 3, 0, 2)
    found = waited(box)
    assert (numbers(found), found.outcome) == ([0, 2], "ended")
    assert found.arrived.tolist() == [True, False, True]


def test_a_message_whose_datagrams_are_all_lost_is_waited_for_no_longer() -> None:
    box = parcels()
    put(box, KEY, 3)
    found = waited(box)
    assert (numbers(found), found.count, found.outcome) == ([], 3, "ended")


def test_nothing_is_no_loss() -> None:
    box = parcels()
    put(box, KEY, 0)
    found = waited(box)
    assert (found.count, found.outcome) == (0, "nothing")


def test_nobody_waits_for_a_device_that_is_gone_or_goes() -> None:
    box = parcels()
    leaving = threading.Timer(0.05, box.set_gone, (SENDER, True))
    leaving.start()
    found = waited(box)
    leaving.join()
    assert (found.n_arrived, found.outcome) == (0, "gone")
    later = ParcelId("values", 8, 0)
    assert waited(box, later).outcome == "gone"
    put(box, later, 2, 1)
    assert waited(box, later).outcome == "ended"  # it was on its way


def test_deadlines_are_learnt_by_sender_and_way() -> None:
    clock = VirtualClock()
    box = parcels(clock)
    for number in range(60):
        key = ParcelId("values", number, 0)
        put(box, key, 1, 0)
        waited(box, key)
    for way, seconds in (("values", 0.25), ("gradients", 50.0)):
        key = ParcelId(way, 99, 0)  # type: ignore[arg-type]
        at, found = box._closes(key, SENDER, clock.now(), None)
        assert (at - clock.now(), found.outcome) == (pytest.approx(seconds), "overdue")
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
    put(box, KEY, 2, 0, 1)
    assert box.late == {SENDER: 2}
    after = box._closes(ParcelId("values", 8, 0), SENDER, 0.0, None)[0]
    assert after == 2 * before  # once a message, however many datagrams


def test_messages_of_rounds_that_are_over_are_kept_nowhere() -> None:
    box = parcels()
    put(box, KEY, 2, 0)
    box.forget_before(8)
    put(box, KEY, 2, 1)
    assert box._arrived == {}
    assert box.late == {SENDER: 1}


def test_a_wait_ends_with_the_run() -> None:
    box = parcels()
    ending = threading.Timer(0.05, box.fail, (FleetError("the run is over"),))
    ending.start()
    with pytest.raises(FleetError, match=r"^the run is over$"):
        waited(box)
    ending.join()
