from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from edgeweave.plan import Costs, UnitFacts, stage_memory_bytes
from edgeweave.plan.splits import Grid

from .worlds import equal_costs, small_costs


def test_the_formula_by_hand() -> None:
    units = (UnitFacts("a", 100, 60, 7, 1000), UnitFacts("b", 50, 50, 0, 2000))
    costs = replace(equal_costs(2, 1), units=units, optimizer_bytes_per_trainable_byte=2.0)
    assert stage_memory_bytes(costs, 0, 1, 1) == 100 + 7 + 60 + 120 + 1000
    assert stage_memory_bytes(costs, 0, 2, 3) == 150 + 7 + 110 + 220 + 3 * 3000


def test_parts_of_a_byte_are_rounded_up() -> None:
    units = (UnitFacts("a", 3, 3, 0, 0),)
    costs = replace(equal_costs(1, 1), units=units, optimizer_bytes_per_trainable_byte=0.5)
    assert stage_memory_bytes(costs, 0, 1, 1) == 3 + 3 + 2


@given(small_costs(), st.integers(1, 9))
def test_the_tables_of_the_partition_use_the_same_formula(costs: Costs, held: int) -> None:
    excess = Grid(costs).excess_bytes(held)
    for d, device in enumerate(costs.devices):
        for first in range(len(costs.units)):
            for stop in range(first + 1, len(costs.units) + 1):
                need = stage_memory_bytes(costs, first, stop, held)
                limit = need if device.memory_limit_bytes is None else device.memory_limit_bytes
                assert excess[d, first, stop] == max(0, need - limit)
