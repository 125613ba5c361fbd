"""Units: the pieces between neighbouring legal cut points."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeweave.core.errors import CaptureError
from edgeweave.program import Captured, Program, capture
from edgeweave.program.graph import SHARED_UNIT
from edgeweave.program.units import MAX_UNITS, assign_units, is_external, live_bytes
from tests.models import ZOO
from tests.program.graphs import listed, node, program, two_layers, weight

Capture = Callable[[str], Captured]


def _chain(given: Program) -> list[int]:
    return [n.unit for n in given.nodes if n.unit != SHARED_UNIT]


@pytest.mark.parametrize("name", ZOO)
def test_units_count_up_from_zero_without_gaps(captured: Capture, name: str) -> None:
    chain = _chain(captured(name).program)
    assert chain == sorted(chain)
    assert sorted(set(chain)) == list(range(max(chain) + 1))


@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_zoo_has_units_for_five_stages(captured: Capture, name: str) -> None:
    assert 5 <= len(captured(name).program.unit_numbers) <= MAX_UNITS


@pytest.mark.parametrize("name", ZOO)
def test_the_target_is_first_read_in_the_last_unit(captured: Capture, name: str) -> None:
    whole = captured(name).program
    readers = {
        n.unit for n in whole.nodes if any(name.startswith("target:") for name in n.inputs())
    }
    assert readers == {whole.unit_numbers[-1]}


@pytest.mark.parametrize("name", ["unet", "resnet18", "mobilenetv2"])
def test_a_buffer_that_is_updated_is_read_in_one_unit_only(captured: Capture, name: str) -> None:
    whole = captured(name).program
    made = {v.name: n.unit for n in whole.nodes for v in n.results}
    assert whole.updates
    for buffer, source in whole.updates.items():
        users = {n.unit for n in whole.nodes if buffer in n.inputs()}
        assert users == {made[source]}


@pytest.mark.parametrize("name", ZOO)
def test_what_is_shared_depends_on_no_data(captured: Capture, name: str) -> None:
    whole = captured(name).program
    made = {v.name: n.unit for n in whole.nodes for v in n.results}
    for n in whole.nodes:
        if n.unit == SHARED_UNIT:
            assert not any(is_external(name) for name in n.inputs())
            assert all(made.get(name, SHARED_UNIT) == SHARED_UNIT for name in n.inputs())


def test_a_buffer_that_is_zeroed_is_updated_by_a_unit_not_by_every_stage() -> None:
    class Zeroing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)
            self.register_buffer("dirty", torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.dirty.zero_()
            return self.linear(x)

    example = ZOO["mlp"].batch(4)[0][:, :4]
    whole = capture(Zeroing(), F.mse_loss, example, example[:, :3]).program
    made = {v.name: n.unit for n in whole.nodes for v in n.results}
    assert made[whole.updates["dirty"]] != SHARED_UNIT


@pytest.mark.parametrize("max_units", [1, 2, 5, 12])
def test_the_number_of_units_is_respected(captured: Capture, max_units: int) -> None:
    whole = assign_units(captured("mobilenetv2").program, max_units=max_units)
    assert len(whole.unit_numbers) == max_units


def test_when_units_are_merged_the_cheapest_cuts_stay() -> None:
    whole = program(
        node("linear.default", ("input:0", "wide"), "a"),
        node("linear.default", ("a", "narrow"), "b"),
        node("linear.default", ("b", "last"), "c"),
        state=(weight("wide", 50, 4), weight("narrow", 2, 50), weight("last", 3, 2)),
        outputs=("c",),
    )
    assert _chain(assign_units(whole)) == [0, 1, 2]
    assert _chain(assign_units(whole, max_units=2)) == [0, 0, 1]


def test_a_unit_takes_the_cheap_operators_after_its_layer_along() -> None:
    assert _chain(assign_units(two_layers())) == [0, 0, 1, 1]


def test_a_cut_is_put_where_the_fewest_bytes_are_alive() -> None:
    whole = program(
        node("linear.default", ("input:0", "w"), "a"),
        node("sum.dim_IntList", ("a", listed(1), True), "small"),
        node("expand.default", ("small", listed(-1, 4)), "big"),
        node("linear.default", ("big", "v"), "c"),
        state=(weight("w", 30, 4), weight("v", 2, 4)),
        outputs=("c",),
    )
    assert _chain(assign_units(whole)) == [0, 0, 1, 1]


def test_live_bytes_are_those_of_the_values_still_needed() -> None:
    whole = two_layers()
    costs = live_bytes(whole, whole.nodes)
    assert costs == [0, 16 * 3 * 4, 16 * 3 * 4, 16 * 2 * 4]


def test_live_bytes_count_a_skip_connection_until_its_last_use() -> None:
    whole = program(
        node("tanh.default", ("input:0",), "a"),
        node("tanh.default", ("a",), "b"),
        node("tanh.default", ("b",), "c"),
        node("add.Tensor", ("a", "c"), "d"),
        outputs=("d",),
    )
    one = 16 * 4 * 4
    assert live_bytes(whole, whole.nodes) == [0, one, 2 * one, 2 * one]


def test_a_model_that_reads_no_input_has_no_units() -> None:
    with pytest.raises(CaptureError, match="the model computes nothing from its inputs"):
        assign_units(program(node("arange.default", (4,), "a"), outputs=("a",)))


@pytest.mark.parametrize(
    ("name", "external"),
    [("input:0", True), ("target:3", True), ("relu", False), ("inputs", False)],
)
def test_names_of_the_data_owners_tensors_are_known_by_their_prefix(
    name: str, external: bool
) -> None:
    assert is_external(name) is external
