"""How often states are copied: links stay free for the run, and copies are no rarer than needed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.core.errors import ConfigError
from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.plan import Costs, Link, Replication, partition
from edgeweave.plan.replication import replication_for
from tests.plan.worlds import equal_costs, every_placement, small_costs, with_links

SHARE = 1 / 20


def state_bytes(costs: Costs, first: int, stop: int) -> int:
    """What a stage's state takes: what trains, the optimizer's part of it, and buffers."""
    total = 0.0
    for unit in costs.units[first:stop]:
        total += unit.trainable_bytes + unit.buffer_bytes
        total += costs.optimizer_bytes_per_trainable_byte * unit.trainable_bytes
    return int(-(-total // 1))


def busy(costs: Costs, source: str, target: str, size: int) -> float:
    return costs.link(source, target).occupied_seconds(size)


@given(small_costs(), st.sampled_from([0.5, 3.0, 40.0, 1000.0]), st.data())
def test_copies_take_a_twentieth_of_each_links_time_and_no_less_than_that_allows(
    costs: Costs, step_seconds: float, data: st.DataObject
) -> None:
    placement = data.draw(st.sampled_from(list(every_placement(costs))))
    found = replication_for(placement.devices, placement.bounds, step_seconds, costs)
    names = placement.devices
    sizes = [state_bytes(costs, first, stop) for _, first, stop in placement.spans()]
    chain = [
        busy(costs, name, names[(number + 1) % len(names)], sizes[number])
        for number, name in enumerate(names)
        if len(names) > 1
    ]
    whole = sum(busy(costs, n, COORDINATOR_NAME, s) for n, s in zip(names, sizes, strict=True))
    room = step_seconds * SHARE * (1 + 1e-9)
    assert all(each <= found.chain_every * room for each in chain)
    assert whole <= found.whole_every * room
    one_less = (found.chain_every - 1) * step_seconds * SHARE * (1 - 1e-9)
    assert found.chain_every == 10 or any(each > one_less for each in chain)
    whole_less = (found.whole_every - 1) * step_seconds * SHARE * (1 - 1e-9)
    assert found.whole_every == max(10, 2 * found.chain_every) or whole > whole_less
    assert found.whole_every >= 2 * found.chain_every >= 20


def test_a_slow_link_makes_copies_rare_and_a_fast_one_does_not() -> None:
    costs = replace(equal_costs(4, 2), optimizer_bytes_per_trainable_byte=2.0)
    devices, bounds = ("d0", "d1"), (0, 2, 4)  # 61 bytes a stage: 2 x (10 x 3 + 1), less is shared
    slow = with_links(costs, {("d0", "d1"): Link(1.0, 0.0)})
    assert replication_for(devices, bounds, 1.0, costs) == Replication(10, 20)
    size = state_bytes(slow, 0, 2)
    assert replication_for(devices, bounds, 1.0, slow).chain_every == 20 * size
    assert replication_for(devices[:1], (0, 4), 1.0, slow) == Replication(10, 20)


def test_a_step_that_takes_no_time_asks_for_the_least() -> None:
    costs = equal_costs(4, 2)
    assert replication_for(("d0", "d1"), (0, 2, 4), 0.0, costs) == Replication(10, 20)


def test_a_plan_says_how_often_its_states_are_copied() -> None:
    costs = equal_costs(4, 2, link=Link(100.0, 0.0))
    plan = partition(costs, n_microbatches=4)
    bounds = (0, *(stage.stop_unit for stage in plan.stages))
    assert plan.replication == replication_for(plan.devices, bounds, plan.step_seconds, costs)


@pytest.mark.parametrize("intervals", [(0, 10), (10, 0), (-1, -1)])
def test_copies_are_at_least_one_step_apart(intervals: tuple[int, int]) -> None:
    with pytest.raises(ConfigError) as refused:
        Replication(*intervals)
    assert str(refused.value) == (
        "states are copied every step or less often (got "
        f"{intervals[0]} and {intervals[1]}). Use at least 1."
    )
