"""Files from strangers: whatever bytes come, they load equal or are refused, and nothing runs.

Mutations of raw bytes meet the digests; mutations of the JSON have their digests made right again,
so that they meet the checks behind them.
"""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from edgeweave.core.errors import FormatError, WireError
from edgeweave.program import Captured, decode, encode
from edgeweave.program.graph import SHARED_UNIT, Program, Size, StateSpec
from tests.program.graphs import listed, node, program, state_of, weight


def _victim() -> Program:
    """Every kind of thing a graph can hold, small."""
    return program(
        node("arange.default", (Size(1),), "rows", unit=SHARED_UNIT),
        node("full.default", (listed(Size(1), 3), 0.5), "half", unit=SHARED_UNIT),
        node("linear.default", ("input:0", "w", None), "h"),
        node("native_dropout.default", ("h", 0.1, True), "kept", "mask"),
        node("cat.default", (listed("kept", "half"), 1), "wide", unit=1),
        node("split.Tensor", ("wide", 3, 1), "left", "right", unit=1),
        node("gelu.default", ("left",), "g", unit=1, approximate="tanh"),
        node("add.Tensor", ("seen", 1), "seen_next", unit=1),
        node("linear.default", ("g", "v"), "y", unit=2),
        node("index.Tensor", ("y", listed("rows")), "picked", unit=2),
        node("mean.default", ("picked",), "loss", unit=3),
        state=(
            weight("w", 3, 4),
            weight("v", 2, 3, trainable=False),
            StateSpec("seen", "buffer", "int64", ()),
        ),
        outputs=("y",),
        loss="loss",
        metrics={"mean": "loss"},
        updates={"seen": "seen_next"},
        aliases={"tied": "w"},
    )


VICTIM = _victim()
STATE = {**state_of(VICTIM), "seen": torch.tensor(3)}
GRAPH, TENSORS = encode(VICTIM, STATE)
TREE = json.loads(GRAPH)["program"]
DECLARED_BYTES = sum(tensor.nbytes for tensor in STATE.values())

HOSTILE_VALUES = [
    None,
    True,
    -1,
    0,
    1,
    7,
    2**20,
    2**31,
    2**40,
    2**62,
    2**63,
    2**64,
    10**30,
    -(2**63),
    0.5,
    1e308,
    "",
    "w",
    "h",
    "loss",
    "input:0",
    "cpu",
    "cuda",
    "float64",
    "int8",
    "parameter",
    "aten.from_file.default",
    "aten.set_.source_Tensor",
    "aten.relu_.default",
    "aten.empty_like.default",
    "aten.new_zeros.default",
    "aten.repeat.default",
    "aten.tile.default",
    "aten.unbind.int",
    "aten.as_strided.default",
    "aten.kron.default",
    "aten.nonzero.default",
    "aten.item.default",
    "aten.pad_sequence.default",
    "aten.combinations.default",
    "aten.to_sparse.default",
    "aten._to_copy.default",
    "aten._pin_memory.default",
    "aten.full.default",
    "aten.rand.default",
    "aten.matrix_power.default",
    "aten.lstm.input",
    "aten._backward.default",
    "os.system",
    [],
    {},
    [-1],
    [2**40, 2**40],
    {"type": "ref", "name": "y"},
    {"type": "ref", "name": "w"},
    {"type": "ref", "name": "input:0"},
    {"type": "size", "per_sample": 2**40, "constant": -(2**40)},
    {"type": "size", "per_sample": -1, "constant": 10**9},
    {"type": "size", "per_sample": 10**9},
    {"type": "constant", "kind": "layout", "value": "torch.sparse_coo"},
    {"type": "constant", "kind": "dtype", "value": "float64"},
    {"type": "constant", "kind": "float", "value": "nan"},
    {"type": "items", "items": [2**31, 2**31]},
    {"type": "items", "items": []},
    {"type": "object", "__reduce__": "os.system"},
]


class Allocations(TorchDispatchMode):
    """Records the largest tensor with contents that any operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.largest_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in result if isinstance(result, list | tuple) else (result,):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                size = leaf.untyped_storage().nbytes() if leaf.layout == torch.strided else 1 << 60
                self.largest_bytes = max(self.largest_bytes, size)
        return result


def _sealed(tree: Any, tensors: bytes = TENSORS) -> bytes:
    """A file around ``tree`` whose digests are right."""
    inner = json.dumps(tree).encode()
    fields = {
        "format": "edgeweave/program",
        "version": 1,
        "program_sha256": hashlib.sha256(inner).hexdigest(),
        "state_sha256": hashlib.sha256(tensors).hexdigest(),
        "program": "HERE",
    }
    return json.dumps(fields).encode().replace(b'"HERE"', inner)


def _opened(graph: bytes, tensors: bytes) -> Captured | None:
    """What was loaded, or None where it was refused; anything else fails the test."""
    with Allocations() as allocations:
        try:
            loaded = decode(graph, tensors)
        except (FormatError, WireError):
            loaded = None
    assert allocations.largest_bytes <= max(DECLARED_BYTES, len(tensors), 64)
    return loaded


def _assert_harmless(graph: bytes, tensors: bytes = TENSORS) -> None:
    loaded = _opened(graph, tensors)
    if loaded is not None:
        declared = {spec.name: spec.shape for spec in loaded.program.state}
        assert {name: tuple(tensor.shape) for name, tensor in loaded.state.items()} == declared
        assert decode(*encode(loaded.program, loaded.state)).program == loaded.program


def _paths(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every place in a JSON tree."""
    children: Any = ()
    if isinstance(tree, dict):
        children = tree.items()
    elif isinstance(tree, list):
        children = enumerate(tree)
    found = [path] if path else []
    for key, child in children:
        found += _paths(child, (*path, key))
    return found


PATHS = _paths(TREE)


def _at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _mutate(tree: Any, path: tuple[Any, ...], how: str, value: Any) -> None:
    """Change one place; a place that an earlier change removed is left alone."""
    try:
        parent = _at(tree, path[:-1])
        if how == "delete":
            del parent[path[-1]]
        elif how == "repeat" and isinstance(parent, list):
            parent.insert(path[-1], copy.deepcopy(parent[path[-1]]))
        elif how == "wrap":
            parent[path[-1]] = {"type": "items", "items": [parent[path[-1]]]}
        else:
            parent[path[-1]] = copy.deepcopy(value)
    except (KeyError, IndexError, TypeError):
        return


def test_the_untouched_file_loads() -> None:
    loaded = _opened(GRAPH, TENSORS)
    assert loaded is not None
    assert loaded.program == VICTIM
    assert _opened(_sealed(TREE), TENSORS) is not None


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_flipped_cut_and_spliced_bytes_load_equal_or_are_refused(data: st.DataObject) -> None:
    which = data.draw(st.booleans())
    raw = bytearray(GRAPH if which else TENSORS)
    how = data.draw(st.sampled_from(["flip", "cut", "insert", "splice"]))
    place = data.draw(st.integers(0, len(raw) - 1))
    if how == "flip":
        raw[place] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del raw[place:]
    elif how == "insert":
        raw[place:place] = data.draw(st.binary(max_size=20))
    else:
        other = data.draw(st.integers(0, len(raw) - 1))
        raw[place : place + 40] = raw[other : other + 40]
    graph, tensors = (bytes(raw), TENSORS) if which else (GRAPH, bytes(raw))
    loaded = _opened(graph, tensors)
    if loaded is not None:
        assert loaded.program == VICTIM


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_tensor_files_with_right_digests_load_as_declared_or_are_refused(
    data: st.DataObject,
) -> None:
    raw = bytearray(TENSORS)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    tensors = bytes(raw)
    _assert_harmless(_sealed(TREE, tensors), tensors)


@settings(max_examples=600, deadline=None)
@given(
    changes=st.lists(
        st.tuples(
            st.sampled_from(PATHS),
            st.sampled_from(["put", "put", "put", "delete", "repeat", "wrap"]),
            st.sampled_from(HOSTILE_VALUES),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_graphs_with_right_digests_load_sound_or_are_refused(changes: list[Any]) -> None:
    tree = copy.deepcopy(TREE)
    for path, how, value in changes:
        _mutate(tree, path, how, value)
    _assert_harmless(_sealed(tree))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_graphs_whose_parts_were_swapped_load_sound_or_are_refused(data: st.DataObject) -> None:
    tree = copy.deepcopy(TREE)
    first, second = (data.draw(st.sampled_from(PATHS)) for _ in range(2))
    moved = copy.deepcopy(_at(TREE, second))
    _mutate(tree, second, "put", copy.deepcopy(_at(TREE, first)))
    _mutate(tree, first, "put", moved)
    _assert_harmless(_sealed(tree))


def _every_operator() -> list[str]:
    """Every overload of every aten operator, by name."""
    return sorted(
        f"{schema.name.replace('::', '.')}.{schema.overload_name or 'default'}"
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("aten::")
    )


@pytest.mark.parametrize(
    "index", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(6, marks=pytest.mark.slow)]
)
def test_no_operator_put_into_a_graph_crashes_or_allocates(index: int) -> None:
    """Every operator of aten, on arguments that were meant for another."""
    for name in _every_operator():
        tree = copy.deepcopy(TREE)
        tree["nodes"][index]["op"] = name
        _assert_harmless(_sealed(tree))


@pytest.mark.parametrize(
    ("op", "args", "kwargs"),
    [
        ("new_ones.default", [[2**31, 64]], {"device": "cpu"}),
        ("zeros_like.default", [], {"device": "cpu"}),
        ("empty_like.default", [], {"device": "cpu", "pin_memory": True}),
        ("new_empty_strided.default", [[2**31], [1]], {"device": "cpu"}),
        ("_to_copy.default", [], {"device": "cpu"}),
        ("to.device", ["cpu", "float32"], {}),
        ("expand.default", [[2**40, 3]], {}),
        ("repeat.default", [[2**20, 2**20]], {}),
        ("constant_pad_nd.default", [[2**40, 2**40]], {}),
        ("one_hot.default", [2**40], {}),
        ("nonzero.default", [], {}),
        ("to_sparse.default", [], {}),
        ("to_mkldnn.default", [], {}),
        ("quantize_per_tensor.default", [0.1, 0, 13], {}),
    ],
)
def test_an_operator_that_would_allocate_is_refused(
    op: str, args: list[Any], kwargs: dict[str, Any]
) -> None:
    tree = copy.deepcopy(TREE)
    listed_args = [{"type": "items", "items": a} if isinstance(a, list) else a for a in args]
    tree["nodes"][6] |= {
        "op": f"aten.{op}",
        "args": [{"type": "ref", "name": "left"}, *listed_args],
        "kwargs": kwargs,
    }
    assert _opened(_sealed(tree), TENSORS) is None
