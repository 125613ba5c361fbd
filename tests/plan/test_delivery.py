"""Losing messages or waiting for them, by what both were measured to take and to teach."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.plan import DeliveryTrial, StepSeen, choose_delivery

SECONDS = st.floats(1e-3, 10)
SHARES = st.floats(0.05, 1.0)


def steps(seconds: float, square: float, n: int = 5) -> list[StepSeen]:
    return [StepSeen(seconds, square)] * n


@pytest.mark.parametrize(
    ("tolerant_seconds", "reliable_seconds", "kept", "expected"),
    [
        (0.1, 0.1, 0.5, "reliable"),  # waiting costs nothing, and losses half
        (0.1, 0.3, 0.5, "tolerant"),  # waiting costs more than losses
        (0.1, 0.15, 0.5, "reliable"),  # losses cost more than waiting
        (0.1, 0.1, 1.0, "tolerant"),  # nothing is lost: the present way stays
        (0.1, 0.105, 0.9, "tolerant"),  # not clearly better
    ],
)
def test_reliable_is_taken_where_losses_hurt_more_than_waiting(
    tolerant_seconds: float, reliable_seconds: float, kept: float, expected: str
) -> None:
    choice = choose_delivery(
        steps(tolerant_seconds, 1 / kept), steps(reliable_seconds, 1.0), present="tolerant"
    )
    assert choice.delivery == expected
    assert choice.kept == pytest.approx(kept)


@given(SECONDS, SECONDS, SHARES)
def test_a_choice_is_never_clearly_worse_than_the_other_way(
    tolerant: float, reliable: float, kept: float
) -> None:
    teaches = {"tolerant": kept / tolerant, "reliable": 1 / reliable}
    for present in ("tolerant", "reliable"):
        choice = choose_delivery(steps(tolerant, 1 / kept), steps(reliable, 1.0), present=present)
        assert teaches[choice.delivery] >= max(teaches.values()) / 1.1001


def test_one_hiccup_decides_nothing() -> None:
    slow = [*steps(0.1, 1.0), StepSeen(60.0, 1.0)]
    assert choose_delivery(slow, steps(0.1, 1.0), present="tolerant").delivery == "tolerant"


def driven(n_steps: int, tolerant: StepSeen, reliable: StepSeen) -> tuple[DeliveryTrial, list[str]]:
    trial, ways = DeliveryTrial(steps=4, settling=2, kept_steps=10), []
    for _ in range(n_steps):
        ways.append(trial.delivery)
        trial = trial.stepped(tolerant if trial.delivery == "tolerant" else reliable)
    return trial, ways


def test_a_trial_tries_both_then_keeps_the_better_and_tries_again() -> None:
    trial, ways = driven(34, StepSeen(0.1, 2.0), StepSeen(0.11, 1.0))
    tried = ["tolerant"] * 6 + ["reliable"] * 6
    assert ways == [*tried, *["reliable"] * 10, *tried]
    assert [choice.delivery for choice in trial.choices] == ["reliable"] * 2


def test_steps_that_settle_are_not_looked_at() -> None:
    trial = DeliveryTrial(steps=2, settling=2)
    for number in range(8):
        wild = number % 4 < 2
        trial = trial.stepped(StepSeen(99.0 if wild else 0.1, 99.0 if wild else 1.0))
    (choice,) = trial.choices
    assert (choice.tolerant_seconds, choice.reliable_seconds, choice.kept) == (0.1, 0.1, 1.0)


def test_a_choice_says_what_it_is_made_of() -> None:
    choice = choose_delivery(steps(0.1, 2.0), steps(0.12, 1.0), present="tolerant")
    assert choice.line() == (
        "reliable: a step takes 100.0 ms where messages may be lost and 120.0 ms where they are "
        "sent again, and losses leave 50% of what it teaches"
    )
