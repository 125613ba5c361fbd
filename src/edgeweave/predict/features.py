"""What an operator costs depends on: its family, its shapes, its work. From the graph alone.

Every operator of a unit is a row; a unit, a stage, a whole model is the rows of its operators, of
which each takes its own time. The work of an operator is counted in multiply-adds and in bytes that
go in and out (papers.md 2(c): type, shape, operator and derived fields).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeweave.program import DTYPES, Program, without_outputs
from edgeweave.program.cut import needed
from edgeweave.program.graph import SHARED_UNIT, Node, StateSpec, Value

__all__ = ["FAMILIES", "FEATURES", "Floats", "macs_and_bytes", "unit_features"]

Floats = npt.NDArray[np.float64]

_OPERATORS: Final = {
    "conv": "conv1d conv2d conv3d conv_transpose1d conv_transpose2d convolution",
    "matmul": "linear addmm mm bmm baddbmm matmul einsum",
    "attention": "scaled_dot_product_attention",
    "recurrent": "lstm gru rnn_tanh rnn_relu",
    "norm": "_native_batch_norm_legit_functional batch_norm native_batch_norm layer_norm "
    "native_layer_norm group_norm native_group_norm rms_norm instance_norm",
    "pool": "max_pool1d max_pool2d max_pool2d_with_indices avg_pool1d avg_pool2d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d",
    "cheap": "relu hardtanh leaky_relu add sub mul div neg abs clamp clamp_min threshold where "
    "hardswish hardsigmoid masked_fill",
    "random": "native_dropout dropout bernoulli rand_like randn_like rrelu_with_noise",
    "transcendental": "sigmoid tanh gelu silu exp log pow sqrt rsqrt softplus elu mish erf sin cos",
    "reduce": "mean sum amax amin argmax softmax _softmax log_softmax _log_softmax var std "
    "cross_entropy_loss nll_loss nll_loss_nd mse_loss cumsum linalg_vector_norm norm",
    "lookup": "embedding index gather index_select one_hot",
    "copy": "cat clone contiguous pad constant_pad_nd stack repeat roll upsample_nearest2d "
    "upsample_bilinear2d flip copy to _to_copy",
    "view": "reshape view flatten unflatten transpose permute t unsqueeze squeeze expand slice "
    "select split chunk unbind split_with_sizes narrow detach alias _unsafe_view movedim",
}
FAMILIES: Final = (
    "conv",
    "depthwise",
    *(name for name in _OPERATORS if name != "conv"),
    "other",
    "pass",
)
"""Operators of one family have kernels of one kind. ``pass`` is no operator: what a pass takes
beside its operators, which profiles charge to the last unit.
"""

FEATURES: Final = (
    "macs",
    "input_bytes",
    "output_bytes",
    "weight_bytes",
    "macs_per_byte",
    "kernel",
    "stride",
    "groups",
    "channels_in",
    "channels_out",
    "positions",
    "batch",
    "steps",
    "bytes_before",
    "pass_bytes",
    "input_gradient",
)
"""The columns after the family's number; all but the last are ``log(1 + value)``.

``positions`` are output elements per sample and channel; ``steps`` what a recurrent layer does one
after another. Small operators take several times as long where others have emptied the caches:
``bytes_before`` is what the three operators before move, ``pass_bytes`` what all of them do.
``input_gradient`` is 1 where a gradient flows on to what came in.
"""

_BEFORE = 3
_BYTES_BEFORE, _PASS_BYTES = (1 + FEATURES.index(n) for n in ("bytes_before", "pass_bytes"))
_MACS = 1 + FEATURES.index("macs")
_MOVED = [1 + FEATURES.index(n) for n in ("input_bytes", "output_bytes", "weight_bytes")]
_FAMILY_OF: Final = {
    operator: family for family, names in _OPERATORS.items() for operator in names.split()
}


def unit_features(program: Program, microbatch_size: int) -> dict[int, Floats]:
    """The operators of every unit: rows of the family's number in ``FAMILIES``, then ``FEATURES``.

    Operators that no loss, metric or update needs are left out, as when profiling. What depends on
    no data (``SHARED_UNIT``) is computed at the beginning of a pass: it belongs to the first unit.
    """
    program = without_outputs(program)
    values, state = program.values(), {spec.name: spec for spec in program.state}
    rows: dict[int, list[list[float]]] = {unit: [] for unit in program.unit_numbers}
    first, last = program.unit_numbers[0], program.unit_numbers[-1]
    moved: list[float] = []
    for node in needed(program.nodes, program.results()):
        row = _row(node, values, state, microbatch_size)
        rows[first if node.unit == SHARED_UNIT else node.unit].append(row)
        row[_BYTES_BEFORE] = math.log1p(sum(moved[-_BEFORE:]))
        moved.append(sum(math.expm1(row[column]) for column in _MOVED))
    rows[last].append(_pass_row(program))
    for row in itertools.chain.from_iterable(rows.values()):
        row[_PASS_BYTES] = math.log1p(sum(moved))
    return {
        unit: np.array(found, dtype=np.float64).reshape(-1, 1 + len(FEATURES))
        for unit, found in rows.items()
    }


def macs_and_bytes(rows: Floats) -> tuple[Floats, Floats]:
    """The multiply-adds of every operator, and the bytes that it moves in and out."""
    moved = np.expm1(rows[:, _MOVED]).sum(axis=1)
    return np.asarray(np.expm1(rows[:, _MACS])), np.asarray(moved)


def _row(
    node: Node, values: dict[str, Value], state: dict[str, StateSpec], batch: int
) -> list[float]:
    names = list(dict.fromkeys(node.inputs()))
    data = [values[name] for name in names if name in values]
    weights = [state[name].shape for name in names if name in state]
    outputs = [value.shape_at(batch) for value in node.results]
    inputs = [value.shape_at(batch) for value in data]
    output = max(outputs, key=math.prod, default=())
    operator = node.op.split(".")[1]
    family = _FAMILY_OF.get(operator, "other")
    kernel, groups, channels_in = 1, 1, _size(inputs[0], 1) if inputs else 1
    matrix = next((shape for shape in weights if len(shape) > 1), ())
    if family == "conv" and matrix:
        kernel = math.prod(matrix[2:])
        ahead = not operator.startswith("conv_transpose")
        groups = max((channels_in if ahead else _size(output, 1)) // matrix[1], 1)
        if groups > 1 and groups == channels_in:
            family = "depthwise"
    if family in ("matmul", "attention", "recurrent") and inputs:
        channels_in = inputs[0][-1] if inputs[0] else 1
    steps = _size(inputs[0], 1) if family == "recurrent" and inputs else 1
    macs = _macs(family, inputs, weights, output, kernel, groups, channels_in)
    channels_out = _channels(family, output)
    if operator.startswith("conv_transpose") and inputs:
        macs = math.prod(inputs[0]) * kernel * channels_out / groups
    in_bytes, out_bytes = _bytes(data, batch), _bytes(node.results, batch)
    weight_bytes = 4 * sum(map(math.prod, weights))
    traffic = in_bytes + out_bytes + weight_bytes
    samples = _size(output, 0) if output else 1
    stride = math.prod(inputs[0][2:]) / max(math.prod(output[2:]), 1) if inputs else 1.0
    counts = (
        macs,
        in_bytes,
        out_bytes,
        weight_bytes,
        macs / max(traffic, 1),
        kernel,
        stride if family in ("conv", "depthwise", "pool") else 1.0,
        groups,
        channels_in,
        channels_out,
        math.prod(output) / max(channels_out * samples, 1),
        samples,
        steps,
        0,
        0,
    )
    flows_on = any(value.requires_grad for value in data)
    return [float(FAMILIES.index(family)), *map(math.log1p, counts), float(flows_on)]


def _pass_row(program: Program) -> list[float]:
    """A pass takes longer the more buffers it updates; they stand where others have bytes."""
    row = [float(FAMILIES.index("pass")), *[0.0] * len(FEATURES)]
    row[1 + FEATURES.index("input_bytes")] = math.log1p(len(program.updates))
    return row


def _macs(
    family: str,
    inputs: list[tuple[int, ...]],
    weights: list[tuple[int, ...]],
    output: tuple[int, ...],
    kernel: int,
    groups: int,
    channels_in: int,
) -> float:
    """Multiply-adds of the whole microbatch; 0 for what multiplies no matrices."""
    if family in ("conv", "depthwise"):
        return math.prod(output) * kernel * channels_in / groups
    if family == "matmul":
        return math.prod(output) * channels_in
    if family == "attention" and inputs:
        keys = inputs[min(1, len(inputs) - 1)]
        return 2.0 * math.prod(inputs[0]) * _size(keys, -2)
    if family == "recurrent" and inputs:
        positions = math.prod(inputs[0][:-1])
        return float(positions * sum(math.prod(shape) for shape in weights if len(shape) > 1))
    return 0.0


def _channels(family: str, output: tuple[int, ...]) -> int:
    if family in ("matmul", "attention", "recurrent", "lookup"):
        return _size(output, -1)
    return _size(output, 1)


def _size(shape: tuple[int, ...], dimension: int) -> int:
    return shape[dimension] if -len(shape) <= dimension < len(shape) else 1


def _bytes(values: Iterable[Value], batch: int) -> int:
    return sum(math.prod(v.shape_at(batch)) * DTYPES[v.dtype].itemsize for v in values)
