"""Where the neurons go when dimensions are merged, split, moved or reduced.

(B, C, H, W) -> (B, C*H*W)     each channel becomes a block of H*W indices
(B, T, D)    -> (B, T, N, D/N) heads are blocks of D/N neurons: slices must not cut one
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import msgspec

from edgeweave.program.graph import Arg, Items, Node, Ref, Size, Value
from edgeweave.program.shares import Ruling, Share, Surroundings
from edgeweave.program.spans import Span, grown, shrunk, size

__all__ = ["SHAPE_RULES", "aligned", "as_result", "derived", "name_of", "narrowed", "with_size"]

_BATCH = 10007
"""A number of samples that no other size is a multiple of."""


def with_size(value: Value, dim: int, n_indices: int) -> tuple[int | Size, ...]:
    """The shape with another size of one dimension."""
    return (*value.shape[:dim], n_indices, *value.shape[dim + 1 :])


def narrowed(origin: Node, value: Value, dim: int, span: Span) -> tuple[list[Node], str]:
    """Nodes that take some indices of a value, and the name of what they make."""
    nodes: list[Node] = []
    parts: list[Arg] = []
    for start, stop in span:
        name = f"{value.name}.{dim}.{start}-{stop}"
        part = Value(name, value.dtype, with_size(value, dim, stop - start))
        args: tuple[Arg, ...] = (Ref(value.name), dim, start, stop)
        nodes.append(derived(origin, "aten.slice.Tensor", args, part))
        parts.append(Ref(name))
    if len(parts) == 1:
        return nodes, nodes[0].results[0].name
    name = f"{value.name}.{dim}.{'_'.join(f'{start}-{stop}' for start, stop in span)}"
    whole = Value(name, value.dtype, with_size(value, dim, size(span)))
    nodes.append(derived(origin, "aten.cat.default", (Items(tuple(parts)), dim), whole))
    return nodes, name


def name_of(arg: Arg) -> str:
    """What an argument that is a tensor is called."""
    assert isinstance(arg, Ref)
    return arg.name


def derived(origin: Node, op: str, args: tuple[Arg, ...], result: Value) -> Node:
    """A node of the same unit and line of the user's source."""
    return msgspec.structs.replace(origin, op=op, args=args, kwargs={}, results=(result,))


def aligned(shape: tuple[int, ...], result: Value, share: Share) -> Share | None:
    """How an operand must lie so that a broadcast result lies in ``share``; None: whole."""
    dim = share.dim - len(result.shape) + len(shape)
    if dim < 0 or shape[dim] == 1:
        return None
    return Share(dim, share.spans, share.layers, share.grain)


def as_result(shape: tuple[int, ...], result: Value, share: Share) -> Share | None:
    """How a broadcast result lies if one operand lies in ``share``; None: it decides nothing."""
    dim = share.dim + len(result.shape) - len(shape)
    if result.shape_at(2)[dim] != shape[share.dim]:
        return None
    return Share(dim, share.spans, share.layers, share.grain)


def _source(around: Surroundings, index: int, node: Node) -> tuple[str, Share] | None:
    """The one operand and how it lies; a parameter is cut along its last dimension."""
    first = node.args[0]
    assert isinstance(first, Ref)
    share = around.own(first.name)
    if share is None and first.name in around.cut_state:
        shape = around.shape(first.name)
        dims = [dim for dim, n_indices in enumerate(shape) if n_indices > 1]
        if dims:
            share = around.begin(index, dims[-1], shape[dims[-1]])
    return None if share is None else (first.name, share)


def _moved(
    find: Callable[[Surroundings, Node, Share], Share | None],
    adapt: Callable[[Node, Share, int], Node] | None = None,
) -> Callable[[Surroundings, int, Node], Ruling | None]:
    """A rule for operators of one operand that only say where its dimensions go."""

    def rule(around: Surroundings, index: int, node: Node) -> Ruling | None:
        source = _source(around, index, node)
        if source is None:
            return None
        name, share = source
        result = find(around, node, share)
        if result is None:
            return None
        reads = {name: (share,)}
        if adapt is None:
            return Ruling(reads, (result,) * len(node.results))
        return Ruling(
            reads,
            (result,) * len(node.results),
            lambda local, member: (adapt(local, result, size(result.spans[member])),),
        )

    return rule


def _at(share: Share, dim: int) -> Share:
    return Share(dim, share.spans, share.layers, share.grain)


def _reshaped(around: Surroundings, node: Node, share: Share) -> Share | None:
    first = node.args[0]
    assert isinstance(first, Ref)
    before = around.shape(first.name, batch=_BATCH)
    after = node.results[0].shape_at(_BATCH)
    for ins, outs in _blocks(before, after):
        if share.dim in ins:
            return _through(around, share, ins, outs, before, after)
    return None


def _blocks(
    before: tuple[int, ...], after: tuple[int, ...]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Dimensions of both shapes, in the smallest pieces of equal numbers of elements.

    >>> _blocks((7, 6, 5), (7, 2, 3, 5))
    [((0,), (0,)), ((1,), (1, 2)), ((2,), (3,))]
    """
    found = []
    i = j = 0
    while i < len(before) and j < len(after):
        first_i, first_j = i, j
        n_before, n_after = before[i], after[j]
        i, j = i + 1, j + 1
        while n_before != n_after:
            if n_before < n_after:
                n_before, i = n_before * before[i], i + 1
            else:
                n_after, j = n_after * after[j], j + 1
        found.append((tuple(range(first_i, i)), tuple(range(first_j, j))))
    return found


def _through(
    around: Surroundings,
    share: Share,
    ins: tuple[int, ...],
    outs: tuple[int, ...],
    before: tuple[int, ...],
    after: tuple[int, ...],
) -> Share | None:
    """Neurons that are the first of the dimensions merged; and that become the first of others."""
    if any(before[dim] > 1 for dim in ins if dim < share.dim):
        return None
    inner = math.prod(before[dim] for dim in ins if dim > share.dim)
    kept = next((dim for dim in outs if after[dim] > 1), outs[0])
    blocks = math.prod(after[dim] for dim in outs if dim > kept)
    flat = [grown(span, inner) for span in share.spans]
    spans = [shrunk(span, blocks) for span in flat]
    if None in spans:
        around.coarsen(share, max(1, blocks // math.gcd(blocks, inner)))
        return None
    return Share(
        kept,
        tuple(span for span in spans if span is not None),
        share.layers,
        share.grain * Fraction(inner, blocks),
    )


def _reshape(node: Node, result: Share, n_indices: int) -> Node:
    shape = with_size(node.results[0], result.dim, n_indices)
    args = (node.args[0], Items(tuple(shape)))
    return msgspec.structs.replace(node, op="aten.reshape.default", args=args, kwargs={})


def _expanded(around: Surroundings, node: Node, share: Share) -> Share | None:
    first = node.args[0]
    assert isinstance(first, Ref)
    return as_result(around.shape(first.name), node.results[0], share)


def _expand(node: Node, result: Share, n_indices: int) -> Node:
    shape = with_size(node.results[0], result.dim, n_indices)
    args = (node.args[0], Items(tuple(shape)))
    return msgspec.structs.replace(node, op="aten.expand.default", args=args, kwargs={})


def _transposed(around: Surroundings, node: Node, share: Share) -> Share | None:
    rank = len(node.results[0].shape)
    first, second = (_integer(arg) % rank for arg in node.args[1:3])
    return _at(share, {first: second, second: first}.get(share.dim, share.dim))


def _permuted(around: Surroundings, node: Node, share: Share) -> Share | None:
    order = node.args[1]
    assert isinstance(order, Items)
    rank = len(order.items)
    return _at(share, [_integer(dim) % rank for dim in order.items].index(share.dim))


def _reversed(around: Surroundings, node: Node, share: Share) -> Share | None:
    """``t``: of two dimensions."""
    return _at(share, 1 - share.dim)


def _unsqueezed(around: Surroundings, node: Node, share: Share) -> Share | None:
    new = _integer(node.args[1]) % len(node.results[0].shape)
    return _at(share, share.dim + (new <= share.dim))


def _reduced(around: Surroundings, node: Node, share: Share) -> Share | None:
    """``(x, dims, keepdim)``, also of ``select`` and ``squeeze``: some dimensions go."""
    first = node.args[0]
    assert isinstance(first, Ref)
    rank = len(around.shape(first.name))
    given = node.args[1] if len(node.args) > 1 else None
    dims = given.items if isinstance(given, Items) else (given,)
    if not dims or any(not isinstance(dim, int) for dim in dims):
        return None
    gone = {_integer(dim) % rank for dim in dims}
    if share.dim in gone:
        return None
    if len(node.results[0].shape) == rank:
        return _at(share, share.dim)
    return _at(share, share.dim - sum(dim < share.dim for dim in gone))


def _along_another(around: Surroundings, node: Node, share: Share) -> Share | None:
    """Softmax, cumulative sums, slices: within one dimension, which is not the neurons'."""
    rank = len(node.results[0].shape)
    along = _integer(node.args[1]) % rank if len(node.args) > 1 else 0
    return None if along == share.dim else share


def _integer(arg: Arg) -> int:
    assert isinstance(arg, int)
    return arg


SHAPE_RULES = {
    "reshape": _moved(_reshaped, _reshape),
    "view": _moved(_reshaped, _reshape),
    "_unsafe_view": _moved(_reshaped, _reshape),
    "flatten": _moved(_reshaped, _reshape),
    "unflatten": _moved(_reshaped, _reshape),
    "expand": _moved(_expanded, _expand),
    "transpose": _moved(_transposed),
    "permute": _moved(_permuted),
    "t": _moved(_reversed),
    "unsqueeze": _moved(_unsqueezed),
    "squeeze": _moved(_reduced),
    "select": _moved(_reduced),
    "mean": _moved(_reduced),
    "sum": _moved(_reduced),
    "amax": _moved(_reduced),
    "softmax": _moved(_along_another),
    "_softmax": _moved(_along_another),
    "log_softmax": _moved(_along_another),
    "slice": _moved(_along_another),
}
"""By the operator's name without its overload."""
