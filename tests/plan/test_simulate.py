from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.core.errors import ConfigError
from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.plan import (
    SCHEDULES,
    Costs,
    Cut,
    Event,
    Feed,
    Link,
    Plan,
    Timeline,
    actions,
    in_flight,
    partition,
    simulate,
)

from .worlds import equal_costs, every_placement, one_unit_each, plan_of, small_costs, with_links


def step_of(costs: Costs, *, n_microbatches: int, schedule: str = "1f1b", extra: int = 0) -> float:
    plan = one_unit_each(
        costs, schedule=schedule, n_microbatches=n_microbatches, extra_in_flight=extra
    )
    return simulate(plan, costs).step_seconds


def spans_of(timeline: Timeline, kind: str, stage: int) -> list[tuple[float, float]]:
    return [
        (event.start_seconds, event.stop_seconds)
        for event in timeline.events
        if (event.kind, event.stage) == (kind, stage)
    ]


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize(("n_stages", "n_microbatches"), [(1, 1), (1, 5), (3, 4), (4, 2), (5, 16)])
def test_equal_stages_take_a_filling_and_a_draining_more(
    schedule: str, n_stages: int, n_microbatches: int
) -> None:
    costs = equal_costs(n_stages, n_stages, forward_seconds=1.0, backward_seconds=2.0)
    step = step_of(costs, schedule=schedule, n_microbatches=n_microbatches)
    assert step == (n_microbatches + n_stages - 1) * 3.0


def test_one_f_one_b_runs_as_drawn() -> None:
    costs = equal_costs(3, 3)
    timeline = simulate(one_unit_each(costs, n_microbatches=4), costs, n_steps=1)
    starts = [
        [
            (event.kind[0].upper() + str(event.microbatch), event.start_seconds)
            for event in timeline.events
            if event.stage == stage and event.kind in {"forward", "backward"}
        ]
        for stage in range(3)
    ]
    drawn = [
        "F0 F1 F2 .  .  B0 F3 B1 .  B2 .  B3",
        ".  F0 F1 .  B0 F2 B1 F3 B2 .  B3",
        ".  .  F0 B0 F1 B1 F2 B2 F3 B3",
    ]
    assert starts == [
        [(name, float(slot)) for slot, name in enumerate(row.split()) if name != "."]
        for row in drawn
    ]


def test_a_slow_link_bounds_gpipe() -> None:
    # The link starts at 1 and carries four messages of 10 s; F3, four backwards, the last B.
    costs = equal_costs(2, 2, link=Link(1.0, 0.0), cut=Cut(10, 0))
    assert step_of(costs, schedule="gpipe", n_microbatches=4) == 1 + 40 + 1 + 4 + 1


def test_a_slow_link_bounds_one_f_one_b() -> None:
    # Three backwards are already done while the last message is on its way.
    costs = equal_costs(2, 2, link=Link(1.0, 0.0), cut=Cut(10, 0))
    assert step_of(costs, n_microbatches=4) == 1 + 40 + 1 + 1 + 1


def test_the_slow_direction_of_a_link_is_its_own() -> None:
    costs = replace(equal_costs(2, 2), cuts=(Cut(0, 10),))
    slow_back = with_links(costs, {("d1", "d0"): Link(1.0, 0.0)})
    slow_there = with_links(costs, {("d0", "d1"): Link(1.0, 0.0)})
    assert step_of(slow_back, n_microbatches=4) == 1 + 1 + 1 + 40 + 1
    assert step_of(slow_there, n_microbatches=4) == pytest.approx((4 + 1) * 2)


def test_more_in_flight_hides_latency() -> None:
    costs = equal_costs(2, 2, link=Link(1e9, 3.0))
    # With two in flight, every two microbatches wait for a round trip of 10 s.
    assert step_of(costs, n_microbatches=8) == 42
    # With six, the last stage computes without a pause from 4 to 20.
    assert step_of(costs, n_microbatches=8, extra=4) == 1 + 3 + 16 + 3 + 1


def test_latency_does_not_occupy_the_link() -> None:
    costs = equal_costs(2, 2, link=Link(1.0, 5.0), cut=Cut(2, 0))
    timeline = simulate(one_unit_each(costs, schedule="gpipe", n_microbatches=2), costs, n_steps=1)
    assert spans_of(timeline, "send", 0) == [(1.0, 3.0), (3.0, 5.0)]
    assert spans_of(timeline, "forward", 1) == [(8.0, 9.0), (10.0, 11.0)]


def test_the_optimizer_takes_time_for_what_it_trains() -> None:
    costs = equal_costs(1, 1)
    slow = replace(costs.devices[0], update_seconds_per_byte=0.5)
    assert step_of(replace(costs, devices=(slow,)), n_microbatches=3) == 3 * 2 + 10 * 0.5


def test_the_next_step_waits_only_for_a_stage_s_own_update() -> None:
    costs = equal_costs(2, 2)
    slow = replace(costs.devices[1], update_seconds_per_byte=0.5)
    costs = replace(costs, devices=(costs.devices[0], slow))
    timeline = simulate(one_unit_each(costs, n_microbatches=2), costs, n_steps=2)
    assert spans_of(timeline, "update", 1)[0] == (5.0, 10.0)
    assert spans_of(timeline, "update", 0)[0] == (6.0, 6.0)
    assert spans_of(timeline, "forward", 0)[2] == (6.0, 7.0)
    assert spans_of(timeline, "forward", 1)[2] == (10.0, 11.0)


def test_the_step_is_the_time_between_the_last_updates_of_the_first_stage() -> None:
    costs = equal_costs(3, 3)
    plan = one_unit_each(costs, n_microbatches=4)
    one, three = simulate(plan, costs, n_steps=1), simulate(plan, costs, n_steps=3)
    assert (one.step_seconds, one.stop_seconds) == (12.0, 12.0)
    assert (three.step_seconds, three.stop_seconds) == (12.0, 36.0)


def test_the_bubble_of_equal_stages() -> None:
    costs = equal_costs(3, 3)
    timeline = simulate(one_unit_each(costs, n_microbatches=4), costs)
    assert timeline.busy_seconds("d1") == 2 * 4 * 2.0
    assert timeline.idle_share("d1") == pytest.approx(2 / 6)
    assert timeline.bubble == pytest.approx(2 / 6)


def test_work_that_takes_no_time_leaves_nobody_idle() -> None:
    costs = equal_costs(2, 2, forward_seconds=0.0, backward_seconds=0.0)
    timeline = simulate(one_unit_each(costs), costs)
    assert (timeline.step_seconds, timeline.bubble) == (0.0, 0.0)


def test_a_simulation_needs_a_step() -> None:
    costs = equal_costs(1, 1)
    with pytest.raises(ConfigError) as caught:
        simulate(one_unit_each(costs), costs, n_steps=0)
    assert str(caught.value) == "n_steps must be positive (got 0). Simulate at least one."


@given(small_costs())
def test_the_step_of_a_plan_is_the_simulated_one(costs: Costs) -> None:
    free = tuple(replace(device, memory_limit_bytes=None) for device in costs.devices)
    costs = replace(costs, devices=free)
    plan = partition(costs, n_microbatches=3)
    assert plan.step_seconds == simulate(plan, costs).step_seconds


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, Costs]:
    costs = draw(small_costs())
    placement = draw(st.sampled_from(list(every_placement(costs))))
    plan = plan_of(
        costs,
        placement.devices,
        placement.bounds,
        schedule=draw(st.sampled_from(sorted(SCHEDULES))),
        n_microbatches=draw(st.integers(1, 5)),
        extra_in_flight=draw(st.integers(0, 2)),
    )
    return plan, costs


@given(plans())
def test_devices_and_links_do_one_thing_at_a_time(world: tuple[Plan, Costs]) -> None:
    timeline = simulate(*world)
    lanes: dict[tuple[str, str | None], list[Event]] = {}
    for event in timeline.events:
        lanes.setdefault((event.device, event.receiver), []).append(event)
    for lane in lanes.values():
        for before, after in pairwise(lane):
            assert before.stop_seconds <= after.start_seconds


@given(plans())
def test_devices_run_the_actions_of_their_schedule(world: tuple[Plan, Costs]) -> None:
    plan, costs = world
    timeline = simulate(plan, costs, n_steps=1)
    for stage in range(len(plan.stages)):
        ran = [
            (event.kind, event.microbatch)
            for event in timeline.events
            if event.stage == stage and event.kind != "send"
        ]
        place = (plan.schedule, stage, len(plan.stages), plan.n_microbatches)
        order = [
            (type(action).__name__.lower(), getattr(action, "microbatch", None))
            for action in actions(*place, extra_in_flight=plan.extra_in_flight)
        ]
        if plan.schedule == "gpipe":
            assert ran == order
        for kind in ("forward", "backward", "update"):
            assert [each for each in ran if each[0] == kind] == [
                each for each in order if each[0] == kind
            ]
        held = 0
        for kind, _ in ran:
            held += (kind == "forward") - (kind == "backward")
            assert held <= in_flight(*place, plan.extra_in_flight)


@given(plans())
def test_nothing_is_used_before_it_has_arrived(world: tuple[Plan, Costs]) -> None:
    plan, costs = world
    timeline = simulate(plan, costs)
    starts: dict[tuple[str, int, int, int | None], float] = {
        (event.kind, event.stage, event.step, event.microbatch): event.start_seconds
        for event in timeline.events
        if event.kind != "send"
    }
    sends = [event for event in timeline.events if event.kind == "send"]
    fed = [
        stage
        for stage in plan.stages
        if any({*range(stage.first_unit, stage.stop_unit)} & {*f.units} for f in costs.feeds)
    ]
    per_microbatch = 2 * (len(plan.stages) - 1) + len(fed)
    assert len(sends) == 2 * plan.n_microbatches * per_microbatch
    for send in sends:
        behind = plan.devices.index(str(send.receiver))
        kind = "forward" if behind > send.stage else "backward"
        latency = costs.link(send.device, str(send.receiver)).latency_seconds
        assert starts[kind, behind, send.step, send.microbatch] >= send.stop_seconds + latency


@given(plans())
def test_the_coordinator_sends_no_more_than_its_window(world: tuple[Plan, Costs]) -> None:
    plan, costs = world
    timeline = simulate(plan, costs)
    last = len(plan.stages) - 1
    back = costs.link(plan.devices[last], COORDINATOR_NAME).latency_seconds
    results = {
        (event.step, event.microbatch): event.stop_seconds + back
        for event in timeline.events
        if (event.kind, event.stage) == ("forward", last)
    }
    held = len(plan.stages) + plan.extra_in_flight + 2
    for event in timeline.events:
        if event.device == COORDINATOR_NAME and event.microbatch is not None:
            before = (event.step, event.microbatch - held)
            if event.step and event.microbatch < held:
                before = (event.step - 1, plan.n_microbatches - 1)
            assert event.start_seconds >= results.get(before, 0.0)


def fed(costs: Costs, units: tuple[int, ...], links: dict[tuple[str, str], Link]) -> Costs:
    return replace(with_links(costs, links), feeds=(Feed("input:0", 10, units),))


def test_a_slow_link_from_the_coordinator_bounds_a_step() -> None:
    costs = fed(equal_costs(1, 1), (0,), {(COORDINATOR_NAME, "d0"): Link(1.0, 0.0)})
    timeline = simulate(one_unit_each(costs, n_microbatches=4), costs)
    assert spans_of(timeline, "forward", 0)[:4] == [(10, 11), (20, 21), (30, 31), (40, 41)]
    # The last forward ends at 41, and lets the next step's inputs go while the backward runs.
    assert spans_of(timeline, "forward", 0)[4] == (51, 52)
    assert spans_of(timeline, "update", 0) == [(42, 42), (83, 83)]
    assert timeline.step_seconds == 41


def test_a_result_lets_the_next_microbatch_go() -> None:
    links = {
        (COORDINATOR_NAME, "d0"): Link(1e18, 5.0),
        ("d0", COORDINATOR_NAME): Link(1e18, 3.0),
    }
    costs = fed(equal_costs(1, 1), (0,), links)
    timeline = simulate(one_unit_each(costs, n_microbatches=4), costs)
    # Three are under way at first; the result of the first is known at 9, and 5 s later the last
    # is there. Its result is known at 18, when the next step begins.
    starts = [start for start, _ in spans_of(timeline, "forward", 0)]
    assert starts == [5, 7, 9, 14, 23, 25, 27, 32]
    assert timeline.step_seconds == 18


def test_targets_go_straight_to_the_stage_with_the_loss() -> None:
    costs = fed(equal_costs(2, 2), (1,), {(COORDINATOR_NAME, "d1"): Link(1.0, 0.0)})
    timeline = simulate(one_unit_each(costs, n_microbatches=4), costs)
    assert spans_of(timeline, "send", -1)[:4] == [(0, 10), (10, 20), (20, 30), (30, 40)]
    assert spans_of(timeline, "forward", 1)[:4] == [(10, 11), (20, 21), (30, 31), (40, 41)]
    assert timeline.step_seconds == 41


def test_what_two_stages_use_is_sent_to_both_and_once_to_each() -> None:
    costs = fed(equal_costs(3, 2), (0, 1, 2), {})
    plan = plan_of(costs, ("d0", "d1"), (0, 1, 3), n_microbatches=1)
    sends = [e for e in simulate(plan, costs, n_steps=1).events if e.device == COORDINATOR_NAME]
    assert [(send.stage, send.receiver) for send in sends] == [(-1, "d0"), (-1, "d1")]


def test_a_backward_goes_before_a_forward_whose_input_is_late() -> None:
    costs = fed(equal_costs(2, 2), (0,), {(COORDINATOR_NAME, "d0"): Link(1.0, 0.0)})
    timeline = simulate(one_unit_each(costs, n_microbatches=3), costs, n_steps=1)
    assert spans_of(timeline, "forward", 0) == [(10, 11), (20, 21), (30, 31)]
    assert spans_of(timeline, "backward", 0) == [(13, 14), (23, 24), (33, 34)]


def lossy(costs: Costs, loss: float) -> Costs:
    return with_links(costs, {("d0", "d1"): Link(1.0, 1.0, loss), ("d1", "d0"): Link(1.0, 1.0)})


def test_a_message_waits_a_round_trip_for_a_lost_packet_on_average_or_as_chance_has_it() -> None:
    costs = lossy(equal_costs(2, 2), 0.5)
    plan = one_unit_each(costs, n_microbatches=1)
    without = simulate(plan, lossy(equal_costs(2, 2), 0.0)).step_seconds
    # One packet is lost once with 1/2, twice with 1/4, ...: one round trip of 2 s on average.
    assert simulate(plan, costs).step_seconds == pytest.approx(without + 2, rel=1e-5)
    drawn = simulate(plan, costs, n_steps=4000, seed=1)
    assert drawn.step_seconds == pytest.approx(without + 2, rel=0.02)
    assert drawn.step_seconds == simulate(plan, costs, n_steps=4000, seed=1).step_seconds


def test_messages_arrive_in_order_whatever_is_lost() -> None:
    costs = lossy(equal_costs(2, 2), 0.5)
    timeline = simulate(one_unit_each(costs, n_microbatches=8), costs, n_steps=20, seed=3)
    forwards = [event for event in timeline.events if event.kind == "forward" and event.stage == 1]
    order = [(event.step, event.microbatch or 0) for event in forwards]
    assert order == sorted(order)
    assert len(order) == 160
