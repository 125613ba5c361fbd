"""Convolutions of CPUs that keep their weights in the order in which kernels read them.

torch lays a weight out anew for every call of ``conv2d``, which takes longer than the convolution
where pictures are small. A stage keeps what was laid out, for weights that lie channels-last, as
``faster`` leaves them: nobody else's do, so that all other programs compute the bits they did.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch

from edgeweave.program.graph import SHARED_UNIT, Node, Program, Ref
from edgeweave.program.operators import operator

__all__ = ["CONVOLUTION", "PackedConvolutions", "is_channels_last", "packed_weights"]

CONVOLUTION = "aten.conv2d.default"

_Where = tuple[list[int], list[int], list[int], int]
"""Padding, stride, dilation and groups."""


def packed_weights(program: Program) -> dict[str, int]:
    """By result of a convolution whose weight is kept a second time, the bytes of that."""
    views = {
        value.name: value
        for node in program.nodes
        if node.unit == SHARED_UNIT and node.op == "aten.permute.default"
        for value in node.results
    }
    found: dict[str, int] = {}
    for node in program.nodes:
        weight = _weight(node)
        if weight in views:
            sizes = views[weight].shape_at(1)
            found[node.results[0].name] = 4 * torch.Size(sizes).numel()
    return found


def _weight(node: Node) -> str:
    weight = node.args[1] if node.op == CONVOLUTION else None
    return weight.name if isinstance(weight, Ref) else ""


class PackedConvolutions:
    """``find`` of an ``Interpreter`` whose state does not change. One for each stage."""

    def __init__(self) -> None:
        self._packed: dict[int, torch.Tensor] = {}
        self._plain = operator(CONVOLUTION)

    def find(self, name: str) -> Callable[..., object]:
        """The function that computes an operator."""
        return self.convolution if name == CONVOLUTION and _can_keep() else operator(name)

    def convolution(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
    ) -> torch.Tensor:
        """``conv2d``, by a weight that was laid out before where that can be."""
        if not is_channels_last(weight) or not _is_plain(x, weight, bias):
            found: torch.Tensor = self._plain(x, weight, bias, stride, padding, dilation, groups)
            return found
        where = (_pair(padding), _pair(stride), _pair(dilation), groups)
        x = x.contiguous(memory_format=torch.channels_last)
        packed = self._packed.get(weight.data_ptr())
        if packed is None:
            packed = self._packed[weight.data_ptr()] = _laid_out(x, weight, where)
        return _convolved(x, packed, bias, where)


def is_channels_last(weight: torch.Tensor) -> bool:
    """Whether a weight lies channels-last in memory, and not in the usual order as well."""
    if weight.ndim != 4:
        return False
    _, channels, height, width = weight.shape
    whole = height * width * channels
    last = (whole, 1, width * channels, channels)
    return last == weight.stride() != (whole, height * width, width, 1)


def _is_plain(x: torch.Tensor, *others: torch.Tensor | None) -> bool:
    """Whether all are floats of a CPU that nobody wants a gradient of, and there are samples."""
    given = [x, *(other for other in others if other is not None)]
    return x.numel() > 0 and all(
        each.dtype == torch.float32 and each.device.type == "cpu" and not each.requires_grad
        for each in given
    )


@functools.cache
def _can_keep() -> bool:
    """Whether this build of torch has the kernels, for this processor."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    x, where = torch.ones(1, 2, 3, 3), ([0, 0], [1, 1], [1, 1], 1)
    try:
        _convolved(x, _laid_out(x, torch.ones(2, 2, 1, 1), where), None, where)
    except (AttributeError, RuntimeError):  # not there, or not for this processor
        return False
    return True


def _laid_out(x: torch.Tensor, weight: torch.Tensor, where: _Where) -> torch.Tensor:
    """The weight as the kernel for pictures like ``x`` reads it."""
    pack = torch.ops.mkldnn._reorder_convolution_weight
    found: torch.Tensor = pack(weight, *where, list(x.shape))
    return found


def _convolved(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, where: _Where
) -> torch.Tensor:
    convolve = torch.ops.mkldnn._convolution_pointwise
    found: torch.Tensor = convolve(x, packed, bias, *where, "none", [], "")
    return found


def _pair(sizes: Sequence[int]) -> list[int]:
    return list(sizes) if len(sizes) == 2 else [*sizes, *sizes]
