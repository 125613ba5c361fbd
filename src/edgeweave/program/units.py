"""Divide a program into units: the chain of pieces between neighbouring legal cut points.

A unit starts at an operator that carries the weight of a layer (it reads a parameter of two or
more dimensions, or multiplies activations), takes the cheap operators after it along, and ends
where the fewest bytes are alive. The loss with its metrics is the last unit. A buffer that is
updated never has readers in two units.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec

from edgeweave.core.errors import CaptureError
from edgeweave.program.check import value_bytes
from edgeweave.program.graph import SHARED_UNIT, Node, Program
from edgeweave.program.operators import is_random

__all__ = ["MAX_UNITS", "assign_units", "is_external", "live_bytes"]

MAX_UNITS = 200
"""More candidates than this make planning slow and each measurement noise."""

_PRODUCTS = ("aten.scaled_dot_product_attention", "aten.bmm", "aten.baddbmm", "aten.matmul")
_REFERENCE_BATCH = 16


def is_external(name: str) -> bool:
    """Whether a name is an input of the user's model or a target, sent by the data owner."""
    return name.startswith(("input:", "target:"))


def assign_units(program: Program, *, max_units: int = MAX_UNITS) -> Program:
    """Give every node the number of its unit."""
    shared = _data_free(program)
    chain = [i for i in range(len(program.nodes)) if i not in shared]
    if not chain:
        raise CaptureError("the model computes nothing from its inputs.")
    nodes = [program.nodes[i] for i in chain]
    costs = live_bytes(program, nodes)
    starts = _starts(program, nodes, costs)
    starts = _keep_buffers_whole(program, nodes, starts)
    starts = [start for start in starts if start == 0 or _tells_batch(program, nodes, start)]
    if len(starts) > max_units:
        cheapest = sorted(starts[1:], key=lambda position: costs[position])[: max_units - 1]
        starts = [0, *sorted(cheapest)]
    unit_of = dict.fromkeys(shared, SHARED_UNIT)
    for unit, (start, stop) in enumerate(zip(starts, [*starts[1:], len(chain)], strict=True)):
        unit_of.update((chain[position], unit) for position in range(start, stop))
    renumbered = tuple(
        msgspec.structs.replace(node, unit=unit_of[i]) for i, node in enumerate(program.nodes)
    )
    return msgspec.structs.replace(program, nodes=renumbered)


def live_bytes(program: Program, nodes: Sequence[Node]) -> list[int]:
    """Bytes alive just before each node: the cost of a cut there, for a batch of sixteen."""
    last_use = {name: i for i, node in enumerate(nodes) for name in node.inputs()}
    last_use.update(dict.fromkeys(program.results(), len(nodes) - 1))
    updates = set(program.updates.values()) - set(program.outputs)
    change = [0] * (len(nodes) + 1)
    for i, node in enumerate(nodes):
        for value in node.results:
            last = last_use.get(value.name, i)
            if last > i and value.name not in updates:
                size = value_bytes(value, _REFERENCE_BATCH)
                change[i + 1] += size
                change[last + 1] -= size
    alive, total = [], 0
    for difference in change[: len(nodes)]:
        total += difference
        alive.append(total)
    return alive


def _data_free(program: Program) -> set[int]:
    """Indices of nodes that depend on no data, no randomness and nothing that training changes."""
    independent = {s.name for s in program.state if s.kind != "parameter"} - program.updates.keys()
    found = set()
    updates = set(program.updates.values())
    for index, node in enumerate(program.nodes):
        if not updates.isdisjoint(value.name for value in node.results):
            continue  # happens once per step, in one stage
        if not is_random(node.op) and independent.issuperset(node.inputs()):
            found.add(index)
            independent.update(value.name for value in node.results)
    return found


def _starts(program: Program, nodes: Sequence[Node], costs: Sequence[int]) -> list[int]:
    heavy = _heavy(program, nodes)
    loss = _first_use_of_target(nodes)
    starts = [0]
    for before, after in pairwise(heavy):
        if after > loss:
            break
        window = range(before + 1, after + 1)
        starts.append(min(window, key=lambda position: (costs[position], -position)))
    if starts[-1] < loss < len(nodes):
        starts.append(loss)
    return sorted(set(starts))


def _heavy(program: Program, nodes: Sequence[Node]) -> list[int]:
    weights = {s.name for s in program.state if s.kind == "parameter" and len(s.shape) > 1}
    return [
        i
        for i, node in enumerate(nodes)
        if node.op.startswith(_PRODUCTS) or not weights.isdisjoint(node.inputs())
    ]


def _first_use_of_target(nodes: Sequence[Node]) -> int:
    for i, node in enumerate(nodes):
        if any(name.startswith("target:") for name in node.inputs()):
            return i
    return len(nodes)


def _tells_batch(program: Program, nodes: Sequence[Node], start: int) -> bool:
    """Whether a value that crosses a cut at ``start`` shows how many samples there are."""
    later = {name for node in nodes[start:] for name in node.inputs()} | set(program.results())
    return any(
        not isinstance(size, int)
        for node in nodes[:start]
        for value in node.results
        if value.name in later
        for size in value.shape
    )


def _keep_buffers_whole(
    program: Program, nodes: Sequence[Node], starts: Iterable[int]
) -> list[int]:
    """Drop starts that lie between two users of a buffer that training updates."""
    spans = []
    for buffer, source in program.updates.items():
        users = [
            i
            for i, node in enumerate(nodes)
            if buffer in node.inputs() or any(v.name == source for v in node.results)
        ]
        spans.append((min(users), max(users)))
    return [s for s in starts if not any(first < s <= last for first, last in spans)]
