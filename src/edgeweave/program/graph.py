"""The captured computation as a value: nodes, values, state, signature. Knows nothing of torch.

A ``Program`` is a functional graph in topological order. A *stage* of a program is a ``Program``
again, whose inputs and outputs are the values that cross its two cuts, so everything that works on
a whole program (checking, saving, running, the evaluation pass) works on a stage.

Sizes are affine in the number of samples of the microbatch, ``per_sample * batch + constant``, so
that one graph serves every batch size. The structures below are also the JSON schema of the file
format (``edgeweave.program.format``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

__all__ = [
    "SHARED_UNIT",
    "Arg",
    "Constant",
    "Items",
    "Node",
    "Program",
    "Ref",
    "Size",
    "StateSpec",
    "Value",
    "references",
]

SHARED_UNIT = -1
"""The unit of nodes that depend on no data: every stage that needs them computes them itself."""


class Size(msgspec.Struct, frozen=True, tag="size", forbid_unknown_fields=True):
    """A number of elements that grows with the number of samples in the microbatch."""

    per_sample: int
    constant: int = 0

    def at(self, batch: int) -> int:
        return self.per_sample * batch + self.constant


class Ref(msgspec.Struct, frozen=True, tag="ref", forbid_unknown_fields=True):
    """A reference to an input, a state entry or the result of an earlier node."""

    name: str


class Constant(msgspec.Struct, frozen=True, tag="constant", forbid_unknown_fields=True):
    """A constant JSON has no word for: a dtype, a memory format, a layout, a non-finite float."""

    kind: Literal["dtype", "memory_format", "layout", "float"]
    value: str


class Items(msgspec.Struct, frozen=True, tag="items", forbid_unknown_fields=True):
    """A list argument."""

    items: tuple[
        bool | int | float | str | Size | Ref | Constant | Items | None,  # the same union as Arg
        ...,
    ]


Arg = bool | int | float | str | Size | Ref | Constant | Items | None


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor of the graph. ``requires_grad``: a gradient flows back through it in training.

    ``order`` lists the dimensions from the outermost to the innermost in memory, where that is not
    row-major: kernels add up a transposed tensor in another order than its contiguous copy.
    """

    name: str
    dtype: str
    shape: tuple[int | Size, ...]
    requires_grad: bool = False
    order: tuple[int, ...] = ()

    def shape_at(self, batch: int) -> tuple[int, ...]:
        """The shape for a microbatch of ``batch`` samples."""
        return tuple(s.at(batch) if isinstance(s, Size) else s for s in self.shape)


class StateSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor the program owns, under its fully qualified name in the user's model.

    ``constant`` tensors were literals in the user's code or non-persistent buffers; they are not
    part of a ``state_dict``.
    """

    name: str
    kind: Literal["parameter", "buffer", "constant"]
    dtype: str
    shape: tuple[int, ...]
    trainable: bool = False


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One operator call. ``results`` lists every output of the operator, used or not."""

    op: str
    args: tuple[Arg, ...]
    kwargs: dict[str, Arg]
    results: tuple[Value, ...]
    unit: int
    source: str = ""

    def inputs(self) -> Iterator[str]:
        """The names this node reads, in the order of its arguments, with repetitions."""
        for arg in (*self.args, *self.kwargs.values()):
            yield from references(arg)


def references(arg: Arg) -> Iterator[str]:
    """The names an argument refers to."""
    if isinstance(arg, Ref):
        yield arg.name
    elif isinstance(arg, Items):
        for item in arg.items:
            yield from references(item)


class Program(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A functional graph with its signature.

    ``inputs``   values that come from outside, first the model's, then the target's;
    ``outputs``  names handed on: the model's outputs, or what crosses the cut to the next stage;
    ``loss``     name of the scalar that training minimises, on the stage that computes it;
    ``metrics``  metric name -> name of a 0-dim value, the mean over the microbatch;
    ``updates``  buffer name -> name of the value it takes after each training forward;
    ``aliases``  further names of a tied parameter -> the name under which ``state`` lists it.
    """

    inputs: tuple[Value, ...]
    state: tuple[StateSpec, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...] = ()
    loss: str | None = None
    metrics: dict[str, str] = {}
    updates: dict[str, str] = {}
    aliases: dict[str, str] = {}

    @property
    def unit_numbers(self) -> tuple[int, ...]:
        """The units of this program, ascending. A stage keeps the numbers of the whole."""
        return tuple(sorted({node.unit for node in self.nodes} - {SHARED_UNIT}))

    @property
    def trainable(self) -> tuple[StateSpec, ...]:
        return tuple(spec for spec in self.state if spec.trainable)

    @property
    def trained(self) -> tuple[str, ...]:
        """What a training step changes: parameters that train, and buffers with updates."""
        return (*(spec.name for spec in self.trainable), *self.updates)

    def values(self) -> dict[str, Value]:
        """Every input and every node result, by name. State is not among them."""
        found = {value.name: value for value in self.inputs}
        found.update((value.name, value) for node in self.nodes for value in node.results)
        return found

    def results(self) -> tuple[str, ...]:
        """Every name the program must compute: outputs, loss, metrics and buffer updates."""
        loss = () if self.loss is None else (self.loss,)
        return (*self.outputs, *loss, *self.metrics.values(), *self.updates.values())
