from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.core.errors import ConfigError
from edgeweave.plan import (
    SCHEDULES,
    Action,
    Agenda,
    Backward,
    Forward,
    Reduce,
    Update,
    actions,
    in_flight,
)
from edgeweave.plan import may_swap as swaps

names = st.sampled_from(sorted(SCHEDULES))
stages = st.integers(1, 7)
microbatches = st.integers(1, 12)
extras = st.integers(0, 3)


def letters(name: str, stage: int, n_stages: int, n: int, **options: Any) -> str:
    short = {Forward: "F", Backward: "B", Reduce: "R", Update: "U"}
    return " ".join(
        f"{short[type(action)]}{getattr(action, 'microbatch', '')}"
        for action in actions(name, stage, n_stages, n, **options)
    )


def test_gpipe_is_drawn_as_documented() -> None:
    for stage in range(3):
        assert letters("gpipe", stage, 3, 4) == "F0 F1 F2 F3 B0 B1 B2 B3 U"


def test_one_f_one_b_is_drawn_as_documented() -> None:
    assert letters("1f1b", 0, 3, 4) == "F0 F1 F2 B0 F3 B1 B2 B3 U"
    assert letters("1f1b", 1, 3, 4) == "F0 F1 B0 F2 B1 F3 B2 B3 U"
    assert letters("1f1b", 2, 3, 4) == "F0 B0 F1 B1 F2 B2 F3 B3 U"


def test_more_in_flight_starts_more_forwards_but_not_on_the_last_stage() -> None:
    assert letters("1f1b", 0, 2, 4, extra_in_flight=1) == "F0 F1 F2 B0 F3 B1 B2 B3 U"
    assert letters("1f1b", 1, 2, 4, extra_in_flight=1) == "F0 B0 F1 B1 F2 B2 F3 B3 U"


def test_reduce_comes_between_the_last_backward_and_the_update() -> None:
    assert letters("1f1b", 0, 1, 1, reduce=True) == "F0 B0 R U"
    assert letters("gpipe", 0, 1, 1, reduce=True) == "F0 B0 R U"


@given(names, stages, microbatches, extras)
def test_every_microbatch_goes_forward_then_backward_in_ascending_order(
    name: str, n_stages: int, n: int, extra: int
) -> None:
    for stage in range(n_stages):
        order = list(actions(name, stage, n_stages, n, extra_in_flight=extra))
        assert [a.microbatch for a in order if isinstance(a, Forward)] == list(range(n))
        assert [a.microbatch for a in order if isinstance(a, Backward)] == list(range(n))
        assert order[-1] == Update()
        assert len(order) == 2 * n + 1
        for microbatch in range(n):
            assert order.index(Forward(microbatch)) < order.index(Backward(microbatch))


@given(stages, microbatches, extras)
def test_the_number_in_flight_is_the_promised_one(n_stages: int, n: int, extra: int) -> None:
    for stage in range(n_stages):
        last = stage == n_stages - 1
        promised = 1 if last else min(n, n_stages - stage + extra)
        assert in_flight("1f1b", stage, n_stages, n, extra) == promised
        assert in_flight("gpipe", stage, n_stages, n, extra) == n


@given(names, st.integers(1, 6), st.integers(0, 4), microbatches, extras)
def test_the_number_in_flight_depends_only_on_the_stages_behind(
    name: str, n_stages: int, in_front: int, n: int, extra: int
) -> None:
    assert in_flight(name, 0, n_stages, n, extra) == in_flight(
        name, in_front, n_stages + in_front, n, extra
    )


@given(names, stages, microbatches, extras)
def test_the_stages_together_never_wait_for_each_other_for_ever(
    name: str, n_stages: int, n: int, extra: int
) -> None:
    programs = [
        list(actions(name, stage, n_stages, n, extra_in_flight=extra)) for stage in range(n_stages)
    ]
    done: set[tuple[int, object]] = set()

    def ready(stage: int) -> bool:
        action = programs[stage][0]
        if isinstance(action, Forward):
            return stage == 0 or (stage - 1, action) in done
        if isinstance(action, Backward):
            return stage == n_stages - 1 or (stage + 1, action) in done
        return True

    while any(programs):
        able = [stage for stage in range(n_stages) if programs[stage] and ready(stage)]
        assert able, f"stuck before {[program[:1] for program in programs]}"
        done.update((stage, programs[stage].pop(0)) for stage in able)


def agenda(stage: int, n_stages: int, n: int, extra: int = 0, *, may_swap: bool = True) -> Agenda:
    order = actions("1f1b", stage, n_stages, n, extra_in_flight=extra, reduce=True)
    return Agenda(order, may_swap=may_swap)


def test_a_backward_may_be_done_while_the_next_forward_waits_for_its_input() -> None:
    stage = agenda(0, 2, 3)
    stage.take(Forward(0))
    assert stage.choices() == (Forward(1), Backward(0))
    stage.take(Backward(0))
    assert stage.choices() == (Forward(1),)


def test_a_forward_is_never_done_in_place_of_a_backward() -> None:
    stage = agenda(0, 2, 3)
    stage.take(Forward(0))
    stage.take(Forward(1))
    assert stage.choices() == (Backward(0),)


def test_only_1f1b_may_be_left() -> None:
    assert {name: swaps(name) for name in SCHEDULES} == {"1f1b": True, "gpipe": False}


def test_a_strict_agenda_offers_one_action_at_a_time() -> None:
    stage = agenda(0, 3, 4, may_swap=False)
    taken = []
    while choices := stage.choices():
        (only,) = choices
        stage.take(only)
        taken.append(only)
    assert taken == list(actions("1f1b", 0, 3, 4, reduce=True))


@given(stages, microbatches, extras, st.data())
def test_however_stages_choose_all_is_done_in_order_and_no_more_is_held(
    n_stages: int, n: int, extra: int, data: st.DataObject
) -> None:
    places = [agenda(stage, n_stages, n, extra) for stage in range(n_stages)]
    taken: list[list[Action]] = [[] for _ in places]
    done: set[tuple[int, Action]] = set()

    def ready(stage: int, action: Action) -> bool:
        if isinstance(action, Forward):
            return stage == 0 or (stage - 1, action) in done
        if isinstance(action, Backward):
            return stage == n_stages - 1 or (stage + 1, action) in done
        return True

    while any(place.choices() for place in places):
        able = [
            (stage, action)
            for stage, place in enumerate(places)
            for action in place.choices()
            if ready(stage, action)
        ]
        assert able, f"stuck after {taken}"
        stage, action = data.draw(st.sampled_from(able))
        places[stage].take(action)
        taken[stage].append(action)
        done.add((stage, action))
    for stage, order in enumerate(taken):
        assert [a.microbatch for a in order if isinstance(a, Forward)] == list(range(n))
        assert [a.microbatch for a in order if isinstance(a, Backward)] == list(range(n))
        assert order[-2:] == [Reduce(), Update()]
        held = peak = 0
        for a in order:
            held += isinstance(a, Forward) - isinstance(a, Backward)
            peak = max(peak, held)
        assert held == 0
        assert peak <= in_flight("1f1b", stage, n_stages, n, extra)


def test_an_unknown_schedule_is_refused_with_the_known_names() -> None:
    with pytest.raises(ConfigError) as caught:
        actions("zero-bubble", 0, 1, 1)
    assert str(caught.value) == ("unknown schedule 'zero-bubble' (known: 1f1b, gpipe). Choose one.")


@pytest.mark.parametrize(
    ("stage", "n_stages", "n", "extra"), [(2, 2, 1, 0), (-1, 2, 1, 0), (0, 1, 0, 0), (0, 1, 1, -1)]
)
def test_an_impossible_place_is_refused_at_once(
    stage: int, n_stages: int, n: int, extra: int
) -> None:
    with pytest.raises(ConfigError) as caught:
        actions("1f1b", stage, n_stages, n, extra_in_flight=extra)
    assert str(caught.value) == (
        "a schedule needs 0 <= stage < n_stages, n_microbatches >= 1, extra_in_flight >= 0 "
        f"(got {stage}, {n_stages}, {n}, {extra}). Correct them."
    )
