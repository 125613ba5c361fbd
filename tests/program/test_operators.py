"""Which operators a program may call, and how arguments become torch's."""

from __future__ import annotations

import math

import pytest
import torch

from edgeweave.core.errors import FormatError
from edgeweave.program.graph import Arg, Constant, Items, Ref, Size
from edgeweave.program.operators import (
    DTYPES,
    FACTORIES,
    bind,
    constant,
    dtype_name,
    is_random,
    operator,
)


def _refused(name: str) -> str:
    with pytest.raises(FormatError) as caught:
        operator(name)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "aten.conv2d",
        "prims.add.default",
        "aten.conv2d.default.x",
        "aten.__class__.__mro__.x",
        "aten.conv2d.default\n",
        "",
        "aten..default",
        "../aten.add.Tensor",
    ],
)
def test_a_name_of_another_form_is_refused(name: str) -> None:
    assert _refused(name) == (f"an operator is named aten.<name>.<overload> (got {name[:80]!r}).")


@pytest.mark.parametrize(
    "name",
    ["aten.made_up.default", "aten.add.made_up", "aten.__class__.mro", "aten.add.__call__"],
)
def test_an_operator_that_does_not_exist_is_refused(name: str) -> None:
    assert _refused(name) == f"operator {name} does not exist in torch {torch.__version__}."


@pytest.mark.parametrize(
    "name",
    [
        "aten.add_.Tensor",
        "aten.relu_.default",
        "aten.add.out",
        "aten.set_.source_Storage",
        "aten.resize_.default",
        "aten.copy_.default",
        "aten.requires_grad_.default",
        "aten._native_batch_norm_legit.default",
    ],
)
def test_an_operator_that_writes_to_its_arguments_is_refused(name: str) -> None:
    assert _refused(name) == f"operator {name} writes to its arguments; programs are functional."


@pytest.mark.parametrize(
    "name", ["aten.from_file.default", "aten.empty.memory_format", "aten._cuda_getCurrentRawStream"]
)
def test_an_operator_that_takes_no_tensor_is_refused(name: str) -> None:
    _refused(name if name.count(".") == 2 else f"{name}.default")


@pytest.mark.parametrize("name", sorted(FACTORIES))
def test_every_known_factory_exists(name: str) -> None:
    assert operator(name)._schema.returns


@pytest.mark.parametrize(
    "name",
    ["conv2d.default", "linear.default", "scaled_dot_product_attention.default", "lstm.input"],
)
def test_the_layers_of_ordinary_models_are_allowed(name: str) -> None:
    assert operator(f"aten.{name}").name() == f"aten::{name.removesuffix('.default')}"


@pytest.mark.parametrize(
    ("name", "random"),
    [
        ("aten.native_dropout.default", True),
        ("aten.scaled_dot_product_attention.default", True),
        ("aten.lstm.input", True),
        ("aten.gru.input", True),
        ("aten.bernoulli.p", True),
        ("aten.rand.default", True),
        ("aten.conv2d.default", False),
        ("aten.arange.default", False),
    ],
)
def test_what_may_draw_random_numbers_is_known(name: str, random: bool) -> None:
    assert is_random(name) is random


def test_dtypes_have_names_both_ways() -> None:
    assert all(dtype_name(dtype) == name for name, dtype in DTYPES.items())


def test_a_dtype_that_cannot_travel_is_refused() -> None:
    with pytest.raises(FormatError, match=r"got torch\.complex64\)\. Convert it in the model"):
        dtype_name(torch.complex64)


def test_constants_stand_for_torch_objects() -> None:
    assert constant(Constant("dtype", "int8")) is torch.int8
    assert constant(Constant("memory_format", "torch.channels_last")) is torch.channels_last
    assert constant(Constant("layout", "torch.strided")) is torch.strided
    assert constant(Constant("float", "-inf")) == -math.inf


def test_a_constant_nobody_knows_is_refused() -> None:
    with pytest.raises(FormatError, match=r"layout 'torch\.sparse_coo' is not known"):
        constant(Constant("layout", "torch.sparse_coo"))


def test_fixed_arguments_are_bound_once() -> None:
    assert bind(Items((1, None, "tanh", Items((2.0,)))), {}) == ([1, None, "tanh", [2.0]], None)


@pytest.mark.parametrize(
    ("arg", "expected"),
    [
        (Ref("b"), "second"),
        (Size(2, 1), 7),
        (Items((Ref("a"), 5, Size(1))), ["first", 5, 3]),
        (Items((Items((Ref("b"),)), None)), [["second"], None]),
    ],
)
def test_references_and_sizes_are_looked_up_for_every_microbatch(
    arg: Arg, expected: object
) -> None:
    fixed, function = bind(arg, {"a": 0, "b": 1})
    assert fixed is None
    assert function is not None
    assert function(["first", "second"], 3) == expected  # type: ignore[list-item]
