"""Programs written by hand, where a captured one would hide what a test is about."""

from __future__ import annotations

from typing import Any

import torch

from edgeweave.program import Program, StateSpec, Value
from edgeweave.program.check import infer_values
from edgeweave.program.graph import Arg, Items, Node, Ref, Size

BATCH = Size(1)


def node(op: str, args: tuple[Arg, ...], *results: str, unit: int = 0, **kwargs: Arg) -> Node:
    """A node whose results have no shapes yet; strings among ``args`` are references."""
    bound = tuple(Ref(arg) if isinstance(arg, str) else arg for arg in args)
    values = tuple(Value(name, "float32", ()) for name in results)
    return Node(f"aten.{op}", bound, kwargs, values, unit)


def listed(*items: Arg) -> Items:
    return Items(tuple(Ref(item) if isinstance(item, str) else item for item in items))


def weight(name: str, *shape: int, trainable: bool = True) -> StateSpec:
    return StateSpec(name, "parameter", "float32", shape, trainable=trainable)


def program(*nodes: Node, state: tuple[StateSpec, ...] = (), **fields: Any) -> Program:
    """A program of one input ``input:0`` of four features, with inferred shapes."""
    fields.setdefault("inputs", (Value("input:0", "float32", (BATCH, 4)),))
    return infer_values(Program(state=state, nodes=nodes, **fields))


def two_layers() -> Program:
    """``relu(x W) V`` in units 0 and 1, the mean in unit 2."""
    return program(
        node("linear.default", ("input:0", "w"), "h"),
        node("relu.default", ("h",), "r"),
        node("linear.default", ("r", "v"), "y", unit=1),
        node("mean.default", ("y",), "loss", unit=2),
        state=(weight("w", 3, 4), weight("v", 2, 3)),
        outputs=("y",),
        loss="loss",
    )


def state_of(given: Program) -> dict[str, torch.Tensor]:
    """Reproducible tensors for a program's state."""
    generator = torch.Generator().manual_seed(4)
    return {spec.name: torch.randn(spec.shape, generator=generator) for spec in given.state}
