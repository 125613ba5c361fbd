"""Cut a program into stages. A stage is a program again.

    unit      0   1   2 | 3   4 | 5   6          cut(program, (3, 5))
    stage         0         1       2

A value used two stages on travels through the stage between (a *relay*): it is an input and an
output of that stage. Its gradient returns the same way and is summed in the order in which the
uncut graph sums it, which is what makes gradients equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec

from edgeweave.core.errors import PlanError
from edgeweave.program.graph import SHARED_UNIT, Node, Program
from edgeweave.program.units import is_external

__all__ = ["cut", "needed", "shared_parameters", "without_outputs"]


def without_outputs(program: Program) -> Program:
    """The program without the model's outputs, as training runs it: logits stay where they are."""
    return msgspec.structs.replace(program, outputs=())


def cut(program: Program, boundaries: Sequence[int]) -> tuple[Program, ...]:
    """Cut before each unit in ``boundaries`` (ascending); an empty sequence gives one stage.

    Nodes nobody needs are dropped; nodes that depend on no data are repeated in every stage that
    needs them. The program's outputs and its loss leave the last stage.
    """
    units = program.unit_numbers
    if not units:
        raise PlanError("a program without units cannot be cut (it computes nothing from data).")
    edges = [units[0], *boundaries, units[-1] + 1]
    if sorted(set(edges)) != edges:
        raise PlanError(
            f"cuts ascend and leave no stage empty (got {list(boundaries)} for units "
            f"{units[0]} to {units[-1]})."
        )
    stages: list[Program] = []
    handed_on = _final_results(program)
    for first, stop in reversed(list(pairwise(edges))):
        stage = _stage(program, first, stop, handed_on)
        if not stages:
            stage = msgspec.structs.replace(
                stage, outputs=program.outputs, loss=program.loss, metrics=program.metrics
            )
        handed_on = tuple(v.name for v in stage.inputs if not is_external(v.name))
        stages.append(stage)
    return tuple(reversed(stages))


def _stage(program: Program, first: int, stop: int, handed_on: Sequence[str]) -> Program:
    """Units ``first`` to ``stop - 1`` as a program that hands ``handed_on`` to whoever follows."""
    own = [node for node in program.nodes if first <= node.unit < stop]
    made = {value.name for node in own for value in node.results}
    updates = {buffer: name for buffer, name in program.updates.items() if name in made}
    repeatable = [node for node in program.nodes if node.unit == SHARED_UNIT]
    nodes = needed([*repeatable, *own], {*handed_on, *updates.values()})
    read = {name for node in nodes for name in node.inputs()} | {*handed_on, *updates}
    computed = {value.name for node in nodes for value in node.results}
    arriving = tuple(value for value in program.values().values() if value.name in read - computed)
    return Program(
        inputs=arriving,
        state=tuple(spec for spec in program.state if spec.name in read),
        nodes=nodes,
        outputs=tuple(handed_on),
        updates=updates,
        aliases={alias: name for alias, name in program.aliases.items() if name in read},
    )


def _final_results(program: Program) -> tuple[str, ...]:
    loss = () if program.loss is None else (program.loss,)
    return tuple(dict.fromkeys((*program.outputs, *loss, *program.metrics.values())))


def needed(nodes: Sequence[Node], results: Iterable[str]) -> tuple[Node, ...]:
    """The nodes that contribute to ``results``, in their order."""
    wanted = set(results)
    kept = []
    for node in reversed(nodes):
        if any(value.name in wanted for value in node.results):
            kept.append(node)
            wanted.update(node.inputs())
    return tuple(reversed(kept))


def shared_parameters(stages: Sequence[Program]) -> dict[str, tuple[int, ...]]:
    """Trainable parameters that several stages hold (tied weights) -> those stages."""
    holders: dict[str, list[int]] = {}
    for index, stage in enumerate(stages):
        for spec in stage.trainable:
            holders.setdefault(spec.name, []).append(index)
    return {name: tuple(held) for name, held in holders.items() if len(held) > 1}
