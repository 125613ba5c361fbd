"""Rules for layers with weights: which neurons of which dimension each member computes.

linear, conv, embedding, addmm   by output neurons; the input is asked whole (or own, grouped)
the last linear                  by the neurons before, each member making a sum of the outputs
grouped and depthwise conv       by groups of channels, input and output alike
batch norm                       as its input lies
layer norm                       normalises the whole, applies and hands on its own neurons
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from edgeweave.core.errors import CaptureError
from edgeweave.program.graph import Arg, Items, Node, Ref, Value
from edgeweave.program.shares import Asked, Partial, Ruling, Share, Surroundings
from edgeweave.program.slicing_shapes import derived, name_of, narrowed
from edgeweave.program.spans import Span, even, grown, shrunk, size

__all__ = ["LAYER_RULES", "Rule"]

Rule = Callable[[Surroundings, int, Node], Ruling | None]
"""None: this node cannot be cut so, and is computed whole."""


def _asked(arg: Arg, *shares: Share) -> dict[str, Asked]:
    return {arg.name: shares} if isinstance(arg, Ref) else {}


def _neurons_before(around: Surroundings, name: str, dim: int) -> Share | None:
    """The share in which a weighted layer takes its input: none means all of it."""
    return around.own(name, dim) if around.mode == "grouped" else None


def _weights(around: Surroundings, weight: Arg, out: Share, before: Share | None) -> Asked:
    if before is None:
        return (out,)
    if name_of(weight) not in around.cut_state:
        raise CaptureError(
            f"grouped slices need weights that are parameters ({name_of(weight)} is computed). "
            'Use the mode "exchange".'
        )
    return (out, Share(1 - out.dim, before.spans))


def _linear(around: Surroundings, index: int, node: Node) -> Ruling:
    given, weight, *bias = node.args
    last = len(node.results[0].shape) - 1
    if index in around.summed and name_of(weight) in around.cut_state:
        return _summed_linear(around, index, node)
    n_out = around.shape(name_of(weight))[0]
    out = around.begin(index, 0, n_out)
    before = _neurons_before(around, name_of(given), last)
    reads: dict[str, Asked] = {name_of(given): () if before is None else (before,)}
    reads[name_of(weight)] = _weights(around, weight, out, before)
    for each in bias:
        reads |= _asked(each, out)
    return Ruling(reads, (Share(last, out.spans, out.layers, out.grain),))


def _summed_linear(around: Surroundings, index: int, node: Node) -> Ruling:
    """Cut by the neurons before: each member's are summed at home, and the sums exchanged.

    The bias is cut by output neurons, so that each is added once.
    """
    given, weight, *bias = node.args
    shape = around.shape(name_of(given))
    last = len(shape) - 1
    before = around.own(name_of(given), last) or around.begin(index, last, shape[last])
    reads: dict[str, Asked] = {
        name_of(given): (before,),
        name_of(weight): (Share(1, before.spans),),
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
            derived(node, "aten.constant_pad_nd.default", (node.args[2], sides), padded),
            derived(node, "aten.add.Tensor", (Ref(product.name), Ref(padded.name)), result),
        )

    return Ruling(reads, partial, adapt)


def _addmm(around: Surroundings, index: int, node: Node) -> Ruling | None:
    """``bias + given @ weight``, as GPT-2's Conv1D."""
    bias, given, weight = node.args
    if len(around.shape(name_of(bias))) != 1 or name_of(weight) not in around.cut_state:
        return None
    out = around.begin(index, 1, around.shape(name_of(weight))[1])
    before = _neurons_before(around, name_of(given), 1)
    reads: dict[str, Asked] = {name_of(given): () if before is None else (before,)}
    reads[name_of(weight)] = _weights(around, weight, out, before)
    reads[name_of(bias)] = (Share(0, out.spans),)
    return Ruling(reads, (out,))


def _embedding(around: Surroundings, index: int, node: Node) -> Ruling:
    weight, places = node.args[:2]
    out = around.begin(index, 1, around.shape(name_of(weight))[1])
    last = len(node.results[0].shape) - 1
    reads: dict[str, Asked] = {name_of(weight): (out,), name_of(places): ()}
    return Ruling(reads, (Share(last, out.spans, out.layers, out.grain),))


def _convolution(around: Surroundings, index: int, node: Node) -> Ruling | None:
    given, weight = node.args[:2]
    if len(around.shape(name_of(given))) != len(around.shape(name_of(weight))):
        return None  # without a batch
    n_groups = node.args[6] if len(node.args) > 6 else 1
    assert isinstance(n_groups, int)
    if n_groups > 1:
        return _by_groups(around, index, node, n_groups)
    out = around.begin(index, 0, around.shape(name_of(weight))[0])
    before = _neurons_before(around, name_of(given), 1)
    reads: dict[str, Asked] = {name_of(given): () if before is None else (before,)}
    reads[name_of(weight)] = _weights(around, weight, out, before)
    reads |= _asked(node.args[2] if len(node.args) > 2 else None, out)
    return Ruling(reads, (Share(1, out.spans, out.layers, out.grain),))


def _by_groups(around: Surroundings, index: int, node: Node, n_groups: int) -> Ruling:
    given, weight = node.args[:2]
    n_in = around.shape(name_of(given))[1] // n_groups
    n_out = around.shape(name_of(weight))[0] // n_groups
    own = around.own(name_of(given), 1)
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
        name_of(given): (Share(1, tuple(grown(span, n_in) for span in blocks)),),
        name_of(weight): (Share(0, out.spans),),
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
    n_channels = around.shape(name_of(given))[1]
    share = around.own(name_of(given), 1) or around.begin(index, 1, n_channels)
    reads: dict[str, Asked] = {name_of(given): (share,)}
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
    share = around.begin(index, last, around.shape(name_of(given))[-1])
    of_state = Share(len(around.shape(parts[0].name)) - 1, share.spans)
    reads: dict[str, Asked] = {name_of(given): ()}
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
                nodes.append(derived(node, f"aten.{op}.Tensor", (Ref(name), each), value))
                name = value.name
        return (*nodes[:-1], msgspec.structs.replace(nodes[-1], results=(result,)))

    return Ruling(reads, (share,), adapt)


LAYER_RULES: dict[str, Rule] = {
    "linear": _linear,
    "addmm": _addmm,
    "embedding": _embedding,
    "conv1d": _convolution,
    "conv2d": _convolution,
    "conv3d": _convolution,
    "_native_batch_norm_legit_functional": _batch_norm,
    "layer_norm": _layer_norm,
}
"""By the operator's name without its overload."""
