"""EdgePipe's formulas, and its count of slots against the simulation of devices."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.core.errors import PlanError
from edgeweave.plan import Costs, Cut, DeviceCosts, Link, Plan, UnitFacts, simulate
from edgeweave.plan import super_neurons as formulas
from edgeweave.plan.ranking import plan_from_split
from edgeweave.plan.splits import Microbatching, Split

COUNTS = st.integers(1, 24)


@given(COUNTS, COUNTS)
def test_every_layer_and_every_device_is_in_one_group(n_layers: int, n_devices: int) -> None:
    for make in (formulas.paper_hybrid, formulas.horizontal):
        groups = make(n_layers, n_devices)
        assert sum(group.n_layers for group in groups) == n_layers
        assert sum(group.n_devices for group in groups) == n_devices
        assert all(group.n_layers and group.n_devices for group in groups)
    groups = formulas.vertical(n_layers, n_devices)
    assert sum(group.n_layers for group in groups) == n_layers
    assert [group.n_devices for group in groups] == [1] * min(n_layers, n_devices)


def slots_simulated(groups: tuple[formulas.Share, ...], n_batches: int) -> float:
    """The updates' end in slots: a slot a layer, messages in no time, by the devices' schedule."""
    n_layers = sum(group.n_layers for group in groups)
    names = tuple(f"group-{index}" for index in range(len(groups)))
    backward = (0.0, *[1.0] * (n_layers - 1))
    costs = Costs(
        units=tuple(UnitFacts(f"layer-{i}", 0, 0, 0, 0) for i in range(n_layers)),
        cuts=tuple(Cut(0, 0) for _ in range(n_layers - 1)),
        devices=tuple(DeviceCosts(name, (1.0,) * n_layers, backward, None) for name in names),
        links={},
        default_link=Link(bytes_per_second=1.0, latency_seconds=0.0),
        optimizer_bytes_per_trainable_byte=0.0,
    )
    bounds = [0]
    for group in groups:
        bounds.append(bounds[-1] + group.n_layers)
    schedule = "async-1f1b"
    plan: Plan = plan_from_split(Split(names, tuple(bounds)), costs, Microbatching(schedule, 1, 0))
    return simulate(plan, costs, n_steps=n_batches).stop_seconds


@pytest.mark.parametrize("n_batches", [1, 2, 7, 30])
@pytest.mark.parametrize(("n_layers", "n_devices"), [(6, 4), (6, 8), (6, 2), (8, 8), (5, 3)])
def test_the_slot_formula_of_groups_is_what_devices_take(
    n_layers: int, n_devices: int, n_batches: int
) -> None:
    """Where groups are equal; with one group there is nothing to overlap, and it is horizontal."""
    groups = formulas.paper_hybrid(n_layers, n_devices)
    longest = max(group.n_layers for group in groups)
    found = slots_simulated(groups, n_batches)
    if len(groups) == 1:
        assert found == formulas.horizontal_slots(n_layers, n_batches)
    else:
        assert found == formulas.pipelined_slots(n_layers, longest, n_batches)


@pytest.mark.parametrize("n_batches", [1, 2, 30])
def test_the_slot_formula_of_horizontal_is_what_devices_take(n_batches: int) -> None:
    found = slots_simulated(formulas.horizontal(6, 4), n_batches)
    assert found == formulas.horizontal_slots(6, n_batches)


def test_the_papers_example_is_five_times_as_fast_as_horizontal() -> None:
    """L = 6, D = 8, N = 100, so M = 1: 5.26 by the formulas."""
    groups = formulas.paper_hybrid(6, 8)
    ratio = formulas.horizontal_slots(6, 100) / slots_simulated(groups, 100)
    assert ratio == pytest.approx(5.26, abs=0.01)


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(PlanError, match=r"a network has a layer, .* \(got 0 and 4\)"):
        formulas.paper_hybrid(0, 4)
