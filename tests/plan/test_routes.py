"""Skip connections: what goes where, when it arrives, and when the planner sends it directly."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.core.errors import ConfigError
from edgeweave.plan import Costs, Cut, Link, Skip, explain, partition, simulate
from edgeweave.plan.ranking import plan_from_split, step_seconds_at_least
from edgeweave.plan.routes import routes, without_skips
from edgeweave.plan.splits import Microbatching, Split

from .worlds import (
    equal_costs,
    every_placement,
    one_unit_each,
    small_costs,
    with_links,
)

NAMES = ("d0", "d1", "d2", "d3")


def skipping(n: int, *skips: Skip) -> Costs:
    """As many units as devices, which take 1 s and 1 s; links carry a byte a second."""
    cuts = [Cut(1, 1)] * (n - 1)
    for skip in skips:
        for index in range(skip.units[0], skip.units[-1]):
            cuts[index] = Cut(
                cuts[index].forward_bytes + skip.forward_bytes,
                cuts[index].backward_bytes + skip.backward_bytes,
            )
    costs = equal_costs(n, n, link=Link(1.0, 0.0))
    return replace(costs, cuts=tuple(cuts), skips=skips)


def sizes(
    costs: Costs, bounds: tuple[int, ...], way: str
) -> dict[tuple[int, int], tuple[int, int]]:
    """Bytes there and back by pair of stages."""
    found = routes(costs, NAMES[: len(bounds) - 1], bounds, way)  # type: ignore[arg-type]
    return {(r.front, r.behind): (r.there.size_bytes, r.back.size_bytes) for r in found}


def test_relays_pass_everything_from_stage_to_stage() -> None:
    costs = skipping(3, Skip((0, 2), 5, 4))
    assert sizes(costs, (0, 1, 2, 3), "relayed") == {(0, 1): (6, 5), (1, 2): (6, 5)}


def test_a_direct_value_leaves_the_neighbours_links() -> None:
    costs = skipping(3, Skip((0, 2), 5, 4))
    assert sizes(costs, (0, 1, 2, 3), "direct") == {(0, 1): (1, 1), (1, 2): (1, 1), (0, 2): (5, 4)}
    (past,) = [r for r in routes(costs, NAMES[:3], (0, 1, 2, 3), "direct") if r.is_direct]
    assert [(way.src, way.dst) for way in (past.there, past.back)] == [("d0", "d2"), ("d2", "d0")]


def test_a_direct_value_goes_from_user_to_user() -> None:
    costs = skipping(4, Skip((0, 1, 3), 5, 0))
    assert sizes(costs, (0, 1, 2, 3, 4), "direct") == {
        (0, 1): (6, 1),
        (1, 2): (1, 1),
        (2, 3): (1, 1),
        (1, 3): (5, 0),
    }


def test_no_stage_to_go_past_leaves_nothing_direct() -> None:
    costs = skipping(4, Skip((0, 2), 5, 5))
    assert sizes(costs, (0, 1, 3, 4), "direct") == sizes(costs, (0, 1, 3, 4), "relayed")
    assert sizes(costs, (0, 2, 4), "direct") == sizes(costs, (0, 2, 4), "relayed")


def test_without_skips_only_neighbours_values_are_left() -> None:
    costs = skipping(4, Skip((0, 1, 3), 5, 4))
    assert without_skips(costs).cuts == (Cut(6, 5), Cut(1, 1), Cut(1, 1))
    assert without_skips(costs).skips == ()


def test_a_step_with_direct_values_by_hand() -> None:
    # One microbatch: F0 ends at 1. Relayed: 11 s, F1, 11 s, F2 B2, 11 s, B1, 11 s, B0.
    costs = skipping(3, Skip((0, 2), 10, 10))
    plan = one_unit_each(costs, n_microbatches=1)
    assert simulate(plan, costs).step_seconds == 6 + 4 * 11
    # Direct: 10 s past stage 1, as long as 1 s, F1, 1 s and more; then the same way back.
    assert simulate(replace(plan, skips="direct"), costs).step_seconds == 4 + 2 * 10


def test_the_planner_goes_past_a_device_whose_links_are_slow() -> None:
    costs = skipping(3, Skip((0, 2), 30, 30))
    pairs = [(src, dst) for src in NAMES[:3] for dst in NAMES[:3] if src != dst]
    costs = with_links(costs, {p: Link(5.0 if "d1" in p else 100.0, 0.0) for p in pairs})
    plan = partition(costs, n_microbatches=8)
    relayed = partition(replace(costs, skips=()), n_microbatches=8)
    assert (plan.skips, plan.devices[1]) == ("direct", "d1")
    assert plan.step_seconds < 0.95 * relayed.step_seconds
    assert simulate(plan, costs).step_seconds == plan.step_seconds
    explanation = explain(plan, costs)
    assert explanation.step_seconds == plan.step_seconds
    assert (
        "Skip connections go past stages that do not use them: "
        f"{plan.devices[0]} -> {plan.devices[2]} (30 B)."
    ) in explanation.lines()


def test_skips_that_cost_nothing_are_relayed() -> None:
    costs = replace(skipping(3, Skip((0, 2), 30, 30)), default_link=Link(1e9, 0.0))
    assert partition(costs, n_microbatches=8).skips == "relayed"
    assert explain(partition(costs, n_microbatches=8), costs).direct == ()


@st.composite
def skipping_costs(draw: st.DrawFn) -> Costs:
    """Small costs with one skip among the bytes of its cuts."""
    costs = draw(small_costs())
    if len(costs.units) < 3:
        return costs
    first = draw(st.integers(0, len(costs.units) - 3))
    last = draw(st.integers(first + 2, len(costs.units) - 1))
    crossed = costs.cuts[first:last]
    skip = Skip(
        (first, last),
        draw(st.integers(0, min(cut.forward_bytes for cut in crossed))),
        draw(st.integers(0, min(cut.backward_bytes for cut in crossed))),
    )
    return replace(costs, skips=(skip,))


@given(skipping_costs(), st.integers(1, 5), st.integers(0, 2))
def test_no_direct_step_is_shorter_than_its_lower_bound(costs: Costs, n: int, extra: int) -> None:
    run = Microbatching("1f1b", n, extra, "direct")
    for placement in every_placement(costs):
        split = Split(placement.devices, placement.bounds)
        plan = plan_from_split(split, costs, run)
        assert step_seconds_at_least(split, costs, run) <= plan.step_seconds * (1 + 1e-9)


@given(skipping_costs())
def test_what_crosses_a_cut_is_the_same_whichever_way(costs: Costs) -> None:
    for placement in every_placement(costs):
        there = {}
        for way in ("relayed", "direct"):
            found = routes(costs, placement.devices, placement.bounds, way)
            there[way] = [
                sum(r.there.size_bytes for r in found if r.front <= index < r.behind)
                for index in range(len(placement.devices) - 1)
            ]
        assert there["direct"] == there["relayed"]


@given(skipping_costs())
def test_a_choice_of_ways_never_makes_the_best_plan_slower(costs: Costs) -> None:
    costs = replace(
        costs, devices=tuple(replace(d, memory_limit_bytes=None) for d in costs.devices)
    )
    relayed = partition(replace(costs, skips=()), n_microbatches=3, extra_in_flight=0)
    chosen = partition(costs, n_microbatches=3, extra_in_flight=0)
    assert chosen.step_seconds <= relayed.step_seconds * 1.005


@pytest.mark.parametrize("units", [(1,), (2, 1), (1, 1)])
def test_a_skip_has_a_maker_and_users(units: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"^a skip names the unit that makes"):
        Skip(units, 1, 1)


def test_a_skip_lies_within_the_model() -> None:
    with pytest.raises(ConfigError, match=r"^a skip lies between units 0 and 2 \(got \(0, 3\)\)"):
        replace(equal_costs(3, 1), skips=(Skip((0, 3), 0, 0),))


def test_the_bytes_of_skips_are_among_those_of_their_cuts() -> None:
    expected = r"\(cut 0: 6 of 5 there, 2 of 5 back\)"
    with pytest.raises(ConfigError, match=expected):
        replace(equal_costs(3, 1, cut=Cut(5, 5)), skips=(Skip((0, 2), 3, 1),) * 2)
