"""Which operators a program may call, and how their arguments become torch's.

Only functional operators of the ``aten`` namespace are accepted: no in-place and no ``out=``
variants, nothing that touches a file, nothing outside ``aten``. An operator that takes no tensor
is refused unless it is one of ``FACTORIES``: that keeps ``aten::from_file`` out by rule, not by
name. What an operator may *compute* is bounded by ``edgeweave.program.check``.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence

import torch

from edgeweave.core.errors import FormatError
from edgeweave.program.graph import Arg, Constant, Items, Ref, Size

__all__ = [
    "DTYPES",
    "Operator",
    "bind",
    "dtype_name",
    "is_random",
    "operator",
]

Operator = torch._ops.OpOverload

FACTORIES = frozenset(
    f"aten.{name}"
    for name in (
        "arange.default",
        "arange.start",
        "arange.start_step",
        "eye.default",
        "eye.m",
        "full.default",
        "linspace.default",
        "ones.default",
        "rand.default",
        "randn.default",
        "scalar_tensor.default",
        "zeros.default",
    )
)

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MEMORY_FORMATS = {
    str(f): f
    for f in (
        torch.contiguous_format,
        torch.preserve_format,
        torch.channels_last,
        torch.channels_last_3d,
    )
}
_LAYOUTS = {str(torch.strided): torch.strided}
_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_OP_NAME = re.compile(r"aten\.[A-Za-z_][A-Za-z0-9_]*\.[A-Za-z_][A-Za-z0-9_]*")


def dtype_name(dtype: torch.dtype) -> str:
    """The name a dtype has in a program, or a ``FormatError`` for one that cannot travel."""
    if dtype not in _DTYPE_NAMES:
        raise FormatError(
            f"a tensor has one of the dtypes {', '.join(DTYPES)} (got {dtype}). "
            "Convert it in the model or the data set."
        )
    return _DTYPE_NAMES[dtype]


@functools.cache
def operator(name: str) -> Operator:
    """Find an allowed operator by a name such as ``aten.conv2d.default``."""
    if not _OP_NAME.fullmatch(name):
        raise FormatError(f"an operator is named aten.<name>.<overload> (got {name[:80]!r}).")
    _, packet_name, overload = name.split(".")
    found = getattr(getattr(torch.ops.aten, packet_name, None), overload, None)
    if not isinstance(found, torch._ops.OpOverload):
        raise FormatError(f"operator {name} does not exist in torch {torch.__version__}.")
    if found._schema.is_mutable:
        raise FormatError(f"operator {name} writes to its arguments; programs are functional.")
    takes_tensor = any("Tensor" in str(argument.type) for argument in found._schema.arguments)
    if not takes_tensor and name not in FACTORIES:
        raise FormatError(f"operator {name} takes no tensor and is not a known factory.")
    return found


@functools.cache
def is_random(name: str) -> bool:
    """Whether an operator may draw random numbers, so that its unit must be seeded."""
    tags = operator(name).tags
    return torch.Tag.nondeterministic_seeded in tags or name == "aten.lstm.input"


def constant(value: Constant) -> object:
    """The torch object a named constant stands for."""
    tables: dict[str, dict[str, object]] = {
        "dtype": dict(DTYPES),
        "memory_format": dict(_MEMORY_FORMATS),
        "layout": dict(_LAYOUTS),
        "float": dict(_FLOATS),
    }
    table = tables[value.kind]
    if value.value not in table:
        raise FormatError(f"{value.kind} {value.value!r} is not known (known: {', '.join(table)}).")
    return table[value.value]


Bound = Callable[[Sequence[torch.Tensor | None], int], object]


def bind(arg: Arg, slots: dict[str, int]) -> tuple[object, Bound | None]:
    """Prepare an argument: a fixed object, or a function of (values by slot, batch)."""
    if isinstance(arg, Ref):
        slot = slots[arg.name]
        return None, lambda values, batch: values[slot]
    if isinstance(arg, Size):
        return None, lambda values, batch: arg.at(batch)
    if isinstance(arg, Constant):
        return constant(arg), None
    if isinstance(arg, Items):
        parts = [bind(item, slots) for item in arg.items]
        if all(function is None for _, function in parts):
            return [fixed for fixed, _ in parts], None
        return None, lambda values, batch: [
            fixed if function is None else function(values, batch) for fixed, function in parts
        ]
    return arg, None
