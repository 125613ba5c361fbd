"""What is worth a change, and which devices are measured again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgeweave.core.clock import VirtualClock
from edgeweave.core.errors import PlanError
from edgeweave.plan import Costs, ServingPlan
from edgeweave.serving.options import ServeOptions
from edgeweave.serving.planner import Planner
from tests.plan.test_serving import forward_only
from tests.plan.worlds import equal_costs

EVERYBODY = ("d0", "d1", "d2")


def planner(
    options: ServeOptions | None = None, costs: Costs | None = None
) -> tuple[Planner, VirtualClock]:
    clock = VirtualClock()
    costs = costs or forward_only(equal_costs(12, 3, forward_seconds=0.01))
    found = Planner(costs, options or ServeOptions(), result_bytes=0, batch_size=1, clock=clock)
    return found, clock


def best(planner: Planner, *devices: str) -> ServingPlan:
    plan = planner.best(devices)
    assert plan is not None
    return plan


def slow_down(planner: Planner, plan: ServingPlan, device: str, factor: float) -> None:
    """Requests take so much longer there until that is noticed."""
    taken = {
        s.device: s.forward_seconds * (factor if s.device == device else 1) for s in plan.stages
    }
    assert any(planner.observe(taken) for _ in range(60))


def test_the_best_plan_is_for_those_that_are_there_and_known() -> None:
    plans, _ = planner()
    assert sorted(best(plans, "d0", "d2", "stranger").devices) == ["d0", "d2"]
    assert plans.best(["stranger"]) is None
    assert plans.knows("d1")
    assert not plans.knows("stranger")


def test_what_fits_nowhere_is_an_error() -> None:
    plans, _ = planner(costs=forward_only(equal_costs(2, 2, memory_limit_bytes=1)))
    with pytest.raises(PlanError):
        plans.best(["d0"])


def test_a_device_more_is_worth_three_percent_and_one_that_left_ten() -> None:
    plans, _ = planner()
    old = best(plans, *EVERYBODY)
    better = replace(old, period_seconds=0.95 * old.period_seconds)
    assert plans.is_worth(better, old, departed=False)
    assert not plans.is_worth(better, old, departed=True)
    much = replace(old, period_seconds=0.85 * old.period_seconds)
    assert plans.is_worth(much, old, departed=True)
    assert not plans.is_worth(old, old, departed=False)


def test_the_objective_counts() -> None:
    plans, _ = planner(ServeOptions(objective="latency"))
    old = best(plans, *EVERYBODY)
    quicker = replace(old, latency_seconds=0.5 * old.latency_seconds)
    assert plans.is_worth(quicker, old, departed=True)
    assert not plans.is_worth(replace(old, period_seconds=0.0), old, departed=True)


def test_all_devices_are_worth_more_than_fewer() -> None:
    plans, _ = planner(ServeOptions(use="all"))
    two, three = best(plans, "d0", "d1"), best(plans, *EVERYBODY)
    assert plans.is_worth(three, two, departed=False)
    assert not plans.is_worth(two, three, departed=False)


def test_a_plan_in_use_is_weighed_by_what_its_devices_take_now() -> None:
    plans, _ = planner()
    old = best(plans, *EVERYBODY)
    plans.take_up(old, departed=False)
    slow_down(plans, old, "d1", 3.0)
    new = best(plans, *EVERYBODY)
    assert new.period_seconds > old.period_seconds  # than it was before
    assert plans.is_worth(new, old, departed=True)
    assert plans.costs.device("d1").forward_seconds == pytest.approx((0.03,) * 12)


def test_one_that_got_slower_and_is_not_used_is_measured_again_after_a_minute() -> None:
    plans, clock = planner()
    old = best(plans, *EVERYBODY)
    plans.take_up(old, departed=False)
    slow_down(plans, old, "d1", 50.0)
    new = best(plans, *EVERYBODY)
    assert "d1" not in new.devices
    plans.take_up(new, departed=True)
    assert plans.due(new.devices) == []
    clock.sleep(61.0)
    assert plans.due(old.devices) == []  # it serves: requests tell
    assert plans.due(new.devices) == ["d1"]
    assert plans.due(new.devices) == []  # it was asked
    plans.join(forward_only(equal_costs(12, 3, forward_seconds=0.01)).device("d1"), {})
    clock.sleep(61.0)
    assert plans.due(new.devices) == []
    assert sorted(best(plans, *EVERYBODY).devices) == list(EVERYBODY)
