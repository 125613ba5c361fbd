"""Decide whether a program is sound, without running it: structure, names, operators, sizes.

Operators are called on ``meta`` tensors, which have shapes and no contents, so even a hostile
program allocates nothing here. The same pass infers the shapes of a freshly captured program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import torch

from edgeweave.core.errors import FormatError
from edgeweave.core.units import format_bytes
from edgeweave.program.graph import SHARED_UNIT, Arg, Items, Node, Program, Size, Value
from edgeweave.program.interpret import Interpreter, Observer, Operation
from edgeweave.program.operators import DTYPES, dtype_name, is_random, operator

__all__ = ["MAX_TENSOR_BYTES", "check", "infer_values", "meta_state", "propagate", "value_bytes"]

MAX_TENSOR_BYTES = 1 << 40
"""No single tensor of a program may be larger, whatever it declares."""

_MAX_LOOP = 1 << 16  # longest dimension an operator that loops over it may see
_MAX_BATCH = 1 << 20
_MAX_NESTING = 4
_META = torch.device("meta")
_PLACING = ("Optional[Device]", "Device", "Optional[Generator]", "Generator", "Storage", "Stream")
_RECURRENT = ("aten.lstm.input", "aten.gru.input", "aten.rnn_tanh.input", "aten.rnn_relu.input")


def value_bytes(value: Value, batch: int) -> int:
    """Bytes of a value for a microbatch of ``batch`` samples."""
    return math.prod(value.shape_at(batch)) * DTYPES[value.dtype].itemsize


def check(program: Program) -> None:
    """Raise ``FormatError`` unless the program can be run and does what it declares."""
    for node in program.nodes:
        _check_arguments(node)
    _check_values(program)
    _check_names(program)
    _check_units(program)
    _check_updates(program)
    for batch in (2, 3):
        propagate(program, batch, observe=_comparer(batch), find=_without_loops)


def propagate(
    program: Program,
    batch: int,
    *,
    observe: Observer,
    find: Callable[[str], Operation] = operator,
    state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Run the program on ``meta`` tensors with gradients recorded, showing every result."""
    current = program.nodes[0] if program.nodes else None

    def watch(node: Node, results: tuple[torch.Tensor, ...]) -> None:
        nonlocal current
        observe(node, results)
        current = node

    try:
        state = meta_state(program) if state is None else state
        inputs = {
            value.name: _meta(value.dtype, value.shape_at(batch), requires_grad=value.requires_grad)
            for value in program.inputs
        }
        interpreter = Interpreter(program, state, device=_META, find=find)
        with torch.enable_grad():
            interpreter.run(inputs, batch, wanted=(), observe=watch)
    except FormatError:
        raise
    except Exception as error:  # kernels for meta tensors raise whatever they like
        after = f" after {current.op}{current.source}" if current is not None else ""
        text = str(error).strip().splitlines()
        raise FormatError(
            f"a node of the program cannot be executed{after}: {text[0] if text else error!r}"
        ) from error


def _order(tensor: torch.Tensor) -> tuple[int, ...]:
    """The dimensions by falling stride; empty if that is row-major, or if one is expanded."""
    strides = tensor.stride()
    long = [dim for dim, size in enumerate(tensor.shape) if size > 1]
    if any(strides[dim] == 0 for dim in long):
        return ()
    order = tuple(sorted(range(tensor.ndim), key=lambda dim: strides[dim], reverse=True))
    return order if [dim for dim in order if dim in long] != long else ()


def meta_state(program: Program) -> dict[str, torch.Tensor]:
    """The program's state as tensors without contents."""
    return {
        spec.name: _meta(spec.dtype, spec.shape, requires_grad=spec.trainable)
        for spec in program.state
    }


def _meta(dtype: str, shape: tuple[int, ...], *, requires_grad: bool) -> torch.Tensor:
    tensor = torch.empty(shape, dtype=DTYPES[dtype], device=_META)
    return tensor.requires_grad_(requires_grad)


def _without_loops(name: str) -> Operation:
    """The operator; a recurrent one looks at a single time step, for its shapes are known then."""
    call = operator(name)
    if name not in _RECURRENT:
        return call

    def first_step(given: torch.Tensor, *args: Any) -> list[torch.Tensor]:
        dim = 1 if args[-1] else 0  # batch_first
        output, *final = call(given.narrow(dim, 0, 1), *args)
        size = list(output.shape)
        size[dim] = given.shape[dim]
        return [output.expand(size), *final]

    return first_step


def infer_values(program: Program) -> Program:
    """Fill in dtype, shape and ``requires_grad`` of every node result.

    Shapes are taken at two batch sizes; what differs between them is affine in the batch.
    """
    seen: dict[int, dict[str, torch.Tensor]] = {}
    for batch in (2, 3):
        found = seen.setdefault(batch, {})

        def note(
            node: Node,
            results: tuple[torch.Tensor, ...],
            found: dict[str, torch.Tensor] = found,
        ) -> None:
            for value, tensor in zip(node.results, results, strict=True):
                found[value.name] = tensor.detach().requires_grad_(tensor.requires_grad)

        propagate(program, batch, observe=note, find=_without_loops)

    def infer(value: Value) -> Value:
        small, large = seen[2][value.name], seen[3][value.name]
        return Value(
            value.name,
            dtype_name(small.dtype),
            tuple(
                a if a == b else Size(b - a, a - 2 * (b - a))
                for a, b in zip(small.shape, large.shape, strict=True)
            ),
            requires_grad=small.requires_grad,
            order=_order(large),
        )

    nodes = tuple(
        msgspec.structs.replace(node, results=tuple(infer(value) for value in node.results))
        for node in program.nodes
    )
    return msgspec.structs.replace(program, nodes=nodes)


def _comparer(batch: int) -> Observer:
    def compare(node: Node, results: tuple[torch.Tensor, ...]) -> None:
        for value, tensor in zip(node.results, results, strict=True):
            if tensor.device != _META or tensor.layout != torch.strided:
                raise FormatError(f"value {value.name} of {node.op} is no plain dense tensor.")
            found = (dtype_name(tensor.dtype), tuple(tensor.shape), tensor.requires_grad)
            declared = (value.dtype, value.shape_at(batch), value.requires_grad)
            if found != declared:
                raise FormatError(
                    f"value {value.name} of {node.op} is declared as {declared} but is {found} "
                    f"for {batch} samples."
                )

    return compare


def _check_arguments(node: Node) -> None:
    """Where a tensor lives is not for the program to say; lists nest as far as operators need."""
    for arg in (*node.args, *node.kwargs.values()):
        _check_depth(node, arg, _MAX_NESTING)
    schema = operator(node.op)._schema.arguments
    placing = {a.name for a in schema if str(a.type) in _PLACING or a.name == "pin_memory"}
    given = {**dict(zip((a.name for a in schema), node.args, strict=False)), **node.kwargs}
    for name in placing & given.keys():
        if given[name] is not None:
            raise FormatError(f"node {node.op} sets {name}; a program does not choose its device.")


def _check_depth(node: Node, arg: Arg, remaining: int) -> None:
    if not isinstance(arg, Items):
        return
    if remaining == 0:
        raise FormatError(f"node {node.op} nests lists deeper than {_MAX_NESTING} levels.")
    for item in arg.items:
        _check_depth(node, item, remaining - 1)


def _check_values(program: Program) -> None:
    for value in program.values().values():
        if value.dtype not in DTYPES:
            raise FormatError(f"value {value.name} has the unknown dtype {value.dtype!r}.")
        if value.order and sorted(value.order) != list(range(len(value.shape))):
            raise FormatError(f"value {value.name} orders dimensions that it does not have.")
        if any(isinstance(size, Size) and size.per_sample < 0 for size in value.shape):
            raise FormatError(f"value {value.name} shrinks as the batch grows.")
        for batch in (1, 2, 3, _MAX_BATCH):
            if any(size < 0 for size in value.shape_at(batch)):
                raise FormatError(f"value {value.name} has a negative size.")
        _check_bytes(value.name, value_bytes(value, 3))
    for spec in program.state:
        if spec.dtype not in DTYPES or any(size < 0 for size in spec.shape):
            raise FormatError(f"state {spec.name} has an impossible dtype or shape.")
        if spec.trainable and not (
            spec.kind == "parameter" and DTYPES[spec.dtype].is_floating_point
        ):
            raise FormatError(f"state {spec.name} is trainable but no floating-point parameter.")
        _check_bytes(spec.name, math.prod(spec.shape) * DTYPES[spec.dtype].itemsize)


def _check_bytes(name: str, size_bytes: int) -> None:
    if size_bytes > MAX_TENSOR_BYTES:
        raise FormatError(
            f"tensor {name} is larger than any device holds "
            f"({format_bytes(size_bytes)}, limit: {format_bytes(MAX_TENSOR_BYTES)})."
        )


def _check_names(program: Program) -> None:
    known: set[str] = set()
    for name in _definitions(program):
        if name in known:
            raise FormatError(f"the name {name} is defined twice.")
        known.add(name)
    known = {value.name for value in program.inputs} | {spec.name for spec in program.state}
    shapes = program.values()
    for node in program.nodes:
        for name in node.inputs():
            if name not in known:
                raise FormatError(f"node {node.op} reads {name!r} before it exists.")
        _check_loop(node, shapes)
        known.update(value.name for value in node.results)
    missing = [name for name in program.results() if name not in known]
    missing += [name for name in program.aliases.values() if name not in known]
    if missing:
        raise FormatError(f"the program should hand on {missing[0]!r}, which nothing computes.")


def _definitions(program: Program) -> Iterator[str]:
    yield from (value.name for value in program.inputs)
    yield from (spec.name for spec in program.state)
    yield from (value.name for node in program.nodes for value in node.results)


def _check_loop(node: Node, shapes: dict[str, Value]) -> None:
    """Operators that return a list get dimensions of sane length, even on ``meta``."""
    if not any("List" in str(returned.type) for returned in operator(node.op)._schema.returns):
        return
    for name in node.inputs():
        if name in shapes and any(size > _MAX_LOOP for size in shapes[name].shape_at(3)):
            raise FormatError(f"node {node.op} would loop more than {_MAX_LOOP} times.")


def _check_units(program: Program) -> None:
    """Units ascend, and what belongs to none depends on no data and no randomness."""
    independent = {spec.name for spec in program.state if not spec.trainable}
    independent -= program.updates.keys()
    last = 0
    for node in program.nodes:
        if node.unit == SHARED_UNIT:
            if is_random(node.op) or not independent.issuperset(node.inputs()):
                raise FormatError(f"node {node.op} depends on data but belongs to no unit.")
            independent.update(value.name for value in node.results)
        elif node.unit < last:
            raise FormatError(f"unit {node.unit} follows unit {last}.")
        else:
            last = node.unit


def _check_updates(program: Program) -> None:
    state = {spec.name: spec for spec in program.state}
    values = program.values()
    for name, source in program.updates.items():
        spec, value = state.get(name), values.get(source)
        if spec is None or spec.kind == "parameter" or value is None:
            raise FormatError(f"update of {name!r} from {source!r} is not a buffer update.")
        if (spec.dtype, spec.shape) != (value.dtype, value.shape):
            raise FormatError(f"update of {name} has another shape or dtype than the buffer.")
    scalars = [*program.metrics.values(), *([] if program.loss is None else [program.loss])]
    for name in scalars:
        if name not in values or values[name].shape != ():
            raise FormatError(f"the loss and every metric are 0-dim values ({name} is not).")
