from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from edgeweave.core.errors import ConfigError, PlanError
from edgeweave.plan import (
    SCHEDULES,
    Costs,
    Cut,
    DeviceCosts,
    Link,
    Plan,
    best_plans,
    partition,
    proposals,
    simulate,
    stage_memory_bytes,
)
from edgeweave.plan.ranking import plan_from_split, step_seconds_at_least
from edgeweave.plan.splits import Microbatching, Split

from .worlds import (
    FREE_LINK,
    Placement,
    equal_costs,
    every_placement,
    plan_of,
    small_costs,
    with_links,
)

schedules = st.sampled_from(sorted(SCHEDULES))
microbatches = st.integers(1, 6)
extras = st.integers(0, 2)


@pytest.fixture
def only_proposals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small problems, too, go through the dynamic program instead of trying every split."""
    monkeypatch.setattr(proposals, "_FEW_SPLITS", 0)


through_the_program = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


Pinned = tuple[str | None, str | None]
NOBODY: Pinned = (None, None)


def pinned(pins: Pinned) -> dict[str, Any]:
    return {"pin_first": pins[0], "pin_last": pins[1]}


def fitting(costs: Costs, schedule: str, n: int, extra: int, pins: Pinned) -> list[Placement]:
    return [
        placement
        for placement in every_placement(costs)
        if placement.fits(costs, schedule, n, extra)
        and pins[0] in (None, placement.devices[0])
        and pins[1] in (None, placement.devices[-1])
    ]


def simulated(placement: Placement, costs: Costs, schedule: str, n: int, extra: int) -> float:
    plan = plan_of(
        costs,
        placement.devices,
        placement.bounds,
        schedule=schedule,
        n_microbatches=n,
        extra_in_flight=extra,
    )
    return simulate(plan, costs).step_seconds


def bounds_of(plan: Plan) -> tuple[int, ...]:
    return (0, *(stage.stop_unit for stage in plan.stages))


Question = tuple[Costs, str, int, int, Pinned]


@st.composite
def questions(draw: st.DrawFn) -> Question:
    costs = draw(small_costs())
    names = [device.device for device in costs.devices]
    pin = st.one_of(st.none(), st.sampled_from(names))
    return costs, draw(schedules), draw(microbatches), draw(extras), (draw(pin), draw(pin))


@given(questions(), st.sampled_from(["throughput", "latency"]))
def test_the_best_plan_of_every_size_equals_brute_force(
    question: Question, objective: Literal["throughput", "latency"]
) -> None:
    costs, schedule, n, extra, pins = question

    def worth(placement: Placement) -> float:
        return placement.period(costs) if objective == "throughput" else placement.latency(costs)

    best: dict[int, float] = {}
    for placement in fitting(costs, schedule, n, extra, pins):
        size = len(placement.devices)
        best[size] = min(best.get(size, float("inf")), worth(placement))
    plans = best_plans(
        costs,
        schedule=schedule,
        n_microbatches=n,
        extra_in_flight=extra,
        pin_first=pins[0],
        pin_last=pins[1],
        objective=objective,
    )
    found = {}
    for plan in plans:
        placement = Placement(plan.devices, bounds_of(plan))
        assert placement.fits(costs, schedule, n, extra)
        assert pins[0] in (None, plan.devices[0])
        assert pins[1] in (None, plan.devices[-1])
        assert plan.period_seconds == placement.period(costs)
        found[len(plan.stages)] = worth(placement)
    assert found == best


@given(small_costs(max_units=4, max_devices=4), microbatches)
def test_four_devices_equal_brute_force_too(costs: Costs, n: int) -> None:
    placements = fitting(costs, "1f1b", n, 0, NOBODY)
    assume(placements)
    best = min(placement.period(costs) for placement in placements)
    plans = best_plans(costs, schedule="1f1b", n_microbatches=n)
    assert min(plan.period_seconds for plan in plans) == best


@given(questions())
def test_the_simulated_step_of_a_small_partition_equals_brute_force(question: Question) -> None:
    costs, schedule, n, extra, pins = question
    placements = fitting(costs, schedule, n, extra, pins)
    options: dict[str, Any] = {"schedule": schedule, "n_microbatches": n, **pinned(pins)}
    if not placements:
        with pytest.raises(PlanError):
            partition(costs, extra_in_flight=extra, **options)
        return
    plan = partition(costs, extra_in_flight=extra, **options)
    best = min(simulated(placement, costs, schedule, n, extra) for placement in placements)
    assert plan.step_seconds == pytest.approx(best, rel=1e-8)


@through_the_program
@given(questions())
def test_proposals_are_never_slower_than_one_device_or_the_best_period(
    only_proposals: None, question: Question
) -> None:
    costs, schedule, n, extra, pins = question
    options: dict[str, Any] = {"schedule": schedule, "n_microbatches": n, **pinned(pins)}
    options["extra_in_flight"] = extra
    rivals = best_plans(costs, **options)
    if not rivals:
        with pytest.raises(PlanError):
            partition(costs, **options)
        return
    plan = partition(costs, **options)
    assert plan.step_seconds <= min(rival.step_seconds for rival in rivals) * (1 + 1e-8)
    alone = [
        simulated(placement, costs, schedule, n, extra)
        for placement in fitting(costs, schedule, n, extra, pins)
        if len(placement.devices) == 1
    ]
    assert plan.step_seconds <= min(alone, default=float("inf")) * (1 + 1e-8)


@through_the_program
@given(questions())
def test_all_devices_are_used_when_asked_for(only_proposals: None, question: Question) -> None:
    costs, schedule, n, extra, pins = question
    everybody = [
        placement
        for placement in fitting(costs, schedule, n, extra, pins)
        if len(placement.devices) == len(costs.devices)
    ]
    options: dict[str, Any] = {"schedule": schedule, "n_microbatches": n, "extra_in_flight": extra}
    if everybody:
        plan = partition(costs, use="all", **pinned(pins), **options)
        assert len(plan.stages) == len(costs.devices)
    else:
        with pytest.raises(PlanError):
            partition(costs, use="all", **pinned(pins), **options)


@given(questions())
def test_no_step_is_shorter_than_its_lower_bound(question: Question) -> None:
    costs, schedule, n, extra, _ = question
    run = Microbatching(schedule, n, extra)
    for placement in every_placement(costs):
        split = Split(placement.devices, placement.bounds)
        plan = plan_from_split(split, costs, run)
        assert step_seconds_at_least(split, costs, run) <= plan.step_seconds * (1 + 1e-9)


@given(small_costs(), schedules, microbatches)
def test_the_extra_in_flight_is_the_smallest_that_is_nearly_best_and_two_to_spare(
    costs: Costs, schedule: str, n: int
) -> None:
    steps = {}
    for extra in (0, 1, 2):
        placements = fitting(costs, schedule, n, extra, NOBODY)
        if placements:
            steps[extra] = min(simulated(p, costs, schedule, n, extra) for p in placements)
    assume(steps)
    plan = partition(costs, schedule=schedule, n_microbatches=n)
    good = [extra for extra in steps if steps[extra] <= min(steps.values()) * 1.005]
    spare = plan.extra_in_flight - good[0]
    if schedule != "1f1b" or len(plan.stages) == 1:
        assert spare == 0
        return
    assert 0 <= spare <= 2
    for stage in plan.stages:
        limit = costs.device(stage.device).memory_limit_bytes
        assert limit is None or stage.memory_bytes <= limit
    if spare < 2:
        split = Split(plan.devices, bounds_of(plan))
        larger = plan_from_split(split, costs, Microbatching(schedule, n, plan.extra_in_flight + 1))
        limits = [costs.device(stage.device).memory_limit_bytes for stage in larger.stages]
        needs = [stage.memory_bytes for stage in larger.stages]
        assert any(
            limit is not None and need > limit for need, limit in zip(needs, limits, strict=True)
        )


@given(questions())
def test_memory_in_the_plan_is_what_the_formula_says_and_within_the_limit(
    question: Question,
) -> None:
    costs, schedule, n, extra, _ = question
    for plan in best_plans(costs, schedule=schedule, n_microbatches=n, extra_in_flight=extra):
        run = Microbatching(schedule, n, extra)
        for index, stage in enumerate(plan.stages):
            held = run.in_flight(len(plan.stages) - 1 - index)
            need = stage_memory_bytes(costs, stage.first_unit, stage.stop_unit, held)
            limit = costs.device(stage.device).memory_limit_bytes
            assert stage.memory_bytes == need
            assert limit is None or need <= limit


def test_of_equally_fast_plans_the_one_with_fewer_devices_is_taken() -> None:
    plan = partition(equal_costs(4, 3), n_microbatches=1)
    assert plan.devices == ("d0",)


def test_a_slow_link_leaves_one_device() -> None:
    plan = partition(equal_costs(4, 3, link=Link(1.0, 0.0), cut=Cut(100, 100)), n_microbatches=8)
    assert plan.devices == ("d0",)


def test_latency_alone_is_hidden_by_more_in_flight() -> None:
    costs = equal_costs(2, 2, link=Link(1e9, 2.0))
    assert partition(costs, n_microbatches=32, use="all").extra_in_flight == 2 + 2
    assert partition(equal_costs(2, 2), n_microbatches=32, use="all").extra_in_flight == 0 + 2


def test_only_the_named_devices_are_used() -> None:
    plan = partition(equal_costs(4, 4), n_microbatches=16, devices=["d3", "d1"])
    assert sorted(plan.devices) == ["d1", "d3"]


def test_the_pinned_device_is_first_even_if_it_is_slow() -> None:
    costs = equal_costs(4, 3)
    slow = DeviceCosts("slow", (9.0,) * 4, (9.0,) * 4, None)
    costs = replace(costs, devices=(*costs.devices, slow))
    plan = partition(costs, n_microbatches=16, pin_first="slow")
    assert (plan.devices[0], plan.stages[0].stop_unit) == ("slow", 1)


def test_two_hundred_units_on_eight_devices_are_balanced() -> None:
    speeds = {"a": 10, "b": 20, "c": 30, "d": 40, "e": 20, "f": 30, "g": 40, "h": 10}
    costs = replace(
        equal_costs(200, 1, link=FREE_LINK),
        devices=tuple(
            DeviceCosts(name, (0.25 / speed,) * 200, (0.75 / speed,) * 200, None)
            for name, speed in speeds.items()
        ),
    )
    *_, widest = best_plans(costs, schedule="1f1b", n_microbatches=64)
    assert widest.period_seconds == pytest.approx(1.0)
    assert {s.device: s.stop_unit - s.first_unit for s in widest.stages} == speeds
    chosen = partition(costs, n_microbatches=64)
    assert 64.0 <= chosen.step_seconds <= widest.step_seconds
    assert len(chosen.stages) == 8


def test_the_pinned_device_is_last_even_if_it_is_slow() -> None:
    costs = equal_costs(4, 3)
    slow = DeviceCosts("slow", (9.0,) * 4, (9.0,) * 4, None)
    costs = replace(costs, devices=(slow, *costs.devices))
    plan = partition(costs, n_microbatches=16, pin_last="slow")
    assert (plan.devices[-1], plan.stages[-1].first_unit) == ("slow", 3)
    alone = partition(costs, n_microbatches=16, pin_first="slow", pin_last="slow")
    assert alone.devices == ("slow",)


@given(questions())
def test_the_latency_of_a_partition_equals_brute_force(question: Question) -> None:
    costs, schedule, n, extra, pins = question
    placements = fitting(costs, schedule, n, extra, pins)
    options: dict[str, Any] = {"schedule": schedule, "n_microbatches": n, **pinned(pins)}
    options |= {"extra_in_flight": extra, "objective": "latency"}
    if not placements:
        with pytest.raises(PlanError):
            partition(costs, **options)
        return
    plan = partition(costs, **options)
    best = min(placement.latency(costs) for placement in placements)
    fewest = min(len(p.devices) for p in placements if p.latency(costs) == best)
    assert Placement(plan.devices, bounds_of(plan)).latency(costs) == best
    assert len(plan.stages) == fewest


def test_for_latency_nothing_extra_is_held_and_every_device_can_be_forced() -> None:
    costs = equal_costs(4, 3, link=Link(1e9, 2.0))
    quick = partition(costs, n_microbatches=8, objective="latency")
    assert (quick.devices, quick.extra_in_flight) == (("d0",), 0)
    forced = partition(costs, n_microbatches=8, objective="latency", use="all")
    assert (len(forced.stages), forced.extra_in_flight) == (3, 0)


def refusal(costs: Costs, **options: Any) -> str:
    with pytest.raises(PlanError) as caught:
        partition(costs, **options)
    return str(caught.value)


def test_the_error_names_the_device_that_lacks_least_and_how_much() -> None:
    # A unit needs 10 + 1 + 10 bytes and 100 for each microbatch in flight.
    costs = equal_costs(2, 2, memory_limit_bytes=200)
    assert refusal(costs, n_microbatches=4) == (
        "no split of 2 units fits the memory of 2 devices (closest: stage 0, units 0 to 0, needs "
        "221 B on d0, limit: 200 B, lacks 21 B). Use smaller microbatches or an optimizer with "
        "less state, or add a device."
    )


def test_all_devices_need_a_unit_each() -> None:
    assert refusal(equal_costs(2, 3), n_microbatches=4, use="all") == (
        "use='all' needs a unit for each device (got 2 units for 3 devices). Name fewer devices "
        "or plan with use='fastest'."
    )


def test_all_of_too_many_devices_cannot_be_planned() -> None:
    assert refusal(equal_costs(12, 11), n_microbatches=4, use="all") == (
        "use='all' plans at most 10 devices (got 11). Name fewer devices or plan with "
        "use='fastest'."
    )


def test_one_device_at_both_ends_excludes_the_others() -> None:
    costs = equal_costs(4, 2)
    assert refusal(costs, n_microbatches=4, use="all", pin_first="d1", pin_last="d1") == (
        "a device with the first and the last unit works alone (got d1 at both ends of 2 devices). "
        "Pin another one or plan with use='fastest'."
    )


def test_two_pinned_devices_need_two_units() -> None:
    assert refusal(equal_costs(1, 2), n_microbatches=4, pin_first="d0", pin_last="d1") == (
        "two pinned devices need a unit each (got one unit for d0 and d1). Pin one of them."
    )


def test_an_unknown_device_or_schedule_is_the_user_s_mistake() -> None:
    costs = equal_costs(2, 2)
    wrong: list[dict[str, Any]] = [
        {"pin_first": "pi"},
        {"pin_last": "pi"},
        {"devices": ["pi"]},
        {"schedule": "zigzag"},
    ]
    for options in wrong:
        with pytest.raises(ConfigError):
            partition(costs, n_microbatches=2, **options)


@pytest.mark.parametrize("objective", ["throughput", "latency"])
def test_the_best_cut_of_a_lossy_link_is_where_little_waits_for_lost_packets(
    objective: Literal["throughput", "latency"],
) -> None:
    lossy = {pair: Link(1e9, 30.0, loss=0.05) for pair in (("d0", "d1"), ("d1", "d0"))}
    costs = replace(equal_costs(3, 2), cuts=(Cut(1_000_000, 1_000_000), Cut(100, 100)))
    plans = best_plans(
        with_links(costs, lossy), schedule="1f1b", n_microbatches=4, objective=objective
    )
    assert [stage.stop_unit for stage in plans[1].stages] == [2, 3]
