"""How each kind of layer is cut in width. One rule per kind; ``rule`` finds it.

    linear, conv, embedding, addmm   by output neurons; the input is asked whole (or own, grouped)
    the last linear                  by the neurons before, each member making a sum of the outputs
    grouped and depthwise conv       by groups of channels, input and output alike
    batch norm, pointwise, pooling   as their input lies
    layer norm                       normalises the whole, applies and hands on its own neurons
    attention                        by heads
    concatenation                    each member its part of each operand
    dropout                          draws for the whole, so that it draws as the unsplit model
    anything else                    whole, at every member, if it reads nothing that is trained

``slicing_shapes`` has the operators that move dimensions about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec
import torch

from edgeweave.core.errors import CaptureError
from edgeweave.program.graph import Arg, Constant, Items, Node, Ref, Value
from edgeweave.program.operators import operator
from edgeweave.program.shares import Asked, Partial, Ruling, Share, Surroundings
from edgeweave.program.slicing_shapes import SHAPE_RULES, aligned, as_result, narrowed
from edgeweave.program.spans import Span, even, grown, joined, moved, shrunk, size

__all__ = ["is_pointwise", "rule"]

_Rule = Callable[[Surroundings, int, Node], Ruling | None]
"""None: this node cannot be cut so, and is computed whole."""

_COPIES = ("aten.clone.", "aten.contiguous.", "aten.alias.", "aten.detach.", "aten.to.")
_CONVOLUTIONS = ("aten.conv1d.", "aten.conv2d.", "aten.conv3d.")
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
    return op.startswith(_COPIES) or torch.Tag.pointwise in operator(op).tags


def _is_trained(around: Surroundings, name: str) -> bool:
    """Counters and other buffers may lie at every member, and change there alike."""
    return name in around.cut_state and around.cut_state[name].trainable


def _find(op: str) -> _Rule | None:
    base = op.split(".")[1]
    if op.startswith(_CONVOLUTIONS):
        return _convolution
    if base in _SPATIAL:
        return _pooling
    if base in SHAPE_RULES:
        return SHAPE_RULES[base]
    if base in _RULES:
        return _RULES[base]
    return _pointwise if is_pointwise(op) else None


def _name(arg: Arg) -> str:
    assert isinstance(arg, Ref)
    return arg.name


def _asked(arg: Arg, *shares: Share) -> dict[str, Asked]:
    return {arg.name: shares} if isinstance(arg, Ref) else {}


def _neurons_before(around: Surroundings, name: str, dim: int) -> Share | None:
    """The share in which a weighted layer takes its input: none means all of it."""
    return around.own(name, dim) if around.mode == "grouped" else None


def _weights(around: Surroundings, weight: Arg, out: Share, before: Share | None) -> Asked:
    if before is None:
        return (out,)
    if _name(weight) not in around.cut_state:
        raise CaptureError(
            f"grouped slices need weights that are parameters ({_name(weight)} is computed). "
            'Use the mode "exchange".'
        )
    return (out, Share(1 - out.dim, before.spans))


def _linear(around: Surroundings, index: int, node: Node) -> Ruling:
    given, weight, *bias = node.args
    last = len(node.results[0].shape) - 1
    if index in around.summed and _name(weight) in around.cut_state:
        return _summed_linear(around, index, node)
    n_out = around.shape(_name(weight))[0]
    out = around.begin(index, 0, n_out)
    before = _neurons_before(around, _name(given), last)
    reads: dict[str, Asked] = {_name(given): () if before is None else (before,)}
    reads[_name(weight)] = _weights(around, weight, out, before)
    for each in bias:
        reads |= _asked(each, out)
    return Ruling(reads, (Share(last, out.spans, out.layers, out.grain),))


def _summed_linear(around: Surroundings, index: int, node: Node) -> Ruling:
    """Cut by the neurons before: each member's are summed at home, and the sums exchanged.

    The bias is cut by output neurons, so that each is added once.
    """
    given, weight, *bias = node.args
    shape = around.shape(_name(given))
    last = len(shape) - 1
    before = around.own(_name(given), last) or around.begin(index, last, shape[last])
    reads: dict[str, Asked] = {
        _name(given): (before,),
        _name(weight): (Share(1, before.spans),),
    }
    partial = (Partial(before.spans),)
    if not bias or not isinstance(bias[0], Ref):
        return Ruling(reads, partial)
    n_out = around.shape(bias[0].name)[0]
    holders = [member for member, span in enumerate(before.spans) if span]
    slices = dict(zip(holders, even(n_out, len(holders)), strict=True))
    own = tuple(slices.get(member, ()) for member in range(around.n_members))
    reads[bias[0].name] = (Share(0, own),)

    def adapt(node: Node, member: int) -> tuple[Node, ...]:
        result = node.results[0]
        if not own[member]:
            return (msgspec.structs.replace(node, args=node.args[:2]),)
        ((start, stop),) = own[member]
        product = msgspec.structs.replace(result, name=f"{result.name}.product")
        padded = Value(f"{result.name}.bias", result.dtype, (n_out,))
        sides = Items((start, n_out - stop))
        return (
            msgspec.structs.replace(node, args=node.args[:2], results=(product,)),
            _node(node, "aten.constant_pad_nd.default", (node.args[2], sides), padded),
            _node(node, "aten.add.Tensor", (Ref(product.name), Ref(padded.name)), result),
        )

    return Ruling(reads, partial, adapt)


def _addmm(around: Surroundings, index: int, node: Node) -> Ruling | None:
    """``bias + given @ weight``, as GPT-2's Conv1D."""
    bias, given, weight = node.args
    if len(around.shape(_name(bias))) != 1 or _name(weight) not in around.cut_state:
        return None
    out = around.begin(index, 1, around.shape(_name(weight))[1])
    before = _neurons_before(around, _name(given), 1)
    reads: dict[str, Asked] = {_name(given): () if before is None else (before,)}
    reads[_name(weight)] = _weights(around, weight, out, before)
    reads[_name(bias)] = (Share(0, out.spans),)
    return Ruling(reads, (out,))


def _embedding(around: Surroundings, index: int, node: Node) -> Ruling:
    weight, places = node.args[:2]
    out = around.begin(index, 1, around.shape(_name(weight))[1])
    last = len(node.results[0].shape) - 1
    reads: dict[str, Asked] = {_name(weight): (out,), _name(places): ()}
    return Ruling(reads, (Share(last, out.spans, out.layers, out.grain),))


def _convolution(around: Surroundings, index: int, node: Node) -> Ruling | None:
    given, weight = node.args[:2]
    if len(around.shape(_name(given))) != len(around.shape(_name(weight))):
        return None  # without a batch
    n_groups = node.args[6] if len(node.args) > 6 else 1
    assert isinstance(n_groups, int)
    if n_groups > 1:
        return _by_groups(around, index, node, n_groups)
    out = around.begin(index, 0, around.shape(_name(weight))[0])
    before = _neurons_before(around, _name(given), 1)
    reads: dict[str, Asked] = {_name(given): () if before is None else (before,)}
    reads[_name(weight)] = _weights(around, weight, out, before)
    reads |= _asked(node.args[2] if len(node.args) > 2 else None, out)
    return Ruling(reads, (Share(1, out.spans, out.layers, out.grain),))


def _by_groups(around: Surroundings, index: int, node: Node, n_groups: int) -> Ruling:
    given, weight = node.args[:2]
    n_in = around.shape(_name(given))[1] // n_groups
    n_out = around.shape(_name(weight))[0] // n_groups
    own = around.own(_name(given), 1)
    blocks = None if own is None else _shrunk(own.spans, n_in)
    if own is not None and blocks is None:
        around.coarsen(own, n_in)
    if own is None or blocks is None:
        own = around.begin(index, 1, n_groups)
        blocks = own.spans
    out = Share(
        1, tuple(grown(span, n_out) for span in blocks), own.layers, own.grain * n_out / n_in
    )
    reads: dict[str, Asked] = {
        _name(given): (Share(1, tuple(grown(span, n_in) for span in blocks)),),
        _name(weight): (Share(0, out.spans),),
    }
    reads |= _asked(node.args[2] if len(node.args) > 2 else None, Share(0, out.spans))

    def adapt(node: Node, member: int) -> tuple[Node, ...]:
        args = (*node.args[:6], size(blocks[member]), *node.args[7:])
        return (msgspec.structs.replace(node, args=args),)

    return Ruling(reads, (out,), adapt)


def _shrunk(spans: Iterable[Span], factor: int) -> tuple[Span, ...] | None:
    found = [shrunk(span, factor) for span in spans]
    return None if None in found else tuple(span for span in found if span is not None)


def _batch_norm(around: Surroundings, index: int, node: Node) -> Ruling:
    given, *state = node.args[:5]
    n_channels = around.shape(_name(given))[1]
    share = around.own(_name(given), 1) or around.begin(index, 1, n_channels)
    reads: dict[str, Asked] = {_name(given): (share,)}
    per_channel = Share(0, share.spans)
    for each in state:
        reads |= _asked(each, per_channel)
    return Ruling(reads, (share, *(per_channel for _ in node.results[1:])))


def _layer_norm(around: Surroundings, index: int, node: Node) -> Ruling | None:
    given, shape, weight, bias, *rest = (*node.args, None, None)[: max(4, len(node.args))]
    parts = [each for each in (weight, bias) if isinstance(each, Ref)]
    if not parts:
        return None
    last = len(node.results[0].shape) - 1
    share = around.begin(index, last, around.shape(_name(given))[-1])
    of_state = Share(len(around.shape(parts[0].name)) - 1, share.spans)
    reads: dict[str, Asked] = {_name(given): ()}
    for each in parts:
        reads[each.name] = (of_state,)

    def adapt(node: Node, member: int) -> tuple[Node, ...]:
        result = node.results[0]
        whole = msgspec.structs.replace(result, name=f"{result.name}.normal")
        args = (node.args[0], shape, None, None, *rest)
        nodes = [msgspec.structs.replace(node, args=args, results=(whole,))]
        cut, name = narrowed(node, whole, last, share.spans[member])
        nodes += cut
        for op, each in (("mul", node.args[2]), ("add", (*node.args, None)[3])):
            if isinstance(each, Ref):
                value = msgspec.structs.replace(result, name=f"{result.name}.{op}")
                nodes.append(_node(node, f"aten.{op}.Tensor", (Ref(name), each), value))
                name = value.name
        return (*nodes[:-1], msgspec.structs.replace(nodes[-1], results=(result,)))

    return Ruling(reads, (share,), adapt)


def _pooling(around: Surroundings, index: int, node: Node) -> Ruling | None:
    given = _name(node.args[0])
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
    names = [_name(arg) for arg in node.args[:3]]
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
    names = [_name(item) for item in parts.items]
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
    given = _name(node.args[0])
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
        product = _node(node, "aten.mul.Tensor", (node.args[0], Ref(name)), result)
        return (*nodes, *cut, product)

    return Ruling({given: (share,)}, (share, *(None for _ in node.results[1:])), adapt)


def _node(origin: Node, op: str, args: tuple[Arg, ...], result: Value) -> Node:
    return msgspec.structs.replace(origin, op=op, args=args, kwargs={}, results=(result,))


_RULES: dict[str, _Rule] = {
    "linear": _linear,
    "addmm": _addmm,
    "embedding": _embedding,
    "_native_batch_norm_legit_functional": _batch_norm,
    "layer_norm": _layer_norm,
    "scaled_dot_product_attention": _attention,
    "matmul": _product,
    "bmm": _product,
    "cat": _concatenation,
    "dropout": _dropout,
    "native_dropout": _dropout,
    "feature_dropout": _dropout,
}
