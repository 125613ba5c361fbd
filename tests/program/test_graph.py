"""The program as a value: sizes, references, and what a graph says about itself."""

from __future__ import annotations

import msgspec
import pytest

from edgeweave.program import Program, Value
from edgeweave.program.graph import Items, Node, Ref, Size, references
from tests.program.graphs import node, two_layers


def test_a_size_is_affine_in_the_batch() -> None:
    assert [Size(3, -1).at(n) for n in (1, 2, 5)] == [2, 5, 14]


def test_a_shape_mixes_fixed_and_growing_sizes() -> None:
    assert Value("x", "float32", (Size(1), 3, Size(2, 1))).shape_at(4) == (4, 3, 9)


def test_references_are_found_in_nested_lists_with_repetitions() -> None:
    nested = Items((Ref("a"), 1, Items((Ref("b"), Ref("a"))), None))
    assert list(references(nested)) == ["a", "b", "a"]


def test_a_node_reads_its_keywords_after_its_arguments() -> None:
    reads = node("add.Tensor", ("a", 2), "c", alpha=1, other=Ref("b"))
    assert list(reads.inputs()) == ["a", "b"]


def test_unit_numbers_leave_the_shared_unit_out() -> None:
    nodes = tuple(node("relu.default", ("input:0",), f"r{u}", unit=u) for u in (-1, 4, 2))
    assert Program(inputs=(), state=(), nodes=nodes).unit_numbers == (2, 4)


def test_results_are_outputs_loss_metrics_and_updates() -> None:
    program = Program((), (), (), ("y",), "loss", {"acc": "a"}, {"mean": "m"})
    assert program.results() == ("y", "loss", "a", "m")


def test_values_are_inputs_and_results_but_no_state() -> None:
    assert list(two_layers().values()) == ["input:0", "h", "r", "y", "loss"]


def test_a_program_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        two_layers().loss = "y"  # type: ignore[misc]


@pytest.mark.parametrize("kind", [Program, Node, Value, Size, Ref, Items])
def test_the_schema_refuses_unknown_fields(kind: type[msgspec.Struct]) -> None:
    assert kind.__struct_config__.forbid_unknown_fields
    assert kind.__struct_config__.frozen
