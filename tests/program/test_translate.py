"""From torch's exported graph to our nodes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeweave.core.errors import CaptureError
from edgeweave.program import Captured, Program, capture
from edgeweave.program.graph import Constant, Items, Size
from tests.models import ZOO

Capture = Callable[[str], Captured]

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
Y = torch.tensor([0, 1, 2, 1])


class _Model(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        self.linear = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.function(x))


def _program(function: Callable[[torch.Tensor], torch.Tensor]) -> Program:
    return capture(_Model(function), F.cross_entropy, X, Y).program


def _node(program: Program, op: str):  # type: ignore[no-untyped-def]
    return next(n for n in program.nodes if n.op == op)


@pytest.mark.parametrize("name", ZOO)
def test_a_graph_is_functional_and_names_no_device(captured: Capture, name: str) -> None:
    for n in captured(name).program.nodes:
        assert not n.op.split(".")[1].endswith("_") or n.op.split(".")[1].startswith("__")
        assert "device" not in n.kwargs


@pytest.mark.parametrize("name", ZOO)
def test_names_are_unique(captured: Capture, name: str) -> None:
    program = captured(name).program
    names = [*program.values(), *(spec.name for spec in program.state)]
    results = [v.name for n in program.nodes for v in n.results]
    assert len(set(names)) == len(names)
    assert len(set(results)) == len(results)


def test_a_node_remembers_the_users_line() -> None:
    node = _node(_program(torch.tanh), "aten.tanh.default")
    assert node.source.startswith(" (test_translate.py:")
    assert "return self.linear(self.function(x))" in node.source


def test_sizes_that_follow_the_batch_stay_symbolic() -> None:
    node = _node(_program(lambda x: x.reshape(2 * x.shape[0], 3).view(-1, 6)), _RESHAPE)
    assert node.args[1] == Items((Size(2), 3))


_RESHAPE = "aten.reshape.default"


@pytest.mark.parametrize(
    "allocate",
    [
        torch.zeros_like,
        torch.ones_like,
        lambda x: x.new_zeros(x.shape),
        lambda x: x.new_ones(x.shape),
        lambda x: torch.full_like(x, 0.5),
        lambda x: x.new_full(x.shape, -torch.inf).exp(),
    ],
    ids=["zeros_like", "ones_like", "new_zeros", "new_ones", "full_like", "new_full"],
)
def test_allocations_become_full_and_depend_on_no_data(
    allocate: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    node = _node(_program(lambda x: x + allocate(x)), "aten.full.default")
    assert node.args[0] == Items((Size(1), 6))
    assert node.kwargs == {"dtype": Constant("dtype", "float32")}
    assert node.unit == -1


def test_a_boolean_allocation_is_filled_with_booleans() -> None:
    program = _program(lambda x: x * torch.ones_like(x, dtype=torch.bool))
    assert _node(program, "aten.full.default").args[1] is True


def test_an_infinite_constant_survives_json() -> None:
    program = _program(lambda x: x.masked_fill(x > 9, -torch.inf).exp())
    assert _node(program, "aten.masked_fill.Scalar").args[2] == Constant("float", "-inf")


def test_assertions_are_left_behind() -> None:
    def asserting(x: torch.Tensor) -> torch.Tensor:
        torch._assert(x.shape[1] == 6, "six features")
        return x

    assert not any("assert" in n.op for n in _program(asserting).nodes)


def test_an_operator_of_another_library_is_refused_with_the_users_line() -> None:
    @torch.library.custom_op("edgeweave_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    twice.register_fake(torch.empty_like)
    twice.register_autograd(lambda ctx, gradient: 2 * gradient)
    with pytest.raises(CaptureError) as caught:
        _program(twice)
    assert str(caught.value).startswith(
        "operator edgeweave_tests.twice.default is not a plain torch operator ("
    )
    assert "test_translate.py" in str(caught.value)


def test_a_conditional_sub_graph_is_refused() -> None:
    def branching(x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))

    with pytest.raises(CaptureError, match="a sub-graph is left in the capture"):
        _program(branching)


def test_tied_parameters_are_listed_once_and_remember_their_other_names() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3))
    model[1].weight = model[0].weight
    program = capture(model, F.cross_entropy, X, Y).program
    assert program.aliases == {"1.weight": "0.weight"}
    assert [spec.name for spec in program.state].count("0.weight") == 1
    assert "1.weight" not in {spec.name for spec in program.state}


def test_a_parameter_named_like_a_value_keeps_its_name() -> None:
    model = _Model(torch.tanh)
    model.linear.register_parameter("tanh", nn.Parameter(torch.ones(3)))
    model.tanh = nn.Parameter(torch.ones(6))
    model.function = lambda x: torch.tanh(x) * model.tanh
    program = capture(model, F.cross_entropy, X, Y).program
    assert "tanh" in {spec.name for spec in program.state}
    assert _node(program, "aten.tanh.default").results[0].name == "tanh_"


def test_a_plain_tensor_of_the_model_travels_as_a_constant() -> None:
    model = _Model(lambda x: x)
    ruler = torch.arange(6.0)
    model.function = lambda x: x * ruler
    program = capture(model, F.cross_entropy, X, Y).program
    kinds = {spec.kind for spec in program.state if spec.shape == (6,)}
    assert kinds == {"constant"}
