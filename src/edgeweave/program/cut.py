"""Cut a program into stages. A stage is a program again.

    unit      0   1   2 | 3   4 | 5   6          cut(program, (3, 5))
    stage         0         1       2

A value used two stages on travels through the stage between (a *relay*): it is an input and an
output of that stage. Its gradient returns the same way and is summed in the order in which the
uncut graph sums it, which is what makes gradients equal bit for bit.

Cut ``direct``, it goes only through stages that use it, each of which hands it to the next one::

    relayed    0 --h--> 1 --h--> 2 --h--> 3        made in 0, used in 2 and 3
    direct     0 --------h-----> 2 --h--> 3

A stage left out had nothing to add to the gradient, so the order of the sum is the same. (Copies
from the maker to each user, every one with a gradient that returns to it, would be summed in
another order, and leave the maker more to send.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import msgspec

from edgeweave.core.errors import PlanError
from edgeweave.program.graph import SHARED_UNIT, Node, Program
from edgeweave.program.units import is_external

__all__ = ["Way", "cut", "needed", "shared_parameters", "ways", "without_outputs"]


def without_outputs(program: Program) -> Program:
    """The program without the model's outputs, as training runs it: logits stay where they are.

    A program without a loss is there for its outputs, and keeps them.
    """
    if program.loss is None:
        return program
    return msgspec.structs.replace(program, outputs=())


def cut(
    program: Program, boundaries: Sequence[int], *, direct: bool = False
) -> tuple[Program, ...]:
    """Cut before each unit in ``boundaries`` (ascending); an empty sequence gives one stage.

    Nodes nobody needs are dropped; nodes that depend on no data are repeated in every stage that
    needs them. The program's outputs and its loss leave the last stage. With ``direct`` a value
    goes past stages that do not use it; ``ways`` tells from where to where. A stage that could
    then not tell how many samples there are relays as usual.
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
    wanted = _final_results(program)
    for first, stop in reversed(list(pairwise(edges))):
        stage = _stage(program, first, stop, wanted)
        if not stages:
            stage = msgspec.structs.replace(
                stage, outputs=program.outputs, loss=program.loss, metrics=program.metrics
            )
        elif direct:
            stage = _without_relays(program, first, stop, wanted, relaying=stage)
        read = {value.name for value in stage.inputs if not is_external(value.name)}
        passing = {*wanted} - {*stage.outputs} if stages else set[str]()
        wanted = tuple(name for name in program.values() if name in read | passing)
        stages.append(stage)
    return tuple(reversed(stages))


@dataclass(frozen=True, slots=True)
class Way:
    """Where one stage's values come from and go to, other than the stages next to it.

    ``sources`` are inputs by name -> the earlier stage, ``targets`` outputs -> the later one.
    """

    sources: dict[str, int]
    targets: dict[str, int]


def ways(stages: Sequence[Program]) -> tuple[Way, ...]:
    """For each stage of a cut program, what it does not exchange with the stages next to it."""
    found = [Way({}, {}) for _ in stages]
    holders: dict[str, int] = {}
    for index, stage in enumerate(stages):
        for value in stage.inputs:
            holder = holders.get(value.name, index - 1)
            if holder < index - 1:
                found[index].sources[value.name] = holder
                found[holder].targets[value.name] = index
        holders.update(dict.fromkeys(stage.outputs, index))
    return tuple(found)


def _without_relays(
    program: Program, first: int, stop: int, wanted: Sequence[str], *, relaying: Program
) -> Program:
    """The stage without what it would only pass on, if it can then tell the number of samples."""
    made = {v.name for node in relaying.nodes for v in node.results}
    used = {name for node in relaying.nodes for name in node.inputs()}
    stage = _stage(program, first, stop, [name for name in wanted if name in made | used])
    return stage if _tells_batch(stage) or not _tells_batch(relaying) else relaying


def _tells_batch(stage: Program) -> bool:
    sizes = [size for value in stage.inputs for size in value.shape]
    return any(not isinstance(size, int) for size in sizes)


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
