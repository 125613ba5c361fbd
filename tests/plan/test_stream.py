"""The order of a schedule without flush: its bound, its versions, and that it never gets stuck."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.plan.schedule import Backward, Forward, Update, most_in_flight
from edgeweave.plan.stream import Due, Learn, Stream, older_versions

streams = st.lists(st.integers(1, 6), min_size=1, max_size=7)
places = st.integers(1, 5)
extras = st.integers(0, 3)
Choose = Callable[[Sequence[Due]], Due]


def done_in_order(stage: int, n_stages: int, steps: list[int], extra: int = 0) -> list[Due]:
    """All actions when nothing is ever late."""
    return done(stage, n_stages, steps, extra, choose=lambda choices: choices[0])


def done(stage: int, n_stages: int, steps: list[int], extra: int, choose: Choose) -> list[Due]:
    stream, left, found = Stream(stage, n_stages, extra_in_flight=extra), list(steps), []
    while choices := stream.choices():
        due = choose(choices)
        if isinstance(due.action, Learn):
            if left:
                stream.begin_step(left.pop(0))
            else:
                stream.end()
            continue
        stream.take(due)
        found.append(due)
    return found


def letters(found: list[Due]) -> str:
    short = {Forward: "F", Backward: "B", Update: "U"}
    return " ".join(
        f"{short[type(due.action)]}{due.step}"
        + (f".{due.action.microbatch}" if isinstance(due.action, Forward | Backward) else "")
        for due in found
    )


def test_it_runs_as_drawn() -> None:
    first = "F0.0 F0.1 B0.0 F0.2 B0.1 F1.0 B0.2 U0 F1.1 B1.0 F1.2 B1.1 B1.2 U1"
    last = "F0.0 B0.0 F0.1 B0.1 F0.2 B0.2 U0 F1.0 B1.0 F1.1 B1.1 F1.2 B1.2 U1"
    assert letters(done_in_order(0, 2, [3, 3])) == first
    assert letters(done_in_order(1, 2, [3, 3])) == last


def test_one_stage_does_what_everybody_does_alone() -> None:
    assert letters(done_in_order(0, 1, [2, 1])) == "F0.0 B0.0 F0.1 B0.1 U0 F1.0 B1.0 U1"


@given(places, streams, extras)
def test_every_microbatch_goes_forward_then_backward_and_every_step_ends_with_its_update(
    n_stages: int, steps: list[int], extra: int
) -> None:
    expected = [(step, m) for step, n in enumerate(steps) for m in range(n)]
    for stage in range(n_stages):
        found = done_in_order(stage, n_stages, steps, extra)
        for kind in (Forward, Backward):
            taken = [(d.step, d.action.microbatch) for d in found if isinstance(d.action, kind)]
            assert taken == expected
        for before, due in pairwise(found):
            if isinstance(due.action, Update):
                assert before == Due(due.step, Backward(steps[due.step] - 1))
        assert sum(isinstance(due.action, Update) for due in found) == len(steps)


@given(places, streams, extras, st.randoms(use_true_random=False))
def test_who_is_late_changes_no_version_and_no_bound(
    n_stages: int, steps: list[int], extra: int, chance: random.Random
) -> None:
    """What a forward sees is counted, with any choice at every moment, and equals the formula."""
    for stage in range(n_stages):
        found = done(stage, n_stages, steps, extra, choose=chance.choice)
        stream = Stream(stage, n_stages, extra_in_flight=extra)
        for n in steps:
            stream.begin_step(n)
        updates = held = 0
        for due in found:
            updates += isinstance(due.action, Update)
            held += isinstance(due.action, Forward) - isinstance(due.action, Backward)
            assert held <= most_in_flight(stage, n_stages, extra)
            if isinstance(due.action, Forward):
                assert updates == stream.updates_seen(due.step, due.action.microbatch, stage)


@given(places, streams, extras)
def test_later_stages_never_see_fewer_updates(n_stages: int, steps: list[int], extra: int) -> None:
    stream = Stream(0, n_stages, extra_in_flight=extra)
    for n in steps:
        stream.begin_step(n)
    for step, n in enumerate(steps):
        for microbatch in range(n):
            seen = [stream.updates_seen(step, microbatch, stage) for stage in range(n_stages)]
            assert seen == sorted(seen)
            assert seen[-1] == step


@given(places, st.integers(1, 6), extras)
def test_the_number_of_older_versions_in_use_is_the_promised_one(
    n_stages: int, n: int, extra: int
) -> None:
    for stage in range(n_stages):
        most = updates = 0
        in_use: list[int] = []
        for due in done_in_order(stage, n_stages, [n] * 30, extra):
            if isinstance(due.action, Forward):
                in_use.append(updates)
            elif isinstance(due.action, Backward):
                in_use.pop(0)
            else:
                updates += 1
            most = max(most, len({version for version in in_use if version < updates}))
        assert most == older_versions("async-1f1b", n_stages - 1 - stage, n, extra)


@pytest.mark.parametrize("steps", [[1] * 9, [4, 4, 4, 1], [2, 5, 1, 1, 3]])
@given(places, extras)
def test_the_stages_together_never_wait_for_each_other_for_ever(
    steps: list[int], n_stages: int, extra: int
) -> None:
    left = [done_in_order(stage, n_stages, steps, extra) for stage in range(n_stages)]
    happened: set[tuple[int, Due]] = set()

    def ready(stage: int) -> bool:
        due = left[stage][0]
        if isinstance(due.action, Forward):
            return stage == 0 or (stage - 1, due) in happened
        if isinstance(due.action, Backward):
            return stage == n_stages - 1 or (stage + 1, due) in happened
        return True

    while any(left):
        able = [stage for stage in range(n_stages) if left[stage] and ready(stage)]
        assert able, f"stuck before {[each[:1] for each in left]}"
        happened.update((stage, left[stage].pop(0)) for stage in able)
