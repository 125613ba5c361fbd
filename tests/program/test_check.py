"""What makes a program sound, each rule with a program that breaks it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch

from edgeweave.core.errors import FormatError
from edgeweave.program import Program, Value, check, value_bytes
from edgeweave.program.check import MAX_TENSOR_BYTES, infer_values
from edgeweave.program.graph import SHARED_UNIT, Arg, Constant, Items, Node, Size, StateSpec
from tests.program.graphs import BATCH, listed, node, program, two_layers, weight


def _refused(given: Program) -> str:
    with pytest.raises(FormatError) as caught:
        check(given)
    return str(caught.value)


def _with(given: Program, **changes: Any) -> Program:
    return msgspec.structs.replace(given, **changes)


def _with_node(given: Program, index: int, **changes: Any) -> Program:
    nodes = list(given.nodes)
    nodes[index] = msgspec.structs.replace(nodes[index], **changes)
    return _with(given, nodes=tuple(nodes))


def _declared(name: str, *shape: int | Size, **kwargs: Any) -> Value:
    return Value(name, kwargs.pop("dtype", "float32"), shape, **kwargs)


def _one(op: str, *args: Arg, shape: tuple[int | Size, ...] = (BATCH, 4), **kwargs: Arg) -> Program:
    """A program of a single node whose result is declared, not inferred."""
    bound = node(op, args, "y", **kwargs)
    nodes = (msgspec.structs.replace(bound, results=(_declared("y", *shape),)),)
    return Program(inputs=(_declared("input:0", BATCH, 4),), state=(), nodes=nodes, outputs=("y",))


def test_a_sound_program_passes() -> None:
    check(two_layers())


def test_value_bytes_grow_with_the_batch() -> None:
    assert value_bytes(_declared("x", BATCH, 3, dtype="float16"), 5) == 30


def test_inferred_sizes_are_affine_in_the_batch() -> None:
    given = program(node("reshape.default", ("input:0", listed(-1)), "flat"), outputs=("flat",))
    assert given.values()["flat"].shape == (Size(4, 0),)


def test_inference_knows_where_gradients_flow() -> None:
    values = two_layers().values()
    assert [values[name].requires_grad for name in ("input:0", "h", "loss")] == [False, True, True]


def test_inference_works_while_the_caller_records_no_gradients() -> None:
    with torch.no_grad():
        assert two_layers().values()["loss"].requires_grad


def test_a_wrong_shape_is_refused() -> None:
    given = _with_node(two_layers(), 0, results=(_declared("h", BATCH, 5, requires_grad=True),))
    assert _refused(given).startswith("value h of aten.linear.default is declared as ")


def test_a_wrong_dtype_is_refused() -> None:
    given = _with_node(two_layers(), 0, results=(_declared("h", BATCH, 3, dtype="int8"),))
    assert "is declared as ('int8'" in _refused(given)


def test_a_wrong_claim_about_gradients_is_refused() -> None:
    given = _with_node(two_layers(), 0, results=(_declared("h", BATCH, 3),))
    assert "is declared as ('float32', (2, 3), False)" in _refused(given)


def test_an_unknown_dtype_is_refused() -> None:
    given = _with(two_layers(), inputs=(_declared("input:0", BATCH, 4, dtype="complex64"),))
    assert _refused(given) == "value input:0 has the unknown dtype 'complex64'."


@pytest.mark.parametrize("size", [-1, Size(1, -2), Size(1, -(2**63))])
def test_a_negative_size_is_refused(size: int | Size) -> None:
    given = _with(two_layers(), inputs=(_declared("input:0", BATCH, size),))
    assert _refused(given) == "value input:0 has a negative size."


def test_a_size_that_shrinks_with_the_batch_is_refused() -> None:
    given = _with(two_layers(), inputs=(_declared("input:0", Size(-1, 2**21), 4),))
    assert _refused(given) == "value input:0 shrinks as the batch grows."


def test_a_tensor_larger_than_any_device_is_refused_before_anything_is_allocated() -> None:
    given = _with(two_layers(), state=(weight("w", MAX_TENSOR_BYTES // 4 + 1),))
    assert _refused(given) == (
        "tensor w is larger than any device holds (1024.0 GiB, limit: 1024.0 GiB)."
    )


@pytest.mark.parametrize("size", [2**62, 2**63, 2**70])
def test_an_empty_tensor_of_impossible_size_is_refused(size: int) -> None:
    _refused(_with(two_layers(), state=(weight("w", 0, size), weight("v", 2, 3))))


def test_a_trainable_buffer_is_refused() -> None:
    spec = StateSpec("w", "buffer", "float32", (3, 4), trainable=True)
    given = _with(two_layers(), state=(spec, weight("v", 2, 3)))
    assert _refused(given) == "state w is trainable but no floating-point parameter."


def test_an_integer_input_that_wants_a_gradient_is_refused() -> None:
    wanting = _declared("input:0", BATCH, 4, dtype="int64", requires_grad=True)
    _refused(_with(two_layers(), inputs=(wanting,)))


@pytest.mark.parametrize("name", ["input:0", "w", "h"])
def test_a_name_defined_twice_is_refused(name: str) -> None:
    given = _with_node(two_layers(), 1, results=(_declared(name, BATCH, 3, requires_grad=True),))
    assert _refused(given) == f"the name {name} is defined twice."


def test_a_reference_to_nothing_is_refused() -> None:
    given = _with(two_layers(), state=(weight("w", 3, 4),))
    assert _refused(given) == "node aten.linear.default reads 'v' before it exists."


def test_a_cycle_is_refused() -> None:
    nodes = two_layers().nodes
    given = _with(two_layers(), nodes=(nodes[1], nodes[0], *nodes[2:]))
    assert _refused(given) == "node aten.relu.default reads 'h' before it exists."


@pytest.mark.parametrize("field", ["outputs", "metrics", "updates", "aliases"])
def test_a_result_that_nothing_computes_is_refused(field: str) -> None:
    wanted: Any = ("ghost",) if field == "outputs" else {"x": "ghost"}
    assert _refused(_with(two_layers(), **{field: wanted})) == (
        "the program should hand on 'ghost', which nothing computes."
    )


def test_units_that_go_back_are_refused() -> None:
    assert _refused(_with_node(two_layers(), 2, unit=-7)) == "unit -7 follows unit 0."


def test_data_in_the_shared_unit_is_refused() -> None:
    assert _refused(_with_node(two_layers(), 0, unit=SHARED_UNIT)) == (
        "node aten.linear.default depends on data but belongs to no unit."
    )


def test_randomness_in_the_shared_unit_is_refused() -> None:
    given = program(
        node("rand.default", (listed(3),), "noise", unit=SHARED_UNIT),
        node("relu.default", ("input:0",), "y"),
        outputs=("y",),
    )
    assert "aten.rand.default depends on data but belongs to no unit" in _refused(given)


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    assert _refused(_with(two_layers(), loss="y")) == (
        "the loss and every metric are 0-dim values (y is not)."
    )


def test_an_update_of_a_parameter_is_refused() -> None:
    assert _refused(_with(two_layers(), updates={"w": "h"})) == (
        "update of 'w' from 'h' is not a buffer update."
    )


def test_an_update_of_another_shape_is_refused() -> None:
    buffer = StateSpec("b", "buffer", "float32", (3,))
    given = two_layers()
    given = _with(given, state=(*given.state, buffer), updates={"b": "loss"})
    assert _refused(given) == "update of b has another shape or dtype than the buffer."


@pytest.mark.parametrize(
    "device", ["cpu", "cuda:0", 0, Constant("dtype", "float32"), Items(("cpu",))]
)
def test_a_node_that_chooses_its_device_is_refused(device: Arg) -> None:
    given = _one("new_ones.default", "input:0", listed(2**30), shape=(2**30,), device=device)
    assert _refused(given) == (
        "node aten.new_ones.default sets device; a program does not choose its device."
    )


@pytest.mark.parametrize(("name", "arg"), [("pin_memory", True), ("generator", "cpu")])
def test_a_node_that_pins_memory_or_brings_a_generator_is_refused(name: str, arg: Arg) -> None:
    op = "rand_like.default" if name == "pin_memory" else "bernoulli.p"
    args: tuple[Arg, ...] = ("input:0",) if name == "pin_memory" else ("input:0", 0.5)
    assert f"sets {name};" in _refused(_one(op, *args, **{name: arg}))


def test_lists_nested_deeper_than_operators_need_are_refused() -> None:
    deep: Arg = 1
    for _ in range(5):
        deep = Items((deep,))
    assert _refused(_one("sum.dim_IntList", "input:0", deep)) == (
        "node aten.sum.dim_IntList nests lists deeper than 4 levels."
    )


def test_a_split_over_a_huge_dimension_is_refused() -> None:
    given = Program(
        inputs=(_declared("input:0", BATCH, 2**20),),
        state=(),
        nodes=(node("split.Tensor", ("input:0", 1, 1), "a", "b"),),
    )
    assert _refused(given) == "node aten.split.Tensor would loop more than 65536 times."


def test_a_node_with_too_few_results_is_refused() -> None:
    nodes = (node("split.Tensor", ("input:0", 1, 1), "a", "b"),)
    given = Program(inputs=(_declared("input:0", BATCH, 4),), state=(), nodes=nodes)
    assert _refused(given).startswith("a node of the program cannot be executed")


def test_a_node_that_cannot_run_names_the_node_before_it() -> None:
    given = _with_node(two_layers(), 2, args=(*two_layers().nodes[2].args[:1], 3))
    assert _refused(given).startswith(
        "a node of the program cannot be executed after aten.relu.default: "
    )


@pytest.mark.parametrize("op", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_a_long_recurrence_is_checked_at_the_cost_of_one_step(op: str, batch_first: bool) -> None:
    gates = {"lstm": 4, "gru": 3}.get(op, 1)
    n_steps = 10**6
    shape = (BATCH, n_steps, 2) if batch_first else (n_steps, BATCH, 2)
    start: Arg = listed("h", "h") if op == "lstm" else "h"
    names = ("y", "hn", "cn") if op == "lstm" else ("y", "hn")
    given = infer_values(
        Program(
            inputs=(_declared("input:0", *shape), _declared("h", 1, BATCH, 3)),
            state=(weight("wi", 3 * gates, 2), weight("wh", 3 * gates, 3)),
            nodes=(
                node(
                    f"{op}.input",
                    ("input:0", start, listed("wi", "wh"), False, 1, 0.0, True, False, batch_first),
                    *names,
                ),
            ),
        )
    )
    check(given)
    assert given.values()["y"].shape == (*shape[:2], 3)
    assert given.values()["hn"].shape == (1, BATCH, 3)


def test_a_node_without_nodes_before_it_is_named_itself() -> None:
    broken = Node("aten.relu.default", (), {}, (_declared("y"),), 0)
    assert "aten.relu.default" in _refused(Program(inputs=(), state=(), nodes=(broken,)))


_ROW_MAJOR = Constant("memory_format", "torch.contiguous_format")


def test_inference_notes_how_a_transposed_value_lies_in_memory() -> None:
    given = program(
        node("unflatten.int", ("input:0", 1, listed(2, 2)), "square"),
        node("permute.default", ("square", listed(2, 0, 1)), "turned"),
        node("clone.default", ("turned",), "still turned"),
        node("clone.default", ("turned",), "straight", memory_format=_ROW_MAJOR),
    )
    orders = [value.order for value in given.values().values()]
    assert orders == [(), (), (1, 2, 0), (1, 2, 0), ()]


def test_an_expanded_value_has_no_order() -> None:
    given = program(
        node("unsqueeze.default", ("input:0", 0), "one"),
        node("expand.default", ("one", listed(3, -1, -1)), "three"),
        node("transpose.int", ("three", 0, 2), "turned"),
    )
    assert given.values()["turned"].order == ()


@pytest.mark.parametrize("order", [(0,), (0, 0), (1, 2), (0, 1, 2), (-1, 0)])
def test_an_order_that_is_no_permutation_is_refused(order: tuple[int, ...]) -> None:
    given = _with(two_layers(), inputs=(_declared("input:0", BATCH, 4, order=order),))
    assert _refused(given) == "value input:0 orders dimensions that it does not have."
