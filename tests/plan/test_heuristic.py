"""The heuristic for many devices, made to plan few of them: beside the exact program."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from edgeweave.core.errors import PlanError
from edgeweave.plan import (
    Costs,
    Cut,
    DeviceCosts,
    Link,
    best_plans,
    partition,
    period_seconds_at_least,
    proposals,
    stage_memory_bytes,
)
from edgeweave.plan.splits import Microbatching

from .test_partition import (
    NOBODY,
    Question,
    bounds_of,
    fitting,
    pinned,
    questions,
    simulated,
)
from .worlds import Placement, equal_costs, every_placement, small_costs, with_links

through_the_heuristic = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20
)


@pytest.fixture
def only_heuristic(monkeypatch: pytest.MonkeyPatch) -> None:
    """No device is few enough for the exact program."""
    monkeypatch.setattr(proposals, "MAX_DEVICES", 0)


def unequal_costs(seed: int, n_units: int, n_devices: int) -> Costs:
    """Devices that differ by unit, not by a factor, and links that differ too."""
    rng = Random(seed)
    names = [f"d{d}" for d in range(n_devices)]
    base = [rng.uniform(1.0, 3.0) for _ in range(n_units)]
    devices = []
    for name in names:
        speed = rng.uniform(0.5, 2.0)
        forward = tuple(seconds * rng.uniform(0.5, 2.0) / speed for seconds in base)
        devices.append(DeviceCosts(name, forward, tuple(2 * s for s in forward), None))
    costs = replace(
        equal_costs(n_units, n_devices),
        cuts=tuple(Cut(rng.randint(1, 9), rng.randint(1, 9)) for _ in range(n_units - 1)),
        devices=tuple(devices),
    )
    pairs = [(src, dst) for src in names for dst in names if src != dst]
    return with_links(costs, {p: Link(rng.uniform(1.0, 9.0), rng.uniform(0, 0.5)) for p in pairs})


@given(small_costs(), st.integers(1, 6))
@settings(max_examples=40)
def test_no_plan_has_a_period_below_the_bound(costs: Costs, n: int) -> None:
    bound = period_seconds_at_least(costs, Microbatching("1f1b", n, 0))
    for placement in every_placement(costs):
        if placement.fits(costs, "1f1b", n, 0):
            assert bound <= placement.period(costs) * (1 + 1e-9)


def test_the_bound_of_equal_devices_is_an_equal_share() -> None:
    run = Microbatching("1f1b", 4, 0)
    assert period_seconds_at_least(equal_costs(12, 4), run) == pytest.approx(6.0, rel=2e-3)


def test_the_bound_is_at_least_the_largest_unit() -> None:
    costs = equal_costs(3, 3)
    slow = tuple(replace(d, forward_seconds=(1.0, 9.0, 1.0)) for d in costs.devices)
    run = Microbatching("1f1b", 4, 0)
    assert period_seconds_at_least(replace(costs, devices=slow), run) >= 10.0


def test_the_bound_is_infinite_where_a_unit_fits_nowhere() -> None:
    costs = equal_costs(2, 2, memory_limit_bytes=100)
    assert period_seconds_at_least(costs, Microbatching("1f1b", 4, 0)) == inf


@through_the_heuristic
@given(questions())
def test_what_the_heuristic_finds_fits_keeps_to_the_pins_and_has_the_best_period(
    only_heuristic: None, question: Question
) -> None:
    costs, schedule, n, extra, pins = question
    placements = fitting(costs, schedule, n, extra, pins)
    plans = best_plans(
        costs, schedule=schedule, n_microbatches=n, extra_in_flight=extra, **pinned(pins)
    )
    periods = []
    for plan in plans:
        placement = Placement(plan.devices, bounds_of(plan))
        assert placement in placements
        assert plan.period_seconds == placement.period(costs)
        periods.append(plan.period_seconds)
    best = min((placement.period(costs) for placement in placements), default=inf)
    assert min(periods, default=inf) <= best * 1.01


@through_the_heuristic
@given(questions())
def test_the_heuristic_s_latency_equals_brute_force(
    only_heuristic: None, question: Question
) -> None:
    costs, schedule, n, extra, pins = question
    placements = fitting(costs, schedule, n, extra, pins)
    assume(placements)
    plan = partition(
        costs,
        schedule=schedule,
        n_microbatches=n,
        extra_in_flight=extra,
        objective="latency",
        **pinned(pins),
    )
    best = min(placement.latency(costs) for placement in placements)
    assert Placement(plan.devices, bounds_of(plan)).latency(costs) == best


@through_the_heuristic
@given(small_costs(), st.integers(1, 6))
def test_a_heuristic_plan_is_never_slower_than_one_device(
    only_heuristic: None, costs: Costs, n: int
) -> None:
    placements = fitting(costs, "1f1b", n, 0, NOBODY)
    if not placements:
        with pytest.raises(PlanError):
            partition(costs, n_microbatches=n, extra_in_flight=0)
        return
    plan = partition(costs, n_microbatches=n, extra_in_flight=0)
    alone = [simulated(p, costs, "1f1b", n, 0) for p in placements if len(p.devices) == 1]
    assert plan.step_seconds <= min(alone, default=inf) * (1 + 1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_the_heuristic_comes_near_the_exact_plans(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = unequal_costs(seed, 24, 8)
    options: dict[str, Any] = {"schedule": "1f1b", "n_microbatches": 16, "extra_in_flight": 0}
    exact = best_plans(costs, **options)
    exact_plan = partition(costs, **options)
    monkeypatch.setattr(proposals, "MAX_DEVICES", 0)
    found = best_plans(costs, **options)
    period, least = (min(p.period_seconds for p in plans) for plans in (found, exact))
    assert least * (1 - 1e-9) <= period <= least * 1.03
    assert partition(costs, **options).step_seconds <= exact_plan.step_seconds * 1.1


def test_of_many_devices_many_are_used() -> None:
    plan = partition(equal_costs(24, 12), n_microbatches=64, extra_in_flight=0)
    assert (len(plan.stages), plan.period_seconds) == (12, 4.0)


def test_pins_hold_among_many_devices_too() -> None:
    costs = unequal_costs(0, 24, 12)
    plan = partition(costs, n_microbatches=32, pin_first="d3", pin_last="d7", extra_in_flight=0)
    assert (plan.devices[0], plan.devices[-1]) == ("d3", "d7")


def test_memory_limits_hold_among_many_devices_too() -> None:
    costs = equal_costs(12, 12, memory_limit_bytes=2 * (21 + 6 * 100))
    plan = partition(costs, n_microbatches=32, extra_in_flight=0)
    assert len(plan.stages) > 1
    for index, stage in enumerate(plan.stages):
        held = min(32, len(plan.stages) - index)
        need = stage_memory_bytes(costs, stage.first_unit, stage.stop_unit, held)
        assert stage.memory_bytes == need <= 2 * (21 + 6 * 100)


def test_many_devices_without_room_are_refused_with_what_is_lacking() -> None:
    costs = equal_costs(2, 12, memory_limit_bytes=100)
    with pytest.raises(PlanError, match="no split of 2 units fits the memory of 12 devices"):
        partition(costs, n_microbatches=4)


def test_devices_that_take_no_time_at_all_are_planned() -> None:
    devices = tuple(DeviceCosts(f"d{d}", (0.0, 0.0), (0.0, 0.0), None) for d in range(11))
    costs = replace(equal_costs(2, 1), devices=devices)
    assert partition(costs, n_microbatches=4).step_seconds >= 0
