"""A serving plan watched: noise changes nothing, and a device that changes is noticed and told."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from edgeweave.plan import Caution, Costs, Departure, ServingPlan, ServingWatch, Stage, serving_plan
from edgeweave.plan.costs import stage_seconds
from tests.plan.test_serving import forward_only
from tests.plan.worlds import equal_costs

N_UNITS = 12
Slowness = Callable[[str, int], float]


def costs_of() -> Costs:
    return forward_only(equal_costs(N_UNITS, 3, forward_seconds=0.01))


def as_measured(_device: str, _round: int) -> float:
    return 1.0


def slower_from(start: int, stop: int = 10**9, *, factor: float = 3.0) -> Slowness:
    return lambda device, at: factor if device == "d1" and start <= at < stop else 1.0


def taken(costs: Costs, stage: Stage) -> float:
    return stage_seconds(costs, stage.device, stage.first_unit, stage.stop_unit).forward


def told(
    slowness: Slowness,
    *,
    n_rounds: int = 200,
    noise: float = 0.1,
    seed: int = 0,
    caution: Caution | None = None,
    moves: bool = True,
) -> list[tuple[int, tuple[Departure, ...], ServingPlan]]:
    """Rounds in which departures were told, and the plan from then on; ``moves``: it changes."""
    true, rng = costs_of(), random.Random(seed)
    watch = ServingWatch(true, caution=caution)
    plan = serving_plan(true)
    watch.take_up(plan)
    found = []
    for at in range(n_rounds):
        seconds = {
            stage.device: taken(true, stage)
            * slowness(stage.device, at)
            * rng.lognormvariate(0, noise)
            * (rng.uniform(2, 10) if rng.random() < 0.03 else 1)
            for stage in plan.stages
        }
        departures = watch.observe(seconds)
        if departures:
            if moves:
                plan = serving_plan(watch.costs)
                watch.take_up(plan, departed=True)
            found.append((at, departures, plan))
    return found


def test_noise_alone_tells_nothing_in_100_runs() -> None:
    assert [told(as_measured, seed=seed) for seed in range(100)] == [[]] * 100


@pytest.mark.parametrize("noise", [0.05, 0.1])
@pytest.mark.parametrize("seed", range(5))
def test_a_device_slowed_to_a_third_is_planned_around_within_20_rounds(
    noise: float, seed: int
) -> None:
    ((when, (departure,), plan),) = told(slower_from(60), noise=noise, seed=seed)
    assert 60 <= when < 80
    assert (departure.device, departure.target) == ("d1", None)
    assert departure.ratio == pytest.approx(3, rel=0.3)
    units = {s.device: s.stop_unit - s.first_unit for s in plan.stages}
    assert units.get("d1", 0) < N_UNITS / 3


def test_one_that_recovers_is_noticed_too_and_later_if_it_flaps() -> None:
    once = told(slower_from(60, 200, factor=2.0), n_rounds=400, noise=0.05)
    assert [each[1][0].ratio > 1 for each in once] == [True, False]
    (_, _, slowed), (recovered, _, after) = once
    assert slowed.devices
    assert recovered >= 200
    units = {s.device: s.stop_unit - s.first_unit for s in after.stages}
    assert units["d1"] >= 3
    flapping = told(lambda d, r: 3.0 if d == "d1" and r // 25 % 2 else 1.0, n_rounds=1000)
    assert len(flapping) <= 8


def test_in_the_pause_after_a_change_nothing_is_told() -> None:
    caution = Caution(least_steps_between=150)
    whens = [w for w, _, _ in told(slower_from(40, 80), n_rounds=400, noise=0.02, caution=caution)]
    assert all(later - sooner >= 150 for sooner, later in pairwise(whens))


def test_costs_are_the_measured_ones_until_somebody_leaves_them() -> None:
    costs = costs_of()
    watch = ServingWatch(costs)
    assert watch.costs is costs
    assert watch.observe({"d0": 1.0}) == ()  # no plan, nothing to leave
    watch.take_up(serving_plan(costs))
    assert watch.costs is costs


def test_a_round_that_tells_nothing_of_a_device_leaves_it_as_it_was() -> None:
    costs = costs_of()
    watch = ServingWatch(costs)
    watch.take_up(serving_plan(costs))
    assert [watch.observe({}) for _ in range(60)] == [()] * 60
    assert [watch.observe({"d1": 0.0}) for _ in range(60)] == [()] * 60
    assert watch.costs is costs


def test_one_that_was_measured_again_is_what_it_measured() -> None:
    costs = costs_of()
    watch = ServingWatch(costs)
    watch.take_up(serving_plan(costs))
    taken = {"d0": 0.04, "d1": 0.12, "d2": 0.04}
    assert any(watch.observe(taken) for _ in range(40))
    believed = watch.costs.device("d1").forward_seconds
    assert believed == pytest.approx((0.03,) * N_UNITS)
    watch.take_up(serving_plan(watch.costs), departed=True)
    watch.join(replace(costs.device("d1")), {})
    assert watch.costs.device("d1").forward_seconds == (0.01,) * N_UNITS
