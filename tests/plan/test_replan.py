"""A whole run watched: simulated and recorded timings in, decisions out."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from edgeweave.plan import Caution, Costs, Cut, Decision, Link, Monitor, Plan, partition, stages
from edgeweave.plan.costs import stage_seconds
from edgeweave.plan.drift import Drift
from edgeweave.plan.replan import corrected_costs
from tests.plan.recorded import recorded
from tests.plan.worlds import equal_costs, plan_of

N_UNITS, N_MICROBATCHES = 12, 4
SPIKES = 0.03
FREE = Link(1e9, 0.0)
SLOW = Link(2e6, 0.001)
WIDE = Cut(100_000, 100_000)
Slowness = Callable[[str, int], float]


def costs_of(move: Link = FREE) -> Costs:
    """Three equal devices; steps send nothing over their links, moves do."""
    return equal_costs(N_UNITS, 3, forward_seconds=0.01, backward_seconds=0.02, link=move)


def as_predicted(_device: str, _step: int) -> float:
    return 1.0


def third_from(start: int, stop: int | None = None, device: str = "d1") -> Slowness:
    def slowness(each: str, step: int) -> float:
        return 3.0 if each == device and start <= step and (stop is None or step < stop) else 1.0

    return slowness


def measured(
    plan: Plan, costs: Costs, slowness: Slowness, step: int, rng: random.Random, noise: float
) -> dict[str, float]:
    """What each device of the plan takes in a step: lognormal, with a spike now and then."""

    def seconds(stage: stages.Stage) -> float:
        taken = stage_seconds(costs, stage.device, stage.first_unit, stage.stop_unit).microbatch
        spike = rng.uniform(2, 10) if rng.random() < SPIKES else 1
        return taken * slowness(stage.device, step) * rng.lognormvariate(0, noise) * spike

    return {stage.device: seconds(stage) for stage in plan.stages}


def watched(
    slowness: Slowness = as_predicted,
    *,
    n_steps: int = 300,
    noise: float = 0.1,
    seed: int = 0,
    costs: Costs | None = None,
    caution: Caution | None = None,
    moves: bool = True,
) -> list[Decision]:
    """All decisions of a run; with ``moves`` what is decided is done."""
    costs = costs or costs_of()
    rng = random.Random(seed)
    monitor = Monitor(partition(costs, n_microbatches=N_MICROBATCHES), costs, caution=caution)
    decisions = []
    for step in range(n_steps):
        seconds = measured(monitor.plan, costs, slowness, step, rng, noise)
        decision = monitor.observe(step, seconds, steps_left=n_steps - 1 - step)
        if decision is not None:
            decisions.append(decision)
            if decision.changes and moves:
                monitor.take_up(decision)
    return decisions


def changes(decisions: list[Decision]) -> list[Decision]:
    return [decision for decision in decisions if decision.changes]


def n_units_of(device: str, plan: Plan) -> int:
    return sum(s.stop_unit - s.first_unit for s in plan.stages if s.device == device)


@pytest.mark.parametrize("noise", [0.05, 0.1])
@pytest.mark.parametrize("seed", range(10))
def test_a_device_slowed_to_a_third_is_planned_around_within_20_steps(
    noise: float, seed: int
) -> None:
    (decision,) = changes(watched(third_from(120), noise=noise, seed=seed))
    assert 120 <= decision.step < 140
    assert [departure.device for departure in decision.departures] == ["d1"]
    assert n_units_of("d1", decision.new) < n_units_of("d1", decision.old)
    assert decision.new_step_seconds < 0.7 * decision.old_step_seconds


def test_noise_alone_changes_nothing_in_100_runs() -> None:
    assert [watched(n_steps=200, seed=seed) for seed in range(100)] == [[]] * 100


def test_a_host_that_slows_all_devices_alike_is_no_reason_for_another_plan() -> None:
    decisions = watched(lambda _device, step: 2.0 if step >= 100 else 1.0)
    assert changes(decisions) == []
    first = decisions[0]
    assert [each.device for each in first.departures] == list(first.old.devices)


def test_a_slowdown_too_small_to_be_worth_it_is_said_and_left_alone() -> None:
    costs = equal_costs(60, 3, forward_seconds=0.01, backward_seconds=0.02)

    def slowness(device: str, step: int) -> float:
        return 1.25 if device == "d1" and step >= 100 else 1.0

    (decision,) = watched(slowness, noise=0.02, costs=costs)
    assert decision.verdict == "small gain"
    assert "d1 takes 1.2" in decision.line()
    assert decision.line().endswith("which is too little to be sure of.")


def heavy_costs() -> Costs:
    """A unit takes as long to move as two hundred to compute."""
    costs = costs_of(Link(1000.0, 0.0))
    units = tuple(replace(u, parameter_bytes=6000, trainable_bytes=6000) for u in costs.units)
    return replace(costs, units=units)


def test_a_slowdown_too_late_to_be_worth_it_is_said_and_left_alone() -> None:
    (decision,) = watched(third_from(120), n_steps=150, costs=heavy_costs())
    assert decision.verdict == "too late"
    assert "the plan stays" in decision.line()
    assert decision.line().endswith(", 21 to come.")
    (earlier,) = watched(third_from(120), n_steps=400, costs=heavy_costs())
    assert earlier.changes


@pytest.mark.parametrize("half_period", [3, 5, 8, 12, 20, 40])
@pytest.mark.parametrize("moves", [True, False])
def test_a_device_that_comes_and_goes_does_not_make_the_plan_flap(
    half_period: int, moves: bool
) -> None:
    def slowness(device: str, step: int) -> float:
        return 3.0 if device == "d1" and step // half_period % 2 else 1.0

    steps = [each.step for each in changes(watched(slowness, n_steps=800, moves=moves))]
    assert len(steps) <= 5  # pauses of 50, 100, 200 and 400 steps
    assert all(after - before >= 50 for before, after in pairwise(steps))


def test_a_device_that_is_back_for_good_gets_its_units_back() -> None:
    slowed, back = changes(watched(third_from(100, 300), n_steps=500))
    assert 300 <= back.step < 320
    assert n_units_of("d1", back.new) >= n_units_of("d1", slowed.old)


def test_the_next_change_waits_for_the_pause_which_doubles_where_the_last_did_not_pay() -> None:
    slowed, back = changes(watched(third_from(100, 120), n_steps=500))
    assert back.step == slowed.step + 2 * Caution().least_steps_between
    quick = Caution(least_steps_between=5)
    slowed, back = changes(watched(third_from(100, 200), n_steps=500, caution=quick))
    assert back.step < 220


def test_two_devices_that_slow_down_in_one_moment_are_planned_around_at_once() -> None:
    def slowness(device: str, step: int) -> float:
        return 3.0 if device in ("d0", "d1") and step >= 100 else 1.0

    for seed in range(10):
        decisions = watched(slowness, seed=seed)
        assert {each.device for each in decisions[0].departures} == {"d0", "d1"}


def test_a_step_that_tells_nothing_of_a_device_is_left_out() -> None:
    costs = costs_of()
    monitor = Monitor(partition(costs, n_microbatches=4), costs)
    for step in range(100):
        taken = measured(monitor.plan, costs, third_from(0), step, random.Random(step), 0.0)
        seconds = {**taken, "d1": 0.0, "stranger": 1.0}
        assert monitor.observe(step, seconds, steps_left=100) is None
        assert monitor.observe(step, {}, steps_left=100) is None


def drifted(ratio: float, *, from_step: int) -> Drift:
    drift = Drift()
    for step in range(60):
        drift.observe(ratio if step >= from_step else 1.0)
    return drift


def test_a_device_that_changed_did_so_for_the_units_it_does_not_hold_too() -> None:
    costs = costs_of()
    plan = plan_of(costs, ("d0", "d1"), (0, 4, 12))
    slower = corrected_costs(costs, plan, {"d1": drifted(3.0, from_step=40)}).device("d1")
    assert slower.forward_seconds == pytest.approx([0.03] * 12)
    assert slower.backward_seconds == pytest.approx([0.06] * 12)
    faster = corrected_costs(costs, plan, {"d1": drifted(0.5, from_step=40)}).device("d1")
    assert faster.forward_seconds == pytest.approx([0.005] * 12)


def test_a_device_faster_than_predicted_from_the_start_is_believed_so_for_what_it_holds() -> None:
    costs = costs_of()
    plan = plan_of(costs, ("d0", "d1"), (0, 4, 12))
    faster = corrected_costs(costs, plan, {"d1": drifted(0.5, from_step=0)}).device("d1")
    assert faster.forward_seconds == pytest.approx([0.01] * 4 + [0.005] * 8)
    slower = corrected_costs(costs, plan, {"d1": drifted(2.0, from_step=0)}).device("d1")
    assert slower.forward_seconds == pytest.approx([0.02] * 12)


def test_who_is_as_predicted_or_holds_no_stage_costs_what_it_did() -> None:
    costs = costs_of()
    plan = plan_of(costs, ("d0", "d1"), (0, 4, 12))
    assert corrected_costs(costs, plan, {"d0": Drift(), "d1": Drift()}) == costs


def test_a_recorded_run_is_decided_on_when_its_device_is_slowed_and_when_it_is_freed() -> None:
    run = recorded()
    monitor = Monitor(run.plan, run.costs)
    n_steps = len(run.seconds[run.slowed])
    decisions = []
    for step in range(n_steps):
        seconds = {device: taken[step] for device, taken in run.seconds.items()}
        decision = monitor.observe(step, seconds, steps_left=n_steps - 1 - step)
        decisions += [decision] if decision is not None else []
    slowed, freed = decisions
    assert slowed.changes
    assert run.slowed_at_step <= slowed.step < run.slowed_at_step + 20
    assert [departure.device for departure in slowed.departures] == [run.slowed]
    assert slowed.departures[0].ratio == pytest.approx(3.0, rel=0.1)
    assert freed.verdict == "none better"
    assert run.freed_at_step <= freed.step < run.freed_at_step + 20


def watched_links(rate: Callable[[int], float | None], n_steps: int = 120) -> list[Decision]:
    """Decisions of a run in which nothing changes but what d0 -> d1 is seen to move."""
    costs = equal_costs(
        N_UNITS, 3, forward_seconds=0.01, backward_seconds=0.02, link=SLOW, cut=WIDE
    )
    plan = plan_of(costs, ("d0", "d1", "d2"), (0, 4, 8, 12))
    monitor, rng = Monitor(plan, costs), random.Random(0)
    decisions = []
    for step in range(n_steps):
        moved = rate(step)
        rates = {} if moved is None else {("d0", "d1"): moved * rng.lognormvariate(0, 0.05)}
        seconds = measured(plan, costs, as_predicted, step, rng, 0.05)
        decision = monitor.observe(
            step, seconds, steps_left=n_steps - 1 - step, link_bytes_per_second=rates
        )
        decisions += [] if decision is None else [decision]
    return decisions


def test_a_link_that_became_slower_is_planned_around() -> None:
    (decision,) = watched_links(lambda step: 2e6 if step < 60 else 2e5)
    assert 60 <= decision.step < 80
    assert [(each.device, each.target) for each in decision.departures] == [("d0", "d1")]
    assert "the link d0 -> d1 takes 1" in decision.line()
    assert decision.changes
    assert ("d0", "d1") not in pairwise(decision.new.devices)
    assert decision.new_step_seconds < decision.old_step_seconds


def test_a_link_for_which_nobody_waits_is_believed_to_be_as_it_was() -> None:
    assert watched_links(lambda step: None) == []
    assert watched_links(lambda step: 2e6) == []
    assert watched_links(lambda step: 2e5 if step % 3 == 0 else None) == []


def test_a_link_that_is_not_heard_of_any_more_holds_no_decision_up() -> None:
    costs = costs_of()
    plan = plan_of(costs, ("d0", "d1"), (0, 4, 12))
    monitor, rng = Monitor(plan, costs), random.Random(0)
    decisions = []
    for step in range(100):
        seconds = measured(plan, costs, third_from(40), step, rng, 0.02)
        rates = {("d0", "d1"): 1e9 if step < 30 else 1e8} if step < 37 else {}
        found = monitor.observe(step, seconds, steps_left=99 - step, link_bytes_per_second=rates)
        decisions += [] if found is None else [found]
    assert [each.device for decision in decisions for each in decision.departures] == ["d1"]


def without(costs: Costs, device: str) -> Costs:
    return costs.only([each.device for each in costs.devices if each.device != device])


def test_a_device_that_joins_is_taken_in_where_that_is_worth_it() -> None:
    known = without(costs_of(), "d2")
    monitor = Monitor(partition(known, n_microbatches=4), known)
    decision = monitor.join(7, costs_of().device("d2"), {}, steps_left=100)
    assert decision.changes
    assert (decision.step, decision.arrivals, decision.departures) == (7, ("d2",), ())
    assert decision.line().startswith("step 7: d2 has joined; another plan would shorten a step ")
    assert set(decision.new.devices) == {"d0", "d1", "d2"}
    assert decision.new == partition(costs_of(), n_microbatches=4)
    assert monitor.plan == decision.old
    monitor.take_up(decision)
    assert monitor.plan == decision.new


def test_a_device_that_joins_behind_a_slow_link_is_not_taken_in() -> None:
    known = equal_costs(
        N_UNITS, 3, forward_seconds=0.01, backward_seconds=0.02, link=FREE, cut=WIDE
    )
    slow, newcomer = Link(10.0, 1.0), known.device("d2")
    known = without(known, "d2")
    monitor = Monitor(partition(known, n_microbatches=4), known)
    links = {
        ends: slow
        for other in ("d0", "d1", "coordinator")
        for ends in (("d2", other), (other, "d2"))
    }
    decision = monitor.join(7, newcomer, links, steps_left=100)
    assert not decision.changes
    assert "d2" not in decision.new.devices
    assert monitor.costs.link("d0", "d2") == slow


def test_a_device_that_comes_too_late_is_left_out() -> None:
    known = without(heavy_costs(), "d2")
    monitor = Monitor(partition(known, n_microbatches=4), known)
    decision = monitor.join(7, heavy_costs().device("d2"), {}, steps_left=1)
    assert decision.verdict == "too late"
    assert decision.line().startswith("step 7: d2 has joined; the plan stays, another plan would ")


def test_a_device_that_comes_back_is_believed_to_be_as_it_says() -> None:
    costs = costs_of()
    monitor = Monitor(partition(costs, n_microbatches=4), costs)
    slow = replace(costs.device("d1"), forward_seconds=(1.0,) * N_UNITS)
    monitor.join(7, slow, {}, steps_left=100)
    assert [each.device for each in monitor.costs.devices] == ["d0", "d1", "d2"]
    assert monitor.costs.device("d1").forward_seconds == slow.forward_seconds


def test_a_slowdown_soon_after_a_newcomer_was_taken_in_waits_for_twice_the_pause() -> None:
    known = without(costs_of(), "d2")
    monitor = Monitor(partition(known, n_microbatches=4), known)
    decision = monitor.join(10, costs_of().device("d2"), {}, steps_left=500)
    monitor.take_up(decision)
    rng = random.Random(0)
    found = [
        monitor.observe(
            step,
            measured(monitor.plan, costs_of(), third_from(12), step, rng, 0.02),
            steps_left=500 - step,
        )
        for step in range(11, 200)
    ]
    first = next(each for each in found if each is not None)
    assert first.step == 10 + 2 * Caution().least_steps_between


def test_what_turned_out_worse_is_left_and_makes_the_next_change_wait_twice_as_long() -> None:
    costs = costs_of()
    plan = partition(costs, n_microbatches=4)
    monitor = Monitor(plan, costs)
    tried = plan_of(costs, ("d0", "d1"), (0, 4, 12))
    decision = monitor.join(20, costs.device("d2"), {}, steps_left=500)
    change = replace(decision, verdict="change", new=tried)
    monitor.take_up(change)
    assert monitor.plan == tried
    monitor.take_up(replace(change, step=28, verdict="worse", old=tried, new=plan))
    assert monitor.plan == plan
    rng = random.Random(0)
    found = [
        monitor.observe(
            step, measured(plan, costs, third_from(30), step, rng, 0.02), steps_left=500 - step
        )
        for step in range(29, 250)
    ]
    first = next(each for each in found if each is not None)
    assert first.step == 28 + 2 * Caution().least_steps_between


def test_a_move_takes_what_was_learnt_of_the_devices_along() -> None:
    costs = costs_of()
    (decision,) = changes(watched(third_from(20), n_steps=60, moves=False))
    monitor = Monitor(partition(costs, n_microbatches=4), costs)
    rng = random.Random(0)
    for step in range(decision.step + 1):
        seconds = measured(monitor.plan, costs, third_from(20), step, rng, 0.1)
        monitor.observe(step, seconds, steps_left=60 - step)
    before = monitor.costs.device("d1")
    monitor.take_up(decision)
    assert monitor.costs.device("d1") == before
    assert before.forward_seconds[0] > 0.02
