"""Plans for requests: against brute force, against the simulation, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeweave.core.errors import ConfigError, PlanError
from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.plan import (
    Costs,
    Cut,
    Feed,
    Link,
    ServingPlan,
    Skip,
    answer_times,
    period_bounds,
    repredicted,
    serving_plan,
    serving_plans,
)
from tests.plan.worlds import Placement, equal_costs, every_placement, small_costs

Objective = Literal["throughput", "latency"]


def forward_only(costs: Costs) -> Costs:
    """The same costs as of a model that only answers."""
    devices = (replace(d, backward_seconds=(0.0,) * len(costs.units)) for d in costs.devices)
    cuts = (Cut(cut.forward_bytes, 0) for cut in costs.cuts)
    return replace(costs, devices=tuple(devices), cuts=tuple(cuts))


def counted(costs: Costs, placement: Placement, result_bytes: int, objective: Objective) -> float:
    """Period or latency of a placement, written out once more."""
    spans = placement.spans()
    compute = [sum(costs.device(d).forward_seconds[i:j]) for d, i, j in spans]
    crossings = [
        (costs.link(d, f), costs.cuts[stop - 1].forward_bytes)
        for (d, _, stop), (f, _, _) in pairwise(spans)
    ]
    crossings.append((costs.link(placement.devices[-1], COORDINATOR_NAME), result_bytes))
    busy = [size / link.bytes_per_second for link, size in crossings]
    feeds = placement.feeds(costs)
    if objective == "throughput":
        return max(*compute, *busy, *(seconds for seconds, _ in feeds))
    ways = [link.latency_seconds for link, _ in crossings]
    return sum(compute) + sum(busy) + sum(ways) + sum(feeds[0])


@pytest.mark.parametrize("objective", ["throughput", "latency"])
@settings(max_examples=60, deadline=None)
@given(costs=small_costs(), result_bytes=st.integers(0, 9))
def test_no_placement_is_better(objective: Objective, costs: Costs, result_bytes: int) -> None:
    costs = forward_only(costs)
    fitting = [p for p in every_placement(costs) if p.fits(costs, "1f1b", 1, 0)]
    best: dict[int, float] = {}
    for placement in fitting:
        value = counted(costs, placement, result_bytes, objective)
        size = len(placement.devices)
        best[size] = min(best.get(size, value), value)
    plans = serving_plans(costs, result_bytes=result_bytes, objective=objective)
    found = {
        len(p.devices): p.period_seconds if objective == "throughput" else p.latency_seconds
        for p in plans
    }
    assert found == pytest.approx(best)
    for plan in plans:
        where = Placement(plan.devices, plan.bounds)
        assert where.fits(costs, "1f1b", 1, 0)
        assert plan.period_seconds == pytest.approx(
            counted(costs, where, result_bytes, "throughput")
        )
        assert plan.latency_seconds == pytest.approx(counted(costs, where, result_bytes, "latency"))


@settings(max_examples=60, deadline=None)
@given(costs=small_costs(), result_bytes=st.integers(0, 9))
def test_in_the_long_run_an_answer_comes_every_period(costs: Costs, result_bytes: int) -> None:
    """Feeds of later stages are sent beside; the simulation sends those of the first one only."""
    costs = replace(forward_only(costs), feeds=())
    for plan in serving_plans(costs, result_bytes=result_bytes):
        times = answer_times(plan, costs, 60, result_bytes=result_bytes)
        (sent, answered), (_, sooner), (_, later) = times[0], times[29], times[59]
        assert sent == 0
        assert answered == pytest.approx(plan.latency_seconds)
        assert (later - sooner) / 30 == pytest.approx(plan.period_seconds)
        assert all(after[1] >= before[1] for before, after in pairwise(times))


def test_what_is_under_way_is_bounded() -> None:
    costs = forward_only(equal_costs(6, 3))
    plan = serving_plan(costs)
    times = answer_times(plan, costs, 40)
    for number, (sent, _) in enumerate(times):
        unanswered = sum(answered > sent for _, answered in times[:number])
        assert unanswered < plan.in_flight


@settings(max_examples=40, deadline=None)
@given(costs=small_costs(), result_bytes=st.integers(0, 9))
def test_when_all_are_busy_a_request_takes_what_all_under_way_take(
    costs: Costs, result_bytes: int
) -> None:
    costs = replace(forward_only(costs), feeds=())
    for plan in serving_plans(costs, result_bytes=result_bytes):
        sent, answered = answer_times(plan, costs, 200, result_bytes=result_bytes)[-1]
        assert plan.busy_latency_seconds >= plan.latency_seconds
        assert answered - sent == pytest.approx(plan.busy_latency_seconds)


@settings(max_examples=40, deadline=None)
@given(costs=small_costs())
def test_the_same_stages_at_the_same_costs_are_predicted_alike(costs: Costs) -> None:
    costs = forward_only(costs)
    for plan in serving_plans(costs, result_bytes=3):
        assert repredicted(plan, costs, result_bytes=3) == plan


def test_equal_devices_share_equally_and_one_that_adds_nothing_is_left_out() -> None:
    costs = forward_only(equal_costs(6, 4))
    plan = serving_plan(costs)
    assert (plan.bounds, plan.period_seconds) == ((0, 2, 4, 6), 2.0)  # a fourth would not help
    assert len(serving_plan(costs, use="all").devices) == 4
    assert len(serving_plan(costs, objective="latency").devices) == 1
    assert serving_plan(costs, devices=["d1", "d3"]).bounds == (0, 3, 6)


def test_a_slow_link_is_worth_no_device() -> None:
    slow = Link(bytes_per_second=1.0, latency_seconds=0.0)
    costs = forward_only(equal_costs(4, 2, link=slow, cut=Cut(10, 0)))
    assert len(serving_plan(costs).devices) == 1


def test_latency_of_links_costs_no_throughput() -> None:
    far = Link(bytes_per_second=1e9, latency_seconds=50.0)
    costs = forward_only(equal_costs(4, 2, link=far))
    plan = serving_plan(costs)
    assert (plan.period_seconds, plan.latency_seconds) == (2.0, 4.0 + 2 * 50.0)
    assert plan.in_flight > 50  # or else they would wait for each other


def test_input_and_answer_keep_a_device_busy_that_computes_little() -> None:
    costs = forward_only(equal_costs(2, 1, link=Link(1.0, 0.0)))
    fed = replace(costs, feeds=(Feed("input:0", 7, (0,)),))
    assert serving_plan(fed).period_seconds == 7.0
    assert serving_plan(costs, result_bytes=9).period_seconds == 9.0


def test_the_bound_is_the_best_cut_without_sending() -> None:
    slow = Link(bytes_per_second=1.0, latency_seconds=9.0)
    costs = forward_only(equal_costs(1, 3, link=slow, cut=Cut(99, 0)))
    seconds = (3.0, 1.0, 4.0, 1.0, 5.0)
    costs = replace(
        costs,
        units=costs.units * 5,
        cuts=(Cut(99, 0),) * 4,
        devices=tuple(
            replace(d, forward_seconds=seconds, backward_seconds=(0.0,) * 5) for d in costs.devices
        ),
    )
    expected = {
        k: min(
            max(sum(seconds[i:j]) for i, j in zip((0, *cuts), (*cuts, 5), strict=True))
            for cuts in combinations(range(1, 5), k - 1)
        )
        for k in (1, 2, 3)
    }
    assert period_bounds(costs) == expected


def test_more_devices_than_the_exact_program_tries() -> None:
    costs = forward_only(equal_costs(24, 12))
    assert serving_plan(costs).period_seconds == 2.0


def test_what_fits_nowhere_is_an_error() -> None:
    costs = forward_only(equal_costs(2, 2, memory_limit_bytes=1))
    with pytest.raises(PlanError, match="no device holds the model, nor do all 2 of them"):
        serving_plan(costs)


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown objective 'speed'"):
        serving_plans(equal_costs(2, 1), objective="speed")  # type: ignore[arg-type]


def test_a_plan_says_itself_in_a_line() -> None:
    plan = serving_plan(forward_only(equal_costs(4, 2)))
    assert plan.line() == "d0 [0..1], d1 [2..3]: 0.5 requests/s, 4000.0 ms each (predicted)"


@pytest.mark.parametrize(
    "changes", [{"batch_size": 0}, {"in_flight": 0}, {"period_seconds": -1.0}, {"stages": ()}]
)
def test_a_plan_that_cannot_be_is_refused(changes: dict[str, object]) -> None:
    plan = serving_plan(forward_only(equal_costs(4, 2)))
    assert isinstance(plan, ServingPlan)
    with pytest.raises(ConfigError):
        replace(plan, **changes)  # type: ignore[arg-type]


def skipping() -> Costs:
    """Three units on three devices, one second each; a value of the first is used in the third."""
    costs = forward_only(equal_costs(3, 3, link=Link(1.0, 0.5)))
    return replace(costs, cuts=(Cut(6, 0), Cut(6, 0)), skips=(Skip((0, 2), 5, 0),))


def test_values_that_skip_stages_go_past_them_where_that_is_better() -> None:
    plan = serving_plan(skipping(), use="all")
    assert (plan.skips, plan.period_seconds) == ("direct", 5.0)
    # 1 s computed thrice; the short way takes 2 transfers of 1.5 s, the one past 5.5 s
    assert plan.latency_seconds == 1 + max(1.5 + 1 + 1.5, 5.5) + 1 + 0.5
    relayed = repredicted(replace(plan, skips="relayed"), skipping())
    assert (relayed.period_seconds, relayed.latency_seconds) == (6.0, 3 + 2 * 6.5 + 0.5)
    times = answer_times(plan, skipping(), 60)
    assert (times[59][1] - times[29][1]) / 30 == pytest.approx(5.0)


def test_values_are_relayed_where_going_past_gains_nothing() -> None:
    costs = replace(skipping(), default_link=Link(1e9, 0.0))
    assert {plan.skips for plan in serving_plans(costs)} == {"relayed"}


@pytest.mark.parametrize("objective", ["throughput", "latency"])
@settings(max_examples=60, deadline=None)
@given(costs=small_costs(), skip_bytes=st.integers(1, 9))
def test_no_placement_with_relays_is_better_where_some_value_skips_units(
    objective: Objective, costs: Costs, skip_bytes: int
) -> None:
    costs = forward_only(costs)
    if len(costs.units) < 3:
        return
    skip = Skip((0, len(costs.units) - 1), skip_bytes, 0)
    cuts = tuple(Cut(cut.forward_bytes + skip_bytes, 0) for cut in costs.cuts)
    costs = replace(costs, cuts=cuts, skips=(skip,))
    fitting = [p for p in every_placement(costs) if p.fits(costs, "1f1b", 1, 0)]
    for plan in serving_plans(costs, objective=objective):
        alike = [p for p in fitting if len(p.devices) == len(plan.devices)]
        best = min(counted(costs, placement, 0, objective) for placement in alike)
        found = plan.period_seconds if objective == "throughput" else plan.latency_seconds
        assert found <= best * (1 + 1e-9)
        if plan.skips == "relayed":
            assert found == pytest.approx(best)
