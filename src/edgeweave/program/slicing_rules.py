"""How each kind of layer is cut in width. One rule per kind; ``rule`` finds it.

    pointwise, pooling   as their input lies
    attention            by heads
    concatenation        each member its part of each operand
    dropout              draws for the whole, so that it draws as the unsplit model
    anything else        whole, at every member, if it reads nothing that is trained

``slicing_layers`` has the layers with weights, ``slicing_shapes`` what moves dimensions about.
"""

from __future__ import annotations

import msgspec
import torch

from edgeweave.core.errors import CaptureError
from edgeweave.program.graph import Arg, Constant, Items, Node, Ref, Value
from edgeweave.program.operators import operator
from edgeweave.program.shares import Asked, Ruling, Share, Surroundings
from edgeweave.program.slicing_layers import LAYER_RULES, Rule
from edgeweave.program.slicing_shapes import (
    SHAPE_RULES,
    aligned,
    as_result,
    derived,
    name_of,
    narrowed,
)
from edgeweave.program.spans import joined, moved

__all__ = ["is_pointwise", "rule"]

_UNTAGGED = tuple(
    f"aten.{name}."
    for name in (
        "clone",
        "contiguous",
        "alias",
        "detach",
        "to",
        "_to_copy",
        "hardswish",
        "log_sigmoid",
    )
)
_SPATIAL = {
    "max_pool1d": 1,
    "max_pool2d": 2,
    "max_pool3d": 3,
    "max_pool2d_with_indices": 2,
    "avg_pool1d": 1,
    "avg_pool2d": 2,
    "avg_pool3d": 3,
    "adaptive_avg_pool1d": 1,
    "adaptive_avg_pool2d": 2,
    "adaptive_avg_pool3d": 3,
    "_adaptive_avg_pool2d": 2,
    "upsample_nearest1d": 1,
    "upsample_nearest2d": 2,
    "upsample_bilinear2d": 2,
    "reflection_pad2d": 2,
    "replication_pad2d": 2,
}
"""Operators that keep channels apart -> how many last dimensions they mix."""


def rule(around: Surroundings, index: int, node: Node) -> Ruling:
    """How a group of several members computes node number ``index``."""
    found = _find(node.op)
    ruling = found(around, index, node) if found is not None else None
    if ruling is not None:
        return ruling
    trained = [name for name in node.inputs() if _is_trained(around, name)]
    if trained:
        raise CaptureError(
            f"{node.op}{node.source} cannot be sliced in width, because it needs all of "
            f"{trained[0]} at once. Give the layer to one device alone, or write it with linear, "
            "conv or norm layers."
        )
    return Ruling(dict.fromkeys(node.inputs(), ()), (None,) * len(node.results))


def is_pointwise(op: str) -> bool:
    """Whether every element of the result depends on one element of each operand."""
    return op.startswith(_UNTAGGED) or torch.Tag.pointwise in operator(op).tags


def _is_trained(around: Surroundings, name: str) -> bool:
    """Counters and other buffers may lie at every member, and change there alike."""
    return name in around.cut_state and around.cut_state[name].trainable


def _find(op: str) -> Rule | None:
    base = op.split(".")[1]
    found = LAYER_RULES.get(base) or SHAPE_RULES.get(base) or _RULES.get(base)
    return found or (_pointwise if is_pointwise(op) else None)


def _pooling(around: Surroundings, index: int, node: Node) -> Ruling | None:
    given = name_of(node.args[0])
    share = around.own(given)
    mixed = len(around.shape(given)) - _SPATIAL[node.op.split(".")[1]]
    if share is None or share.dim >= mixed:
        return None
    return Ruling({given: (share,)}, (share,) * len(node.results))


def _pointwise(around: Surroundings, index: int, node: Node) -> Ruling | None:
    target = _target(around, index, node)
    if target is None:
        return None
    reads: dict[str, Asked] = {}
    for name in node.inputs():
        share = aligned(around.shape(name), node.results[0], target)
        if share is None and name in around.cut_state:
            return None
        reads[name] = () if share is None else (share,)
    return Ruling(reads, (target,) * len(node.results))


def _target(around: Surroundings, index: int, node: Node) -> Share | None:
    """How the result of a pointwise node lies: as an operand that is here, else as a parameter."""
    names = list(dict.fromkeys(node.inputs()))
    names.sort(key=lambda name: name not in around.latest)
    found = [
        as_result(around.shape(name), node.results[0], share)
        for name in names
        if (share := around.own(name)) is not None
    ]
    shares = [share for share in found if share is not None]
    if shares:
        alike = [share for share in shares if share == shares[0]]
        layers = frozenset[int]().union(*(share.layers for share in alike))
        return Share(shares[0].dim, shares[0].spans, layers, shares[0].grain)
    for name in names:
        if name in around.cut_state:
            n_neurons = around.shape(name)[-1:]
            last = len(node.results[0].shape) - 1
            if n_neurons == node.results[0].shape_at(2)[-1:] and n_neurons:
                return around.begin(index, last, n_neurons[0])
    return None


def _attention(around: Surroundings, index: int, node: Node) -> Ruling | None:
    """``(query, key, value, mask, ...)``, heads in the third dimension from the end."""
    names = [name_of(arg) for arg in node.args[:3]]
    dim = len(node.results[0].shape) - 3
    n_heads = node.results[0].shape_at(2)[dim] if dim > 0 else 0
    if dim < 1 or any(around.shape(name)[dim] != n_heads for name in names):
        return None
    kept = [share for name in names if (share := around.own(name, dim)) is not None]
    share = kept[0] if kept else around.begin(index, dim, n_heads)
    reads: dict[str, Asked] = dict.fromkeys(names, (share,))
    for name in set(node.inputs()) - set(names):
        if name in around.cut_state:
            return None
        part = aligned(around.shape(name), node.results[0], share)
        reads[name] = () if part is None else (part,)
    return Ruling(reads, (share,))


def _product(around: Surroundings, index: int, node: Node) -> Ruling | None:
    """A product of matrices, one for each head: heads are no dimension of the matrices."""
    names = list(node.inputs())
    share = next((s for name in names if (s := around.own(name)) is not None), None)
    rank = len(node.results[0].shape)
    if share is None or share.dim >= rank - 2:
        return None
    n_heads = node.results[0].shape_at(2)[share.dim]
    for name in names:
        shape = around.shape(name)
        if len(shape) != rank or shape[share.dim] != n_heads or name in around.cut_state:
            return None
    return Ruling(dict.fromkeys(names, (share,)), (share,))


def _concatenation(around: Surroundings, index: int, node: Node) -> Ruling | None:
    parts, dim = node.args[0], node.args[1] if len(node.args) > 1 else 0
    assert isinstance(parts, Items)
    assert isinstance(dim, int)
    names = [name_of(item) for item in parts.items]
    along = dim % len(node.results[0].shape)
    kept = [share for name in names if (share := around.own(name)) is not None]
    if not kept or len(set(names)) < len(names):
        return None
    if kept[0].dim != along:
        return Ruling(dict.fromkeys(names, (kept[0],)), (kept[0],))
    shares = [
        around.own(name, along) or around.begin(index, along, around.shape(name)[along])
        for name in names
    ]
    starts = [sum(around.shape(name)[along] for name in names[:i]) for i in range(len(names))]
    spans = tuple(
        joined(
            interval
            for share, start in zip(shares, starts, strict=True)
            for interval in moved(share.spans[member], start)
        )
        for member in range(around.n_members)
    )
    layers = frozenset[int]().union(*(share.layers for share in shares))
    reads: dict[str, Asked] = {n: (s,) for n, s in zip(names, shares, strict=True)}

    def adapt(node: Node, member: int) -> tuple[Node, ...]:
        items = node.args[0]
        assert isinstance(items, Items)
        held = zip(items.items, shares, strict=True)
        left = Items(tuple(item for item, share in held if share.spans[member]))
        return (msgspec.structs.replace(node, args=(left, dim)),)

    return Ruling(reads, (Share(along, spans, layers, kept[0].grain),), adapt)


def _dropout(around: Surroundings, index: int, node: Node) -> Ruling | None:
    """The mask of the whole, drawn where the unsplit model draws it, cut to the own neurons."""
    given = name_of(node.args[0])
    share = around.own(given)
    if share is None:
        return None
    shape = around.values[given].shape

    def adapt(node: Node, member: int) -> tuple[Node, ...]:
        result = node.results[0]
        base = f"{result.name}.mask"
        ones = Value(f"{base}.ones", result.dtype, shape)
        drawn = tuple(
            msgspec.structs.replace(value, name=f"{base}.drawn{i}", shape=shape)
            for i, value in enumerate(node.results)
        )
        kwargs: dict[str, Arg] = {"dtype": Constant("dtype", result.dtype)}
        nodes = [
            msgspec.structs.replace(
                node,
                op="aten.ones.default",
                args=(Items(tuple(shape)),),
                kwargs=kwargs,
                results=(ones,),
            ),
            msgspec.structs.replace(node, args=(Ref(ones.name), *node.args[1:]), results=drawn),
        ]
        cut, name = narrowed(node, drawn[0], share.dim, share.spans[member])
        product = derived(node, "aten.mul.Tensor", (node.args[0], Ref(name)), result)
        return (*nodes, *cut, product)

    return Ruling({given: (share,)}, (share, *(None for _ in node.results[1:])), adapt)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(_SPATIAL, _pooling),
    "scaled_dot_product_attention": _attention,
    "matmul": _product,
    "bmm": _product,
    "cat": _concatenation,
    "dropout": _dropout,
    "native_dropout": _dropout,
    "feature_dropout": _dropout,
}
