"""What an operator costs depends on: its family, its shapes, its work. From the graph alone.

Every operator of a unit is a row; a unit, a stage, a whole model is the rows of its operators, of
which each takes its own time. The work of an operator is counted in multiply-adds and in bytes that
go in and out (papers.md 2(c): type, shape, operator and derived fields).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeweave.program import DTYPES, Program, without_outputs
from edgeweave.program.cut import needed
from edgeweave.program.graph import SHARED_UNIT, Arg, Items, Node, StateSpec, Value

__all__ = ["FAMILIES", "FEATURES", "Floats", "alignment", "macs_and_bytes", "unit_features"]

Floats = npt.NDArray[np.float64]

_OPERATORS: Final = {
    "conv": "conv2d convolution | conv1d | conv_transpose1d conv_transpose2d | conv3d",
    "matmul": "linear addmm | mm matmul einsum | bmm baddbmm",
    "attention": "scaled_dot_product_attention",
    "recurrent": "lstm | gru | rnn_tanh rnn_relu",
    "norm": "_native_batch_norm_legit_functional batch_norm native_batch_norm | layer_norm "
    "native_layer_norm rms_norm | group_norm native_group_norm instance_norm",
    "pool": "max_pool1d max_pool2d max_pool2d_with_indices | avg_pool1d avg_pool2d | "
    "adaptive_avg_pool1d adaptive_avg_pool2d | adaptive_max_pool2d",
    "cheap": "relu leaky_relu clamp_min threshold | add sub neg | mul div | hardtanh clamp abs | "
    "hardswish hardsigmoid | where masked_fill",
    "random": "native_dropout dropout | bernoulli rand_like randn_like rrelu_with_noise",
    "transcendental": "sigmoid tanh | gelu | silu softplus elu mish | exp log sqrt rsqrt | "
    "pow | erf sin cos",
    "reduce": "mean sum | softmax _softmax log_softmax _log_softmax | cross_entropy_loss nll_loss "
    "nll_loss_nd | amax amin argmax cumsum | var std linalg_vector_norm norm | mse_loss",
    "lookup": "embedding | index gather index_select one_hot",
    "copy": "cat stack | pad constant_pad_nd | upsample_nearest2d upsample_bilinear2d | "
    "clone contiguous copy to _to_copy | repeat roll flip",
    "view": "reshape view flatten unflatten _unsafe_view | transpose permute t movedim | "
    "expand unsqueeze squeeze detach alias | slice select split chunk unbind split_with_sizes "
    "narrow",
}
_MOST_VARIANTS = 6
FAMILIES: Final = (
    "conv",
    "depthwise",
    *(name for name in _OPERATORS if name != "conv"),
    "other",
    "pass",
)
"""Operators of one family have kernels of one kind; ``|`` above parts its variants. ``pass`` is no
operator: what a pass takes beside its operators, which profiles charge to the last unit.
"""

_SURROUNDINGS: Final = (
    "bytes_before",
    "bytes_behind",
    "bytes_left",
    "pass_bytes",
    "bytes_since",
    "bytes_until",
)
FEATURES: Final = (
    "macs",
    "input_bytes",
    "output_bytes",
    "weight_bytes",
    "macs_per_byte",
    "kernel",
    "stride",
    "padding",
    "groups",
    "channels_in",
    "channels_out",
    "positions",
    "batch",
    "steps",
    "aligned_in",
    "aligned_out",
    "scattered",
    *_SURROUNDINGS,
    *(f"variant_{number}" for number in range(1, _MOST_VARIANTS)),
    "input_gradient",
)
"""The columns after the family's number; all but the last are ``log(1 + value)``.

``kernel``, ``stride`` and ``padding`` are products over the dimensions, of padding plus one;
``positions`` are output elements per sample and channel; ``steps`` what a recurrent layer does one
after another; ``aligned_in`` is the largest power of two, to 32, that divides the input channels.
``scattered`` is 1 where what comes in lies in memory along permuted dimensions: kernels copy it
first. ``variant_2`` is 1 for the third variant of a family's operators. Small operators take
several times as long where others have emptied the caches: ``bytes_before`` is what those before
move, each counting half as much as the next one, ``bytes_behind`` the same of those behind;
``bytes_left`` is what all behind move, ``pass_bytes`` what all do. The first linear layer of a pass
takes three times as long as the second, since its code is out of the caches too: ``bytes_since`` is
what was moved since the same operator ran, ``bytes_until`` what will be until it does, and the
whole pass where it does not. ``input_gradient`` is 1 where a gradient flows on to what came in.
"""

_SURROUND = slice(
    1 + FEATURES.index(_SURROUNDINGS[0]), 1 + FEATURES.index(_SURROUNDINGS[0]) + len(_SURROUNDINGS)
)
_MOST_ALIGNED = 32
_MACS = 1 + FEATURES.index("macs")
_MOVED = [1 + FEATURES.index(n) for n in ("input_bytes", "output_bytes", "weight_bytes")]
_FAMILY_OF: Final = {
    operator: (family, variant)
    for family, variants in _OPERATORS.items()
    for variant, names in enumerate(variants.split("|"))
    for operator in names.split()
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
    nodes = needed(program.nodes, program.results())
    order = [_row(node, values, state, microbatch_size) for node in nodes]
    _add_surroundings(order, [node.op for node in nodes])
    for node, row in zip(nodes, order, strict=True):
        rows[first if node.unit == SHARED_UNIT else node.unit].append(row)
    rows[last].append(_pass_row(program, order))
    return {
        unit: np.array(found, dtype=np.float64).reshape(-1, 1 + len(FEATURES))
        for unit, found in rows.items()
    }


def _add_surroundings(order: Sequence[list[float]], operators: Sequence[str]) -> None:
    """What is moved before and behind every operator, and since and until the same one runs."""
    moved = [_moved(row) for row in order]
    before, behind = _fading(moved), _fading(moved[::-1])[::-1]
    so_far = list(itertools.accumulate(moved, initial=0.0))
    left = [max(so_far[-1] - each, 0.0) for each in so_far[1:]]
    since = _since(moved, operators)
    until = _since(moved[::-1], operators[::-1])[::-1]
    for row, *found in zip(order, before, behind, left, since, until, strict=True):
        row[_SURROUND] = map(math.log1p, (*found[:3], so_far[-1], *found[3:]))


def _since(moved: Sequence[float], operators: Sequence[str]) -> list[float]:
    """Between each operator and the same one before it, or of all where there is none."""
    so_far, ended, total = 0.0, dict[str, float](), sum(moved)
    found = []
    for operator, own in zip(operators, moved, strict=True):
        found.append(so_far - ended[operator] if operator in ended else total)
        so_far += own
        ended[operator] = so_far
    return found


def _moved(row: Sequence[float]) -> float:
    """Bytes in and out."""
    return sum(math.expm1(row[column]) for column in _MOVED)


def _fading(moved: Sequence[float]) -> list[float]:
    """The sum of all before each, every one counting half as much as the one behind it."""
    return list(itertools.accumulate(moved, lambda so_far, own: so_far / 2 + own, initial=0.0))[:-1]


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
    family, variant = _FAMILY_OF.get(operator, ("other", 0))
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
    window = _window(node, matrix[2:], inputs[0][2:] if inputs else ())
    counts = (
        macs,
        in_bytes,
        out_bytes,
        weight_bytes,
        macs / max(traffic, 1),
        *window,
        groups,
        channels_in,
        channels_out,
        math.prod(output) / max(channels_out * samples, 1),
        samples,
        steps,
        alignment(channels_in),
        alignment(channels_out),
        any(value.order for value in data),
        *[0.0] * len(_SURROUNDINGS),
        *(float(variant == number) for number in range(1, _MOST_VARIANTS)),
    )
    flows_on = any(value.requires_grad for value in data)
    return [float(FAMILIES.index(family)), *map(math.log1p, counts), float(flows_on)]


def _window(node: Node, shape: tuple[int, ...], seen: tuple[int, ...]) -> tuple[int, int, int]:
    """What a convolution or a pool sees at once, by how much it moves on, its padding plus one.

    ``shape`` is that of a convolution's kernel. ``seen`` are the positions that come in: a pool's
    window is no larger.
    """
    operator = node.op.split(".")[1]
    if operator.startswith("conv"):
        stride, padding = _argument(node, 3, 1), _argument(node, 4, 0)
        padded = (
            math.prod(size // 2 + 1 for size in shape)
            if padding == "same"
            else _product(padding, len(shape), plus=1)
        )
        return math.prod(shape), _product(stride, len(shape)), padded
    if "pool" in operator and not operator.startswith("adaptive"):
        size, most = node.args[1], math.prod(seen)
        stride, padding = _argument(node, 2, size), _argument(node, 3, 0)
        kernel, moves_on = (min(_product(each, len(seen)), most) for each in (size, stride))
        return kernel, moves_on, _product(padding, len(seen), plus=1)
    return 1, 1, 1


def _argument(node: Node, place: int, default: Arg) -> Arg:
    return node.args[place] if len(node.args) > place else default


def _product(argument: Arg, n_dimensions: int, *, plus: int = 0) -> int:
    """Of a number, or one for every dimension; 1 of anything else."""
    numbers = argument.items if isinstance(argument, Items) else (argument,)
    sizes = [number + plus for number in numbers if isinstance(number, int)]
    return math.prod(sizes * n_dimensions if len(sizes) == 1 else sizes)


def _pass_row(program: Program, order: Sequence[Sequence[float]]) -> list[float]:
    """A pass takes longer the more buffers it updates; they stand where others have bytes."""
    row = [float(FAMILIES.index("pass")), *[0.0] * len(FEATURES)]
    row[1 + FEATURES.index("input_bytes")] = math.log1p(len(program.updates))
    row[1 + FEATURES.index("pass_bytes")] = math.log1p(sum(map(_moved, order)))
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


def alignment(channels: int) -> int:
    """The largest power of two, to 32, that divides a number of channels."""
    return math.gcd(channels, _MOST_ALIGNED)


def _bytes(values: Iterable[Value], batch: int) -> int:
    return sum(math.prod(v.shape_at(batch)) * DTYPES[v.dtype].itemsize for v in values)
