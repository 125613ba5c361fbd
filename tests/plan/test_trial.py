"""A change of plan on trial: it stays unless steps got longer than they were."""

from __future__ import annotations

from statistics import median

from hypothesis import given
from hypothesis import strategies as st

from edgeweave.plan import TRIAL_STEPS, Decision, Departure, Trial
from tests.plan.worlds import equal_costs, plan_of

OLD = plan_of(equal_costs(4, 2), ("d0", "d1"), (0, 2, 4))
NEW = plan_of(equal_costs(4, 2), ("d0", "d1"), (0, 3, 4))
CHANGE = Decision(
    step=40,
    verdict="change",
    departures=(Departure("d1", 2.0),),
    old=OLD,
    new=NEW,
    old_step_seconds=10.0,
    new_step_seconds=5.0,
    move_bytes=7,
    move_seconds=1.0,
    steps_left=100,
)


def judged(before: list[float], after: list[float]) -> list[Decision]:
    trial = Trial(CHANGE, before)
    found = [trial.observe(41 + n, seconds, steps_left=99 - n) for n, seconds in enumerate(after)]
    return [each for each in found if each is not None]


def test_steps_that_got_longer_lead_back_to_the_old_plan() -> None:
    (back,) = judged([1.0] * 20, [1.5] * 20)
    assert (back.verdict, back.changes) == ("worse", True)
    assert (back.old, back.new) == (NEW, OLD)
    assert (back.step, back.steps_left) == (40 + TRIAL_STEPS, 100 - TRIAL_STEPS)
    assert (back.old_step_seconds, back.new_step_seconds) == (15.0, 10.0)
    assert back.line() == (
        "step 48: d1 takes 2.00 times as long as predicted; a step takes 15 s with the new plan "
        "and took 10 s with the old one: back to that."
    )


def test_steps_that_got_shorter_or_stayed_keep_the_new_plan() -> None:
    assert judged([1.0] * 8, [0.5] * 20) == []
    assert judged([1.0] * 8, [1.0] * 20) == []
    assert judged([1.0] * 8, [1.02] * 20) == []


def test_a_few_slow_steps_are_no_reason_to_go_back() -> None:
    assert judged([1.0] * 8, [9.0] * 3 + [0.9] * 5) == []


def test_only_the_last_steps_of_the_old_plan_count() -> None:
    assert judged([9.0] * 50 + [1.0] * TRIAL_STEPS, [1.5] * TRIAL_STEPS) != []
    assert judged([1.0] * 50 + [9.0] * TRIAL_STEPS, [1.5] * TRIAL_STEPS) == []


def test_without_steps_to_compare_with_nothing_is_judged() -> None:
    assert Trial(CHANGE, []).is_over
    assert judged([], [9.0] * 20) == []


seconds = st.lists(st.floats(0.01, 100.0), min_size=1, max_size=30)


@given(seconds, seconds)
def test_the_verdict_is_that_of_the_medians_and_falls_once(
    before: list[float], after: list[float]
) -> None:
    found = judged(before, after)
    worse = len(after) >= TRIAL_STEPS and median(after[:TRIAL_STEPS]) > 1.02 * median(
        before[-TRIAL_STEPS:]
    )
    assert len(found) == int(worse)
    assert all(each.step == 40 + TRIAL_STEPS for each in found)
