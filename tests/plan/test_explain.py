from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings

from edgeweave.core.errors import PlanError
from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.plan import (
    Costs,
    Cut,
    Deviation,
    DeviceCosts,
    DeviceShare,
    Explanation,
    Feed,
    LeftOut,
    Link,
    explain,
    partition,
)

from .worlds import equal_costs, one_unit_each, plan_of, small_costs, with_links


def test_the_bottleneck_is_the_busiest_device() -> None:
    costs = equal_costs(4, 2)
    explanation = explain(plan_of(costs, ("d0", "d1"), (0, 1, 4)), costs)
    assert (explanation.bottleneck, explanation.bottleneck_kind) == ("d1", "device")
    assert explanation.bottleneck_seconds == 6.0


def test_the_bottleneck_may_be_one_direction_of_a_link() -> None:
    costs = replace(equal_costs(2, 2), cuts=(Cut(10, 10),))
    costs = with_links(costs, {("d1", "d0"): Link(1.0, 0.0)})
    explanation = explain(one_unit_each(costs), costs)
    assert (explanation.bottleneck, explanation.bottleneck_kind) == ("d1 -> d0", "link")
    assert explanation.bottleneck_seconds == 10.0


def test_the_bottleneck_may_be_the_link_from_the_coordinator() -> None:
    costs = with_links(equal_costs(1, 1), {(COORDINATOR_NAME, "d0"): Link(1.0, 0.0)})
    costs = replace(costs, feeds=(Feed("input:0", 10, (0,)),))
    explanation = explain(one_unit_each(costs), costs)
    assert (explanation.bottleneck, explanation.bottleneck_kind) == ("coordinator -> d0", "link")
    assert explanation.lines()[0] == (
        "A step of 4 microbatches takes 41 s; the bottleneck is the link from the coordinator to "
        "d0 with 10 s for each microbatch."
    )


def test_each_device_says_what_it_does_and_what_it_adds() -> None:
    costs = equal_costs(4, 2, memory_limit_bytes=5000)
    plan = partition(costs, n_microbatches=3, extra_in_flight=0)
    explanation = explain(plan, costs)
    assert explanation.step_seconds == (3 + 1) * 4.0
    first, second = explanation.devices
    assert first == DeviceShare(
        device="d0",
        first_unit=0,
        stop_unit=2,
        units_share=0.5,
        compute_seconds=12.0,
        transfer_seconds=0.0,
        idle_share=0.25,
        memory_bytes=2 * (21 + 2 * 100),
        memory_limit_bytes=5000,
        step_seconds_without=24.0,
        slowdown_without=0.5,
    )
    assert (second.device, second.memory_bytes) == ("d1", 2 * (21 + 100))


def test_a_device_that_would_slow_the_others_is_left_out_with_the_reason() -> None:
    costs = equal_costs(2, 2)
    slow = DeviceCosts("old", (8.0, 8.0), (8.0, 8.0), None)
    costs = replace(costs, devices=(costs.devices[0], slow))
    plan = partition(costs, n_microbatches=4)
    assert plan.devices == ("d0",)
    (left_out,) = explain(plan, costs).left_out
    # One unit on each: the old one computes 4 x 16 s, and the other is done in between.
    assert left_out == LeftOut("old", 64.0, 64.0 / 16.0 - 1)
    assert left_out.line() == "old would slow you by 300 %, left out."


def test_a_device_that_cannot_be_added_is_left_out() -> None:
    costs = equal_costs(1, 2)
    (left_out,) = explain(partition(costs, n_microbatches=2), costs).left_out
    assert left_out == LeftOut("d1", None, None)
    assert left_out.line() == "d1 cannot be added to these devices, left out."


@pytest.mark.parametrize(
    ("slowdown", "line"),
    [
        (0.12, "pi would slow you by 12 %, left out."),
        (0.004, "pi would change nothing, left out."),
        (-0.004, "pi would change nothing, left out."),
        (-0.2, "pi would shorten a step by 20 %, but this plan leaves it out."),
    ],
)
def test_what_is_said_of_a_device_left_out(slowdown: float, line: str) -> None:
    assert LeftOut("pi", 1.0, slowdown).line() == line


def test_the_lines_of_a_plan_with_two_devices() -> None:
    costs = equal_costs(4, 2, memory_limit_bytes=4096)
    explanation = explain(partition(costs, n_microbatches=3, extra_in_flight=0), costs)
    assert explanation.lines() == (
        "A step of 3 microbatches takes 16 s; the bottleneck is d0 with 4 s for each microbatch.",
        "d0 alone takes 24 s; this plan is 1.50 times as fast.",
        "Without d0 a step takes 24 s, 50 % longer.",
        "Without d1 a step takes 24 s, 50 % longer.",
    )


def test_the_lines_of_a_plan_with_the_only_device() -> None:
    costs = equal_costs(1, 1)
    assert explain(partition(costs, n_microbatches=3), costs).lines() == (
        "A step of 3 microbatches takes 6 s; the bottleneck is d0 with 2 s for each microbatch.",
        "d0 alone takes 6 s; that is this plan.",
        "There is no plan without d0.",
    )


def test_a_plan_slower_than_one_device_says_so() -> None:
    costs = equal_costs(2, 2, link=Link(1.0, 0.0), cut=Cut(7, 0))
    explanation = explain(one_unit_each(costs, n_microbatches=4), costs)
    assert explanation.speedup == 16.0 / 32.0
    assert explanation.lines()[1] == (
        "d0 alone takes 16 s; this plan is SLOWER, 2.00 times as long."
    )


def test_a_device_that_costs_more_than_it_adds_is_named() -> None:
    costs = equal_costs(2, 2, link=Link(1.0, 0.0), cut=Cut(7, 0))
    explanation = explain(one_unit_each(costs, n_microbatches=4), costs)
    assert explanation.lines()[3] == "Without d1 a step takes 16 s: it costs you 50 %."


def test_what_links_carry_for_a_device_counts_at_both_ends() -> None:
    costs = equal_costs(2, 2, link=Link(1.0, 0.0), cut=Cut(2, 1))
    costs = replace(costs, feeds=(Feed("input:0", 5, (0,)),))
    first, second = explain(one_unit_each(costs, n_microbatches=4), costs).devices
    assert (first.transfer_seconds, second.transfer_seconds) == (4 * (2 + 1 + 5), 4 * (2 + 1))


def test_alternatives_do_not_hold_more_in_flight_than_suits_them() -> None:
    """The plan has memory to spare and holds two more; the others, with more units each, not."""
    costs = equal_costs(6, 3)
    roomy, *rest = costs.devices
    tight = (replace(device, memory_limit_bytes=942) for device in rest)
    costs = replace(costs, devices=(roomy, *tight))
    plan = partition(costs, n_microbatches=8)
    assert plan.extra_in_flight == 2
    explanation = explain(plan, costs)
    # Three units on each of two devices, whichever it is that is missing.
    assert [share.step_seconds_without for share in explanation.devices] == [(8 + 1) * 6.0] * 3


def uncertain(costs: Costs, deviation: float, *, correlation: float = 0.5) -> Costs:
    """The same, but all devices were predicted."""
    each = (deviation,) * len(costs.units)
    devices = (replace(d, deviation=Deviation(each, each, correlation)) for d in costs.devices)
    return replace(costs, devices=tuple(devices))


def test_what_was_predicted_is_said_with_intervals() -> None:
    costs = uncertain(equal_costs(4, 2), 0.2)
    slow = replace(costs.devices[0], device="old", forward_seconds=(20.0,) * 4)
    costs = replace(costs, devices=(*costs.devices, slow))
    plan = partition(costs, n_microbatches=3, extra_in_flight=0)
    explanation = explain(plan, costs)
    step, speedup = explanation.step_interval, explanation.speedup_interval
    assert step is not None
    assert step.low < explanation.step_seconds < step.high
    assert speedup is not None
    assert speedup.low < 1.5 < speedup.high
    for share in explanation.devices:
        compute, idle = share.compute_interval, share.idle_interval
        assert compute is not None
        assert compute.low < 12.0 < compute.high
        assert idle is not None
        assert 0 <= idle.low < 0.25 < idle.high
    assert 0 < (explanation.bottleneck_chance or 0) < 1
    (left_out,) = explanation.left_out
    assert left_out.slowdown_interval is not None
    lines = explanation.lines()
    assert re.match(
        r"A step of 3 microbatches takes 16 s \(1\d(\.\d)? s to \d\d(\.\d)? s\)", lines[0]
    )
    assert re.search(r"\(in \d\d % of what may be\)\.$", lines[0])
    assert re.search(r"1\.50 \(1\.\d\d to \d\.\d\d\) times as fast\.$", lines[1])
    assert re.fullmatch(r"Without d0 .* 50 % \(-?\d+ to \d+ %\) longer\.", lines[2])
    assert lines[-1].startswith("Times were predicted, not measured")


def test_the_same_seed_gives_the_same_intervals() -> None:
    costs = uncertain(equal_costs(4, 2), 0.2)
    plan = partition(costs, n_microbatches=3)
    assert explain(plan, costs, seed=1) == explain(plan, costs, seed=1)
    assert explain(plan, costs, seed=1) != explain(plan, costs, seed=2)


def test_what_was_measured_has_no_intervals() -> None:
    costs = equal_costs(4, 2)
    explanation = explain(partition(costs, n_microbatches=3), costs)
    assert (explanation.step_interval, explanation.bottleneck_chance) == (None, None)
    assert [share.compute_interval for share in explanation.devices] == [None, None]


def test_a_model_too_large_for_one_device_says_so() -> None:
    costs = equal_costs(2, 2, memory_limit_bytes=230)
    explanation = explain(partition(costs, n_microbatches=2, extra_in_flight=0), costs)
    assert (explanation.best_single_device, explanation.speedup) == (None, None)
    assert explanation.lines()[1] == "No device can do it alone: the model does not fit."
    assert [share.step_seconds_without for share in explanation.devices] == [None, None]


def test_alternatives_keep_to_the_pinned_device() -> None:
    costs = equal_costs(4, 3)
    plan = partition(costs, n_microbatches=8, pin_first="d2", extra_in_flight=0)
    explanation = explain(plan, costs, pin_first="d2")
    assert explanation.best_single_device == "d2"
    shares = {share.device: share.step_seconds_without for share in explanation.devices}
    assert shares["d2"] is None
    assert shares["d0"] is not None


@settings(max_examples=30)
@given(small_costs(max_units=4))
def test_the_chosen_plan_is_never_slower_than_what_it_is_compared_with(costs: Costs) -> None:
    try:
        plan = partition(costs, n_microbatches=3, extra_in_flight=0)
    except PlanError:
        return
    explanation = explain(plan, costs)
    others = [share.step_seconds_without for share in explanation.devices]
    others += [device.step_seconds_with for device in explanation.left_out]
    others += [explanation.best_single_seconds]
    for seconds in others:
        assert seconds is None or seconds >= explanation.step_seconds * (1 - 1e-8)
    assert len(explanation.lines()) == 2 + len(costs.devices)
    packed = msgspec.json.encode(explanation)
    assert msgspec.json.decode(packed, type=Explanation) == explanation


def test_alternatives_keep_to_the_pinned_ends() -> None:
    costs = equal_costs(6, 3)
    pins: dict[str, Any] = {"pin_first": "d1", "pin_last": "d0"}
    plan = partition(costs, n_microbatches=4, extra_in_flight=0, use="all", **pins)
    explanation = explain(plan, costs, **pins)
    without = {share.device: share.step_seconds_without for share in explanation.devices}
    assert without["d1"] is None
    assert without["d0"] is None
    assert without["d2"] is not None
    assert explanation.best_single_device is None


def test_a_device_left_out_of_more_than_ten_says_what_it_would_change() -> None:
    costs = equal_costs(22, 11)
    slow = DeviceCosts("slow", (50.0,) * 22, (50.0,) * 22, None)
    costs = replace(costs, devices=(*costs.devices, slow))
    plan = partition(costs, n_microbatches=16, extra_in_flight=0)
    assert len(plan.stages) == 11
    (left_out,) = [each for each in explain(plan, costs).left_out if each.device == "slow"]
    assert left_out.line() == "slow would change nothing, left out."
