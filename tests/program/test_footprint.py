"""Bytes by unit and by cut, held against what really crosses and what autograd really keeps."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest
import torch

from edgeweave.plan import Costs, Cut, DeviceCosts, Link, Skip, UnitFacts
from edgeweave.plan.routes import routes
from edgeweave.program import (
    Captured,
    InputBytes,
    Moment,
    Program,
    SkipBytes,
    StageProgram,
    Value,
    cut,
    cut_bytes,
    flatten_inputs,
    input_bytes,
    is_external,
    skip_bytes,
    unit_bytes,
    value_bytes,
    ways,
    without_outputs,
)
from edgeweave.program.graph import StateSpec
from edgeweave.program.units import live_bytes
from tests.models import ZOO
from tests.program.graphs import BATCH, node, program, two_layers, weight
from tests.program.running import Pipeline, n_bytes

Capture = Callable[[str], Captured]


@pytest.mark.parametrize("name", ZOO)
def test_the_bytes_of_every_cut_are_those_of_the_tensors_that_cross(
    captured: Capture, name: str
) -> None:
    whole = captured(name)
    expected = cut_bytes(without_outputs(whole.program), 3)
    units = whole.program.unit_numbers
    assert expected.keys() == set(units[1:])
    pipeline = Pipeline(whole, units[1:])
    external, handed = _external(name), {}
    for unit, stage in zip(units, pipeline.stages, strict=True):
        known = {**external, **handed}
        handed = stage.forward(
            {v.name: known[v.name] for v in stage.program.inputs}, Moment(0, 0)
        ).outputs
        if unit != units[-1]:
            assert n_bytes(handed) == expected[unit + 1].forward
    gradients: dict[str, torch.Tensor] = {}
    for unit, stage in zip(reversed(units), reversed(pipeline.stages), strict=True):
        gradients = stage.backward(0, gradients)
        if unit != units[0]:
            assert n_bytes(gradients) == expected[unit].backward


def _external(name: str) -> dict[str, torch.Tensor]:
    return flatten_inputs(*ZOO[name].batch(3))


@pytest.mark.parametrize("name", ZOO)
def test_the_inputs_of_every_unit_are_those_the_stage_is_sent(captured: Capture, name: str) -> None:
    program = without_outputs(captured(name).program)
    external = _external(name)
    found = input_bytes(program, 3)
    assert {n: fed.size for n, fed in found.items()} == {n: external[n].nbytes for n in found}
    units = program.unit_numbers
    for unit, stage in zip(units, cut(program, units[1:]), strict=True):
        sent = {value.name for value in stage.inputs if is_external(value.name)}
        assert sent == {n for n, fed in found.items() if unit in fed.units}


def test_a_target_belongs_to_the_unit_with_the_loss_and_what_nobody_needs_to_none() -> None:
    row = (BATCH, 4)
    whole = program(
        node("tanh.default", ("input:0",), "a"),
        node("exp.default", ("input:1",), "unused"),
        node("tanh.default", ("a",), "b", unit=1),
        node("mse_loss.default", ("b", "target:0"), "loss", unit=2),
        inputs=tuple(Value(name, "float32", row) for name in ("input:0", "input:1", "target:0")),
        loss="loss",
    )
    found = input_bytes(whole, 2)
    assert found == {"input:0": InputBytes(32, (0,)), "target:0": InputBytes(32, (2,))}


def test_a_cut_counts_a_skip_connection_that_passes_over_it() -> None:
    whole = program(
        node("tanh.default", ("input:0",), "a"),
        node("tanh.default", ("a",), "b", unit=1),
        node("add.Tensor", ("a", "b"), "c", unit=2),
        outputs=("c",),
    )
    crossing = {unit: cost.forward for unit, cost in cut_bytes(whole, 2).items()}
    assert crossing == {1: 2 * 4 * 4, 2: 2 * 2 * 4 * 4}


def test_a_skip_names_its_maker_and_all_its_users() -> None:
    whole = program(
        node("tanh.default", ("input:0",), "a"),
        node("tanh.default", ("a",), "b", unit=1),
        node("add.Tensor", ("a", "b"), "c", unit=2),
        node("tanh.default", ("c",), "d", unit=3),
        node("add.Tensor", ("a", "d"), "e", unit=4),
        outputs=("c", "e"),
    )
    size = 2 * 4 * 4
    assert skip_bytes(whole, 2) == (SkipBytes((0, 1, 2, 4), size, 0),)


def test_the_skips_of_the_unet_are_its_two_skip_connections(captured: Capture) -> None:
    skips = skip_bytes(without_outputs(captured("unet").program), 1)
    assert [skip.units for skip in skips] == [(0, 1, 4)]
    assert all(skip.forward == skip.backward > 0 for skip in skips)


@pytest.mark.parametrize("name", ["unet", "llama"])
def test_routes_carry_what_a_direct_cut_exchanges(captured: Capture, name: str) -> None:
    whole = without_outputs(captured(name).program)
    units = whole.unit_numbers
    for boundaries in combinations(units[1:], 3) if name == "unet" else [(2, 3, 12), (13, 14, 25)]:
        stages = cut(whole, boundaries, direct=True)
        sent: dict[tuple[int, int], int] = {}
        for index, (stage, way) in enumerate(zip(stages, ways(stages), strict=True)):
            for value in (stage.values()[name] for name in stage.outputs):
                pair = index, way.targets.get(value.name, index + 1)
                sent[pair] = sent.get(pair, 0) + value_bytes(value, 2)
        planned = routes(
            _costs(whole), ("a", "b", "c", "d"), (0, *boundaries, len(units)), "direct"
        )
        sizes = {(route.front, route.behind): route.there.size_bytes for route in planned}
        assert {pair: size for pair, size in sizes.items() if size} == sent


def _costs(whole: Program) -> Costs:
    """Of a program whose microbatches have two samples; times do not matter."""
    n_units = len(whole.unit_numbers)
    return Costs(
        units=(UnitFacts("unit", 0, 0, 0, 0),) * n_units,
        cuts=tuple(Cut(each.forward, each.backward) for each in cut_bytes(whole, 2).values()),
        devices=(DeviceCosts("a", (0.0,) * n_units, (0.0,) * n_units, None),),
        links={},
        default_link=Link(1.0, 0.0),
        optimizer_bytes_per_trainable_byte=0.0,
        skips=tuple(Skip(s.units, s.forward, s.backward) for s in skip_bytes(whole, 2)),
    )


def test_no_bytes_flow_back_where_nothing_upstream_trains() -> None:
    whole = program(
        node("tanh.default", ("input:0",), "a"),
        node("linear.default", ("a", "w"), "b", unit=1),
        state=(weight("w", 3, 4),),
        outputs=("b",),
    )
    assert (cut_bytes(whole, 2)[1].forward, cut_bytes(whole, 2)[1].backward) == (32, 0)


def test_nodes_that_nobody_needs_make_no_cut_dearer() -> None:
    whole = program(
        node("tanh.default", ("input:0",), "a"),
        node("exp.default", ("input:0",), "b"),
        node("neg.default", ("a",), "c", unit=1),
        node("neg.default", ("b",), "unused", unit=1),
        outputs=("c",),
    )
    assert cut_bytes(whole, 1)[1].forward == 16


def test_a_unit_counts_its_parameters_trained_and_frozen_and_its_buffers() -> None:
    whole = program(
        node("linear.default", ("input:0", "w"), "a"),
        node("linear.default", ("a", "frozen"), "b", unit=1),
        node("add.Tensor", ("b", "shift"), "c", unit=1),
        state=(
            weight("w", 3, 4),
            weight("frozen", 2, 3, trainable=False),
            StateSpec("shift", "buffer", "float64", (2,)),
        ),
        outputs=("c",),
    )
    first, second = unit_bytes(whole, 1).values()
    assert (first.parameters, first.trainable, first.buffers) == (48, 48, 0)
    assert (second.parameters, second.trainable, second.buffers) == (24, 0, 16)


@pytest.mark.parametrize("name", ["mlp", "resnet18", "vit", "bert", "unet"])
def test_parameters_of_all_units_are_those_of_the_model(captured: Capture, name: str) -> None:
    sizes = unit_bytes(captured(name).program, 2).values()
    model = ZOO[name].model()
    assert sum(unit.parameters for unit in sizes) == sum(p.nbytes for p in model.parameters())


def test_a_tied_parameter_counts_in_each_unit_that_uses_it(captured: Capture) -> None:
    sizes = unit_bytes(captured("gpt2").program, 2).values()
    model = ZOO["gpt2"].model()
    twice = model.get_input_embeddings().weight.nbytes
    total = sum(parameter.nbytes for parameter in model.parameters())
    assert sum(unit.parameters for unit in sizes) == total + twice


@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet18", "unet", "vit", "bert", "llama"])
def test_activations_are_about_what_autograd_keeps_on_a_cpu(captured: Capture, name: str) -> None:
    whole = captured(name)
    program = without_outputs(whole.program)
    estimated = sum(unit.activations for unit in unit_bytes(program, 4).values())
    stage = StageProgram(program, whole.state)
    own = {tensor.untyped_storage().data_ptr() for tensor in stage.parameters.values()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        stage.forward(flatten_inputs(*ZOO[name].batch(4)), Moment(0, 0))
    measured = sum(kept.values())
    assert 0.8 * measured <= estimated <= 1.5 * measured


def test_activations_grow_with_the_batch(captured: Capture) -> None:
    small, large = (
        sum(unit.activations for unit in unit_bytes(captured("lenet").program, n).values())
        for n in (2, 8)
    )
    assert large == pytest.approx(4 * small, rel=0.02)


def test_a_recurrent_layer_keeps_every_time_step(captured: Capture) -> None:
    batch, steps, hidden = 2, 32, 24  # the steps of the example
    sizes = unit_bytes(captured("lstm").program, batch)
    assert sizes[0].activations > batch * steps * hidden * 4 * 4


@pytest.mark.parametrize("name", ["mlp", "unet", "bert"])
def test_live_bytes_and_cut_bytes_agree_at_the_cuts(captured: Capture, name: str) -> None:
    program = captured(name).program
    chain = [n for n in program.nodes if n.unit >= 0]
    alive = live_bytes(program, chain)
    first = {n.unit: i for i, n in reversed(list(enumerate(chain)))}
    crossing = cut_bytes(program, 16)
    assert {u: alive[first[u]] for u in crossing} == {u: c.forward for u, c in crossing.items()}


def test_footprints_need_no_gradient_mode_of_the_caller() -> None:
    expected = unit_bytes(two_layers(), 2)
    with torch.no_grad():
        assert unit_bytes(two_layers(), 2) == expected
