"""The simulation without a flush: against brute force, and by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeweave.core.errors import ConfigError, PlanError
from edgeweave.plan import (
    Costs,
    Link,
    Plan,
    explain,
    from_json,
    in_flight,
    older_versions,
    partition,
    simulate,
    stage_memory_bytes,
    to_json,
)
from edgeweave.plan.ranking import plan_from_split, step_seconds_at_least
from edgeweave.plan.splits import Grid, Microbatching, Split

from .stream_brute_force import Clockwork
from .worlds import equal_costs, every_placement, one_unit_each, plan_of, small_costs

ASYNC = "async-1f1b"


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, Costs]:
    costs = draw(small_costs(max_units=4, max_devices=3))
    place = draw(st.sampled_from(list(every_placement(costs))))
    n, extra = draw(st.integers(1, 4)), draw(st.integers(0, 2))
    plan = plan_of(
        costs, place.devices, place.bounds, schedule=ASYNC, n_microbatches=n, extra_in_flight=extra
    )
    return plan, costs


@given(plans(), st.integers(1, 4))
def test_every_event_is_that_of_brute_force(made: tuple[Plan, Costs], n_steps: int) -> None:
    plan, costs = made
    timeline = simulate(plan, costs, n_steps=n_steps)
    found = [
        (each.device, each.kind, each.step, each.microbatch, each.start_seconds, each.stop_seconds)
        for each in timeline.events
        if each.kind != "send"
    ]
    assert sorted(found, key=repr) == sorted(Clockwork(plan, costs, n_steps).rows, key=repr)


@given(plans())
def test_a_step_is_one_in_the_middle_of_many(made: tuple[Plan, Costs]) -> None:
    """As long as a step of a run three times as long, but for steps that differ in turn."""
    plan, costs = made
    timeline = simulate(plan, costs)
    moments = Clockwork(plan, costs, 3 * timeline.n_steps).update_moments()
    third = timeline.n_steps
    middle = (moments[2 * third - 1] - moments[third - 1]) / third
    assert timeline.step_seconds == pytest.approx(middle, rel=0.35)


@pytest.mark.parametrize(("n_stages", "n"), [(1, 1), (2, 1), (3, 4), (4, 2), (5, 16)])
def test_equal_stages_never_wait(n_stages: int, n: int) -> None:
    costs = equal_costs(n_stages, n_stages, forward_seconds=1.0, backward_seconds=2.0)
    timeline = simulate(one_unit_each(costs, schedule=ASYNC, n_microbatches=n), costs)
    assert timeline.step_seconds == 3.0 * n
    assert timeline.bubble == 0.0


def test_the_slowest_stage_and_its_update_are_the_step() -> None:
    costs = equal_costs(2, 2)
    slow = replace(costs.devices[1], forward_seconds=(2.0, 2.0), update_seconds_per_byte=0.5)
    costs = replace(costs, devices=(costs.devices[0], slow))
    timeline = simulate(one_unit_each(costs, schedule=ASYNC, n_microbatches=4), costs)
    assert timeline.step_seconds == 4 * 3.0 + 10 * 0.5


def test_a_round_trip_bounds_what_few_microbatches_in_flight_reach() -> None:
    # Two in flight, a round trip of 4 s of computing and twice 3 s: 5 s each.
    costs = equal_costs(2, 2, link=Link(1e9, 3.0))
    few = simulate(one_unit_each(costs, schedule=ASYNC, n_microbatches=4), costs)
    assert few.step_seconds == pytest.approx(4 * 5.0)
    plan = one_unit_each(costs, schedule=ASYNC, n_microbatches=4, extra_in_flight=3)
    assert simulate(plan, costs).step_seconds == pytest.approx(4 * 2.0)


@given(plans())
def test_devices_hold_no_more_microbatches_than_promised(made: tuple[Plan, Costs]) -> None:
    plan, costs = made
    held = dict.fromkeys(plan.devices, 0)
    for event in simulate(plan, costs).events:
        index = event.stage
        if event.kind == "forward":
            held[event.device] += 1
            place = ASYNC, index, len(plan.stages), plan.n_microbatches
            assert held[event.device] <= in_flight(*place, plan.extra_in_flight)
        elif event.kind == "backward":
            held[event.device] -= 1


@given(plans())
@settings(max_examples=200)
def test_the_lower_bound_of_a_step_is_below_that_of_a_long_run(made: tuple[Plan, Costs]) -> None:
    plan, costs = made
    run = Microbatching(ASYNC, plan.n_microbatches, plan.extra_in_flight)
    bound = step_seconds_at_least(Split(plan.devices, plan.bounds), costs, run)
    n_steps = 40
    timeline = simulate(plan, costs, n_steps=n_steps)
    ends = [e.stop_seconds for e in timeline.events if (e.kind, e.stage) == ("update", 0)]
    assert bound * (n_steps - 8) <= ends[-1] * (1 + 1e-9)


def test_older_versions_count_as_memory() -> None:
    costs = equal_costs(2, 1)
    whole = stage_memory_bytes(costs, 0, 2, 3)
    assert stage_memory_bytes(costs, 0, 2, 3, 2) == whole + 2 * 20


def test_a_mean_of_versions_needs_one_for_each_stage_behind() -> None:
    assert [older_versions(ASYNC, k, 4, 0, aggregates=True) for k in range(4)] == [0, 2, 3, 4]
    assert [older_versions(name, 3, 4, 0) for name in ("1f1b", "gpipe")] == [0, 0]


@given(small_costs(), st.integers(1, 9), st.integers(0, 4))
def test_the_tables_of_the_partition_count_them_too(costs: Costs, held: int, older: int) -> None:
    excess = Grid(costs).excess_bytes(held, older)
    for d, device in enumerate(costs.devices):
        for first in range(len(costs.units)):
            for stop in range(first + 1, len(costs.units) + 1):
                need = stage_memory_bytes(costs, first, stop, held, older)
                limit = need if device.memory_limit_bytes is None else device.memory_limit_bytes
                assert excess[d, first, stop] == max(0, need - limit)


@given(small_costs(max_units=4), st.integers(1, 4), st.integers(0, 2), st.sampled_from([None, 2]))
def test_the_partition_is_the_best_of_all_placements_that_fit(
    costs: Costs, n: int, extra: int, every: int | None
) -> None:
    run = Microbatching(ASYNC, n, extra, weight_aggregation=every)
    steps = []
    for place in every_placement(costs):
        made = plan_from_split(Split(place.devices, place.bounds), costs, run)
        limits = [costs.device(stage.device).memory_limit_bytes for stage in made.stages]
        needs = [stage.memory_bytes for stage in made.stages]
        if all(limit is None or need <= limit for need, limit in zip(needs, limits, strict=True)):
            steps.append(made.step_seconds)
    told = {"schedule": ASYNC, "n_microbatches": n, "extra_in_flight": extra}
    if not steps:
        with pytest.raises(PlanError):
            partition(costs, weight_aggregation=every, **told)  # type: ignore[arg-type]
        return
    plan = partition(costs, weight_aggregation=every, **told)  # type: ignore[arg-type]
    assert plan.weight_aggregation == every
    assert plan.step_seconds <= min(steps) * 1.05
    for index, stage in enumerate(plan.stages):
        n_behind = len(plan.stages) - 1 - index
        assert stage.memory_bytes == stage_memory_bytes(
            costs,
            stage.first_unit,
            stage.stop_unit,
            run.in_flight(n_behind),
            run.older_versions(n_behind),
        )


def test_explain_compares_under_the_same_schedule() -> None:
    costs = equal_costs(6, 2)
    plan = partition(costs, n_microbatches=2, schedule=ASYNC)
    explanation = explain(plan, costs)
    assert explanation.step_seconds == pytest.approx(2 * 6.0)
    assert explanation.best_single_seconds == pytest.approx(2 * 12.0)


def test_a_plan_with_an_aggregation_survives_its_document() -> None:
    costs = equal_costs(3, 3)
    plan = partition(costs, n_microbatches=2, schedule=ASYNC, weight_aggregation=5)
    assert from_json(to_json(plan)) == plan


def test_an_aggregation_goes_with_a_schedule_without_flush() -> None:
    costs = equal_costs(3, 3)
    with pytest.raises(ConfigError, match="goes with the schedule 'async-1f1b'"):
        partition(costs, n_microbatches=2, weight_aggregation=5)
