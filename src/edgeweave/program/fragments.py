"""One member's program for one segment, from what rules decided about its nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from edgeweave.program.check import infer_values
from edgeweave.program.cut import needed
from edgeweave.program.graph import (
    SHARED_UNIT,
    Arg,
    Items,
    Node,
    Program,
    Ref,
    StateSpec,
    Value,
)
from edgeweave.program.shares import Asked, Ruling, Share
from edgeweave.program.slicing_shapes import narrowed, with_size
from edgeweave.program.spans import Span, positions, size
from edgeweave.program.transfers import Held

__all__ = ["Arrivals", "Step", "cut_shape", "fragment"]


@dataclass(frozen=True, slots=True)
class Step:
    """A node of a segment, and how the group computes it."""

    node: Node
    ruling: Ruling


@dataclass(frozen=True, slots=True)
class Arrivals:
    """How values of earlier segments lie when a segment begins, and how all values were made."""

    asked: Mapping[str, Asked]
    held: Mapping[str, Held]


def cut_shape(shape: tuple[int, ...], asked: Asked, member: int) -> tuple[int, ...]:
    """The shape of a member's part."""
    sizes = {share.dim: size(share.spans[member]) for share in asked}
    return tuple(sizes.get(dim, n_indices) for dim, n_indices in enumerate(shape))


def fragment(
    program: Program,
    steps: Sequence[Step],
    arrivals: Arrivals,
    member: int,
    *,
    outputs: Sequence[str],
    state: Mapping[str, tuple[int, Asked]],
) -> Program | None:
    """What a member computes in a segment; None if it holds none of the segment's neurons."""
    builder = _Builder(program, arrivals, member)
    for step in steps:
        builder.add(step)
    return builder.program(outputs, state)


class _Builder:
    def __init__(self, program: Program, arrivals: Arrivals, member: int) -> None:
        self._program, self._arrivals, self._member = program, arrivals, member
        self._values = program.values() | {
            spec.name: Value(spec.name, spec.dtype, spec.shape) for spec in program.state
        }
        self._nodes: list[Node] = []
        self._made: dict[str, Share | None] = {}
        self._known: set[str] = set()

    def add(self, step: Step) -> None:
        """Compute a node's part, if this member holds any of it."""
        shares = [share for share in step.ruling.results if share is not None]
        if shares and not any(share.spans[self._member] for share in shares):
            return
        trained = set(self._program.trained)
        renamed = {
            name: self._as_asked(step.node, name, asked)
            for name, asked in step.ruling.reads.items()
            if asked and name not in trained and asked[0].spans[self._member]
        }
        local = _renamed(step.node, renamed)
        self._nodes.extend(step.ruling.adapt(local, self._member))
        for value, share in zip(step.node.results, step.ruling.results, strict=True):
            self._made[value.name] = share if isinstance(share, Share) else None

    def _as_asked(self, origin: Node, name: str, asked: Asked) -> str:
        """The name of the asked part of a value, which is cut out here if there is more of it."""
        (share,) = asked
        form = self._form(name)
        wanted = share.spans[self._member]
        value = self._values[name]
        held: Span = ((0, value.shape_at(1)[share.dim]),)
        if form is not None:
            held = form.spans[self._member]
            value = msgspec.structs.replace(value, shape=with_size(value, share.dim, size(held)))
        if held == wanted:
            return name
        nodes, part = narrowed(origin, value, share.dim, positions(wanted, held))
        if part not in self._known:
            self._known.add(part)
            self._nodes.extend(nodes)
        return part

    def _form(self, name: str) -> Share | None:
        if name in self._made:
            return self._made[name]
        asked = self._arrivals.asked.get(name, ())
        return asked[0] if asked else None

    def program(
        self, outputs: Sequence[str], state: Mapping[str, tuple[int, Asked]]
    ) -> Program | None:
        whole, made = self._program, self._made
        kept = tuple(name for name in outputs if name in made)
        loss = whole.loss if whole.loss in made else None
        metrics = {key: name for key, name in whole.metrics.items() if name in made}
        updates = {buffer: name for buffer, name in whole.updates.items() if name in made}
        wanted = {*kept, *metrics.values(), *updates.values(), *([] if loss is None else [loss])}
        wanted |= {name for name in whole.outputs if name in made}
        if not wanted:
            return None
        shared = [node for node in whole.nodes if node.unit == SHARED_UNIT]
        nodes = needed([*shared, *self._nodes], wanted)
        read = {name for node in nodes for name in node.inputs()} | updates.keys()
        results = {value.name for node in nodes for value in node.results}
        found = Program(
            inputs=_telling_batch(
                whole,
                [
                    self._input(value)
                    for value in whole.values().values()
                    if value.name in read - results
                ],
                nodes,
            ),
            state=tuple(
                msgspec.structs.replace(spec, shape=self._state_shape(spec, state))
                for spec in whole.state
                if spec.name in read
            ),
            nodes=nodes,
            outputs=tuple(
                dict.fromkeys((*kept, *(name for name in whole.outputs if name in made)))
            ),
            loss=loss,
            metrics=metrics,
            updates=updates,
            aliases={alias: name for alias, name in whole.aliases.items() if name in read},
        )
        return infer_values(found)

    def _input(self, value: Value) -> Value:
        form = self._form(value.name)
        if form is None:
            return value
        n_indices = size(form.spans[self._member])
        return Value(
            value.name,
            value.dtype,
            with_size(value, form.dim, n_indices),
            requires_grad=value.requires_grad,
        )

    def _state_shape(
        self, spec: StateSpec, state: Mapping[str, tuple[int, Asked]]
    ) -> tuple[int, ...]:
        if spec.name not in state:
            return spec.shape
        return cut_shape(spec.shape, state[spec.name][1], self._member)


def _telling_batch(
    whole: Program, inputs: Sequence[Value], nodes: Sequence[Node]
) -> tuple[Value, ...]:
    """The inputs, and one of the model's if none of them tells how many samples there are."""
    sizes = [size for value in inputs for size in value.shape]
    if any(not isinstance(size, int) for size in sizes):
        return tuple(inputs)
    external = [value for value in whole.inputs if value.name.startswith(("input:", "target:"))]
    return (*inputs, *external[:1])


def _renamed(node: Node, names: Mapping[str, str]) -> Node:
    if all(name == new for name, new in names.items()):
        return node
    args = tuple(_substituted(arg, names) for arg in node.args)
    kwargs = {key: _substituted(arg, names) for key, arg in node.kwargs.items()}
    return msgspec.structs.replace(node, args=args, kwargs=kwargs)


def _substituted(arg: Arg, names: Mapping[str, str]) -> Arg:
    if isinstance(arg, Ref):
        return Ref(names.get(arg.name, arg.name))
    if isinstance(arg, Items):
        return Items(tuple(_substituted(item, names) for item in arg.items))
    return arg
