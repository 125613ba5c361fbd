"""Keep or change: the arithmetic of one decision, each verdict, and what it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.core.errors import ConfigError
from edgeweave.plan import (
    Caution,
    Coding,
    Costs,
    Cut,
    Decision,
    Departure,
    DeviceCosts,
    Link,
    Plan,
    UnitFacts,
    partition,
    simulate,
)
from edgeweave.plan.decision import decide
from tests.plan.worlds import equal_costs, plan_of, small_costs

SLOW = (Departure("d1", 3.0),)
WEIGHT = UnitFacts(
    "unit", parameter_bytes=3000, trainable_bytes=2000, buffer_bytes=100, activation_bytes=0
)


def costs_of(n_units: int = 12, **options: Any) -> Costs:
    """Two equal devices; a second moves 1000 bytes."""
    costs = equal_costs(n_units, 2, link=Link(1e9, 0.0), **options)
    return replace(costs, units=(WEIGHT,) * n_units, optimizer_bytes_per_trainable_byte=2.0)


def slowed(costs: Costs, ratio: float, device: str = "d1") -> Costs:
    def stretched(each: DeviceCosts) -> DeviceCosts:
        forward = tuple(ratio * seconds for seconds in each.forward_seconds)
        backward = tuple(ratio * seconds for seconds in each.backward_seconds)
        return replace(each, forward_seconds=forward, backward_seconds=backward)

    devices = [stretched(each) if each.device == device else each for each in costs.devices]
    return replace(costs, devices=tuple(devices))


def halves(costs: Costs) -> Plan:
    n_units = len(costs.units)
    return plan_of(costs, ("d0", "d1"), (0, n_units // 2, n_units), n_microbatches=8)


def decided(costs: Costs, **options: Any) -> Decision:
    options = {"step": 100, "steps_left": 1000, "caution": Caution(), **options}
    return decide(halves(costs), costs, SLOW, **options)


def test_a_device_at_a_third_gives_units_away() -> None:
    decision = decided(slowed(costs_of(), 3.0))
    assert decision.changes
    assert [(stage.device, stage.first_unit, stage.stop_unit) for stage in decision.new.stages] == [
        ("d0", 0, 10),
        ("d1", 10, 12),
    ]
    assert decision.move_bytes == 4 * (3000 + 100 + 2 * 2000)
    assert decision.line() == (
        "step 100: d1 takes 3.00 times as long as predicted; another plan would shorten a step "
        "from 5 min 0 s to 2 min 40 s (47%): moving 27.7 KiB takes 5 min 0 s, paid back after "
        "3 steps, 1000 to come."
    )


def test_the_move_takes_each_transfer_in_turn_and_one_step() -> None:
    costs = replace(slowed(costs_of(), 3.0), default_link=Link(1000.0, 0.5))
    decision = decided(costs)
    assert decision.move_seconds == pytest.approx(28.4 + 0.5 + decision.old_step_seconds)


def test_where_no_other_plan_is_faster_the_plan_stays() -> None:
    decision = decided(costs_of())
    assert (decision.verdict, decision.changes, decision.break_even_steps) == (
        "none better",
        False,
        None,
    )
    assert decision.new.stages == decision.old.stages
    assert (decision.move_bytes, decision.gain) == (0, 0.0)
    assert decision.line() == (
        "step 100: d1 takes 3.00 times as long as predicted; the plan stays, no other is faster."
    )


def test_a_small_gain_is_not_worth_it() -> None:
    decision = decided(slowed(costs_of(40), 1.15))
    assert decision.verdict == "small gain"
    assert 0 < decision.gain < 0.1
    assert decision.line().endswith("which is too little to be sure of.")
    assert decided(slowed(costs_of(40), 1.15), caution=Caution(least_gain=0.0)).changes


@pytest.mark.parametrize(("steps_left", "verdict"), [(2, "too late"), (3, "change")])
def test_a_change_is_made_where_the_steps_left_pay_for_it(steps_left: int, verdict: str) -> None:
    decision = decided(slowed(costs_of(), 3.0), steps_left=steps_left)
    assert decision.verdict == verdict
    assert decision.break_even_steps == 3
    if verdict == "too late":
        assert decision.line().endswith("paid back after 3 steps, 2 to come.")


def test_the_horizon_counts_where_it_is_nearer_than_the_end() -> None:
    costs = slowed(costs_of(), 3.0)
    assert decided(costs, caution=Caution(horizon_steps=2)).verdict == "too late"
    assert decided(costs, caution=Caution(horizon_steps=2000)).steps_left == 1000


def test_codecs_that_follow_a_slow_link_are_no_change_of_plan() -> None:
    """Planned for a fast link; what a new plan would gain by codecs, the old one has already.

    On slower links than this one another split is better too.
    """
    fast = replace(
        equal_costs(12, 2, link=Link(1e9, 0.0), cut=Cut(40_000, 40_000)),
        coding=Coding((16, 8), overhead_bits=0.0),
    )
    slow = replace(fast, default_link=Link(4e3, 0.0))
    plan = partition(fast, n_microbatches=8, extra_in_flight=2)
    caution = Caution(least_gain=0.0)
    decision = decide(plan, slow, SLOW, step=100, steps_left=1000, caution=caution)
    assert plan.codecs == ()
    assert {codec.bits for codec in decision.old.codecs} == {8}
    assert decision.move_bytes == 0
    assert decision.gain == 0
    assert simulate(plan, slow).step_seconds > 1.1 * decision.old_step_seconds


@given(small_costs(), st.integers(1, 4), st.integers(0, 50))
def test_a_change_is_never_predicted_to_be_slower_nor_to_cost_more_than_it_gives(
    costs: Costs, n_microbatches: int, steps_left: int
) -> None:
    unlimited = tuple(replace(each, memory_limit_bytes=None) for each in costs.devices)
    costs = replace(costs, devices=unlimited)
    order = tuple(device.device for device in costs.devices)[: len(costs.units)]
    bounds = (*range(len(order)), len(costs.units))
    plan = plan_of(costs, order, bounds, n_microbatches=n_microbatches)
    decision = decide(
        plan, costs, SLOW, step=0, steps_left=steps_left, caution=Caution(least_gain=0.0)
    )
    assert decision.old_step_seconds == simulate(plan, costs).step_seconds
    assert decision.gain_seconds >= 0
    if decision.changes:
        assert decision.gain_seconds * steps_left > decision.move_seconds
        assert decision.new == partition(costs, n_microbatches=n_microbatches)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"least_gain": 1.0}, "least_gain is a share of a step, 0 or more and below 1 (got 1.0)."),
        ({"least_gain": -0.1}, "least_gain is a share of a step"),
        (
            {"least_steps_between": 0},
            "least_steps_between and horizon_steps are at least one step (got 0 and None).",
        ),
        ({"horizon_steps": 0}, "least_steps_between and horizon_steps are at least one step"),
    ],
)
def test_caution_that_means_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Caution(**options)
    assert str(refused.value).startswith(message)
