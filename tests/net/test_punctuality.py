"""Deliveries come to be on time, whatever the thread that makes them does now and then."""

from __future__ import annotations

import random
from statistics import fmean

import pytest

from edgeweave.net._punctuality import Punctuality


def test_a_thread_that_wakes_up_late_delivers_on_time_on_average() -> None:
    chance, punctuality, late = random.Random(0), Punctuality(), []
    for _ in range(2000):
        late.append(chance.uniform(5e-5, 2.5e-4) - punctuality.early_seconds)
        punctuality.learn(late[-1])
    assert fmean(late[:10]) > 5e-5
    assert fmean(late[200:]) == pytest.approx(0, abs=5e-6)


def test_a_receiver_that_holds_one_message_up_makes_no_other_early() -> None:
    punctuality = Punctuality()
    punctuality.learn(5.0)
    assert punctuality.early_seconds < 2e-5


def test_nothing_is_early_by_more_than_threads_are_late() -> None:
    punctuality = Punctuality()
    for _ in range(500):
        punctuality.learn(1.0)
    assert punctuality.early_seconds == pytest.approx(3e-4)
    for _ in range(500):
        punctuality.learn(-1.0)
    assert punctuality.early_seconds == 0
