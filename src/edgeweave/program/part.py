"""The part of a program that computes some of its values, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgeweave.core.errors import CaptureError
from edgeweave.program.graph import Node, Program

__all__ = ["part_for"]


def part_for(program: Program, outputs: Sequence[str]) -> Program:
    """A program whose outputs are ``outputs``: values of ``program``, its inputs or results.

    It has no loss, no metrics and no updates, and only the inputs and state that it reads.
    """
    needed = set(outputs)
    known = set(program.values())
    if missing := needed - known:
        raise CaptureError(f"a part computes values of its program ({sorted(missing)[0]} is none).")
    nodes: list[Node] = []
    for node in reversed(program.nodes):
        if needed & {value.name for value in node.results}:
            nodes.append(node)
            needed.update(node.inputs())
    return msgspec.structs.replace(
        program,
        inputs=tuple(value for value in program.inputs if value.name in needed),
        state=tuple(spec for spec in program.state if spec.name in needed),
        nodes=tuple(reversed(nodes)),
        outputs=tuple(outputs),
        loss=None,
        metrics={},
        updates={},
        aliases={},
    )
