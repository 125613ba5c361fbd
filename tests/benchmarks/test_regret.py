"""Regret is what a plan costs that was made from something else than what is true."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.regret import WAYS, Regrets, Setting, judged
from edgeweave.plan import Costs, Deviation
from tests.plan.worlds import equal_costs


def believed(costs: Costs, factor: float) -> Costs:
    """The second device is taken to be so many times as slow as it is."""
    sure = Deviation((0.1,) * len(costs.units), (0.1,) * len(costs.units), 0.5)
    first, second = costs.devices
    wrong = replace(
        second,
        forward_seconds=tuple(factor * each for each in second.forward_seconds),
        backward_seconds=tuple(factor * each for each in second.backward_seconds),
    )
    return replace(costs, devices=tuple(replace(d, deviation=sure) for d in (first, wrong)))


def setting(factor: float) -> Setting:
    measured = equal_costs(8, 2)
    ways = {way: believed(measured, factor) for way in WAYS[:-2]}
    return Setting(measured, ways, first=measured, later=measured)


def test_who_believes_the_truth_regrets_nothing() -> None:
    found, within = judged(setting(1.0))
    assert found == dict.fromkeys(WAYS, 1.0)
    assert within


def test_who_believes_a_device_to_be_useless_plans_as_if_it_were() -> None:
    found, within = judged(setting(1000.0))
    alone, both = 16 * 16.0, (16 + 1) * 8.0
    assert found["zero_shot"] == pytest.approx(alone / both)
    assert found["equal_split"] == 1.0
    assert within  # what the first device takes alone, it was believed to take


def test_a_profile_is_judged_by_what_was_recorded_later() -> None:
    right = setting(1.0)
    wrong = replace(right, first=believed(right.measured, 1000.0))
    assert judged(wrong)[0]["profiled_again"] == judged(setting(1000.0))[0]["zero_shot"] > 1


def test_a_step_that_takes_longer_than_believed_is_outside_its_interval() -> None:
    assert not judged(setting(0.3))[1]


def test_metrics_are_of_the_median_fleet_and_the_worst_network() -> None:
    regrets = Regrets()
    regrets.add("a", setting(1.0))
    regrets.add("a", setting(1000.0))
    regrets.add("b", setting(1.0))
    worst = 16 * 16.0 / ((16 + 1) * 8.0)
    assert regrets.fleets == ["a", "b"]
    assert regrets.by_fleet("flops") == pytest.approx([(1 + worst) / 2, 1.0])
    metrics = regrets.metrics()
    assert metrics["plan_regret_zero_shot"] == pytest.approx((3 + worst) / 4)
    assert metrics["plan_regret_zero_shot_worst"] == pytest.approx(worst)
    assert metrics["plan_step_within_interval"] == 1.0
