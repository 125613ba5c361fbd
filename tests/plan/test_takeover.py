"""Lost stages are taken over by their neighbours; no unit is forgotten, doubled or moved about."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.core.errors import PlanError
from edgeweave.plan import LinkCodec, Plan, Stage, taken_over


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any split of some units among named devices, with times and sizes of their own."""
    n_stages = draw(st.integers(1, 6))
    lengths = draw(st.lists(st.integers(1, 4), min_size=n_stages, max_size=n_stages))
    stages, first = [], 0
    for number, length in enumerate(lengths):
        numbers = (float(number + 1), 2.0 * (number + 1), 100 * (number + 1))
        stages.append(Stage(f"d{number}", first, first + length, *numbers))
        first += length
    return Plan(tuple(stages), "1f1b", 4, 0, 0.0, 0.0)


@given(plans(), st.data())
def test_all_units_are_held_once_in_their_order_and_lost_ones_by_the_nearest(
    plan: Plan, data: st.DataObject
) -> None:
    left = data.draw(st.sets(st.sampled_from(plan.devices), min_size=1))
    found = taken_over(plan, left)
    assert found.devices == tuple(device for device in plan.devices if device in left)
    bounds = [(stage.first_unit, stage.stop_unit) for stage in found.stages]
    assert [u for span in bounds for u in range(*span)] == list(range(plan.stages[-1].stop_unit))
    heirs = {u: stage.device for stage in found.stages for u in range(*_span(stage))}
    for number, stage in enumerate(plan.stages):
        (heir,) = {heirs[unit] for unit in range(*_span(stage))}
        distances = {d: abs(plan.devices.index(d) - number) for d in left}
        assert distances[heir] == min(distances.values())


def _span(stage: Stage) -> tuple[int, int]:
    return stage.first_unit, stage.stop_unit


@given(plans(), st.data())
def test_times_and_memory_are_added_up_and_nothing_else_changes(
    plan: Plan, data: st.DataObject
) -> None:
    left = data.draw(st.sets(st.sampled_from(plan.devices), min_size=1))
    found = taken_over(plan, left)
    for total in ("forward_seconds", "backward_seconds", "memory_bytes"):
        assert sum(getattr(s, total) for s in found.stages) == sum(
            getattr(s, total) for s in plan.stages
        )
    assert (found.schedule, found.n_microbatches, found.replication) == (
        plan.schedule,
        plan.n_microbatches,
        plan.replication,
    )
    assert taken_over(plan, plan.devices) == plan
    assert taken_over(found, left) == found


def test_strangers_take_nothing_over() -> None:
    plan = Plan((Stage("a", 0, 1, 0, 0, 0), Stage("b", 1, 2, 0, 0, 0)), "1f1b", 4, 0, 0.0, 0.0)
    assert taken_over(plan, {"b", "z"}).devices == ("b",)
    with pytest.raises(PlanError) as nobody:
        taken_over(plan, {"z"})
    assert str(nobody.value) == ("no device of the plan is left (it had a, b). Plan again.")


def test_codecs_of_links_that_are_gone_go_too() -> None:
    stages = tuple(Stage(name, n, n + 1, 0, 0, 0) for n, name in enumerate("abc"))
    codecs = (LinkCodec("a", "b", 8), LinkCodec("b", "c", 4))
    plan = Plan(stages, "1f1b", 4, 0, 0.0, 0.0, codecs=codecs)
    assert taken_over(plan, {"a", "b"}).codecs == codecs[:1]
    assert taken_over(plan, {"a", "c"}).codecs == ()
