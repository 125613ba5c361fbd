"""The estimator of deadlines: its properties, and RFC 6298 as another would write it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.train.failures.deadlines import Deadline, Deadlines

SECONDS = st.floats(0.0, 1e4, allow_nan=False)
WAITS = st.lists(SECONDS, min_size=1, max_size=60)


def learnt(waits: list[float], start: Deadline | None = None) -> Deadline:
    deadline = start or Deadline()
    for wait in waits:
        deadline = deadline.heard(wait)
    return deadline


@given(WAITS)
def test_it_is_the_timeout_of_rfc_6298_with_a_lower_floor(waits: list[float]) -> None:
    srtt, rttvar = waits[0], waits[0] / 2
    for r in waits[1:]:
        rttvar = (1 - 1 / 4) * rttvar + 1 / 4 * abs(srtt - r)
        srtt = (1 - 1 / 8) * srtt + 1 / 8 * r
    assert learnt(waits).seconds == pytest.approx(max(srtt + 4 * rttvar, 0.05))


@given(WAITS, SECONDS)
def test_after_a_wait_that_was_too_long_the_next_deadline_is_longer_than_it(
    waits: list[float], last: float
) -> None:
    before = learnt(waits)
    if last > before.seconds:
        assert before.heard(last).seconds >= last * (1 - 1e-12)


@given(WAITS)
def test_a_false_suspicion_makes_more_patient_but_not_without_end(waits: list[float]) -> None:
    deadlines = [learnt(waits)]
    for _ in range(10):
        deadlines.append(deadlines[-1].was_too_short())
    assert all(a.seconds <= b.seconds for a, b in pairwise(deadlines))
    assert deadlines[1].seconds == 2 * deadlines[0].seconds
    assert deadlines[-1].seconds == 8 * deadlines[0].seconds


@given(st.floats(0.1, 100.0))
def test_waits_that_are_all_alike_bring_the_deadline_down_to_them(wait: float) -> None:
    start = Deadline().heard(10 * wait).was_too_short()
    found = [learnt([wait] * n, start).seconds for n in (50, 100, 400)]
    assert found[0] > found[1] > found[2]
    assert found[2] == pytest.approx(wait, rel=0.01)


@given(WAITS, st.floats(0.1, 10.0))
def test_the_unit_of_time_does_not_matter(waits: list[float], factor: float) -> None:
    one, other = learnt(waits), learnt([factor * each for each in waits])
    assert other.mean_seconds == pytest.approx(factor * one.mean_seconds)
    assert other.deviation_seconds == pytest.approx(factor * one.deviation_seconds)


@pytest.mark.parametrize("wait", [-1e-9, float("nan"), float("inf")])
def test_what_is_no_duration_is_refused(wait: float) -> None:
    with pytest.raises(ValueError, match=r"^a wait takes 0 seconds or more \(got "):
        Deadline().heard(wait)


def test_nothing_known_is_a_second() -> None:
    assert Deadline().seconds == 1.0


def of(**kinds: list[float]) -> Deadlines:
    deadlines = Deadlines(slack_seconds=1.0, unknown_seconds=15.0)
    for kind, waits in kinds.items():
        for wait in waits:
            deadlines = deadlines.heard(kind, wait)
    return deadlines


def test_kinds_of_waits_are_learnt_apart_and_steps_forget_none() -> None:
    deadlines = of(first=[0.8] * 40, next=[0.1] * 40)
    for _ in range(100):
        deadlines = deadlines.stepped(2.0)
    assert deadlines.suspect_seconds("first") == pytest.approx(0.8, rel=0.01)
    assert deadlines.suspect_seconds("next") == pytest.approx(0.1, rel=0.01)
    assert deadlines.was_too_short("next").suspect_seconds("first") == pytest.approx(0.8, rel=0.01)


def test_while_nothing_is_known_a_silent_device_has_the_time_of_a_request() -> None:
    deadlines = of()
    assert deadlines.step_seconds is None
    assert (deadlines.suspect_seconds("first"), deadlines.give_up_seconds()) == (1.0, 15.0)


def test_before_the_first_step_is_over_the_longest_wait_stands_for_it() -> None:
    assert of(first=[0.8], next=[0.1]).step_seconds == 0.8


@given(st.lists(SECONDS, max_size=20), st.lists(SECONDS, max_size=20), st.integers(0, 5))
def test_half_of_what_there_is_remains_for_pulses(
    waits: list[float], steps: list[float], n_false: int
) -> None:
    deadlines = of(next=waits)
    for seconds in steps:
        deadlines = deadlines.stepped(seconds)
    for _ in range(n_false):
        deadlines = deadlines.was_too_short("next")
    give_up = deadlines.give_up_seconds()
    assert 0 < deadlines.suspect_seconds("next") <= give_up / 2
    if deadlines.step_seconds is not None:
        assert give_up == pytest.approx(2 * deadlines.step_seconds + 0.9)
