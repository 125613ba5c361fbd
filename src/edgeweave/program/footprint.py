"""What a program costs in bytes, by unit, cut and input, without running it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import msgspec
import torch

from edgeweave.program.check import meta_state, propagate, value_bytes
from edgeweave.program.cut import needed
from edgeweave.program.graph import SHARED_UNIT, Node, Program, StateSpec
from edgeweave.program.operators import DTYPES
from edgeweave.program.packing import packed_weights
from edgeweave.program.units import is_external

__all__ = [
    "CutBytes",
    "InputBytes",
    "SkipBytes",
    "UnitBytes",
    "cut_bytes",
    "input_bytes",
    "result_bytes",
    "skip_bytes",
    "state_bytes",
    "unit_bytes",
]


@dataclass(frozen=True, slots=True)
class UnitBytes:
    """Bytes of one unit; ``activations``: what autograd keeps per microbatch in flight."""

    parameters: int
    trainable: int
    buffers: int
    activations: int


@dataclass(frozen=True, slots=True)
class CutBytes:
    """Bytes that cross a cut for one microbatch, in each direction."""

    forward: int
    backward: int


@dataclass(frozen=True, slots=True)
class InputBytes:
    """Bytes of one input or target for one microbatch, and the units that use it, ascending."""

    size: int
    units: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SkipBytes:
    """Bytes of a value that skips units; ``units`` make it (the first) and use it, ascending."""

    units: tuple[int, ...]
    forward: int
    backward: int


def unit_bytes(program: Program, batch: int) -> dict[int, UnitBytes]:
    """The bytes of every unit. A parameter that several units use counts in each of them.

    Activations are those that autograd saves on ``meta`` tensors; a fused kernel of a device may
    keep less.
    """
    saved = _saved_bytes(program, batch)
    users: dict[int, set[str]] = {unit: set() for unit in program.unit_numbers}
    for node in program.nodes:
        if node.unit != SHARED_UNIT:
            users[node.unit].update(node.inputs())
    found = {}
    for unit, names in users.items():
        specs = [spec for spec in program.state if spec.name in names]
        size = {spec.name: state_bytes(spec) for spec in specs}
        parameters = [spec for spec in specs if spec.kind == "parameter"]
        found[unit] = UnitBytes(
            parameters=sum(size[spec.name] for spec in parameters),
            trainable=sum(size[spec.name] for spec in parameters if spec.trainable),
            buffers=sum(size[spec.name] for spec in specs if spec.kind != "parameter"),
            activations=saved.get(unit, 0),
        )
    return found


def result_bytes(program: Program, batch: int) -> dict[int, int]:
    """Bytes of all that each unit's operators produce: at least what is alive of it at any time.

    Among them are the weights of convolutions that CPUs keep a second time.
    """
    found = dict.fromkeys(program.unit_numbers, 0)
    packed = packed_weights(program)
    for node in program.nodes:
        if node.unit != SHARED_UNIT:
            found[node.unit] += sum(
                value_bytes(value, batch) + packed.get(value.name, 0) for value in node.results
            )
    return found


def cut_bytes(program: Program, batch: int) -> dict[int, CutBytes]:
    """For every unit but the first: what crosses a cut just before it."""
    units = program.unit_numbers
    program = msgspec.structs.replace(program, nodes=needed(program.nodes, program.results()))
    values = program.values()
    state = {spec.name for spec in program.state}
    made = {v.name: n.unit for n in program.nodes for v in n.results}
    last_use: dict[str, int] = {}
    for node in program.nodes:
        if node.unit != SHARED_UNIT:
            for name in node.inputs():
                last_use[name] = max(node.unit, last_use.get(name, 0))
    final = {*program.outputs, program.loss, *program.metrics.values()}
    found = {}
    for unit in units[1:]:
        crossing = [
            values[name]
            for name in values.keys() - state
            if not is_external(name)
            and made[name] != SHARED_UNIT
            and made[name] < unit
            and (last_use.get(name, -1) >= unit or name in final)
        ]
        found[unit] = CutBytes(
            forward=sum(value_bytes(value, batch) for value in crossing),
            backward=sum(value_bytes(value, batch) for value in crossing if value.requires_grad),
        )
    return found


def skip_bytes(program: Program, batch: int) -> tuple[SkipBytes, ...]:
    """Every value that some unit between its maker and its last user does not use.

    ``cut_bytes`` counts them at each cut they cross; they can go past stages of such units alone.
    """
    program = msgspec.structs.replace(program, nodes=needed(program.nodes, program.results()))
    final = {*program.outputs, program.loss, *program.metrics.values()}
    last = program.unit_numbers[-1]
    users: dict[str, set[int]] = {}
    for node in program.nodes:
        for name in node.inputs():
            users.setdefault(name, set()).add(node.unit)
    found = []
    for maker in program.nodes:
        for value in maker.results if maker.unit != SHARED_UNIT else ():
            behind = users.get(value.name, set()) | ({last} if value.name in final else set())
            units = tuple(sorted({maker.unit, *behind}))
            if any(after - before > 1 for before, after in pairwise(units)):
                size = value_bytes(value, batch)
                found.append(SkipBytes(units, size, size if value.requires_grad else 0))
    return tuple(found)


def input_bytes(program: Program, batch: int) -> dict[str, InputBytes]:
    """Every input and target that a unit needs, by name; those that nobody needs are not sent."""
    final = set(program.results())
    users: dict[str, set[int]] = {
        value.name: {program.unit_numbers[-1]} if value.name in final else set()
        for value in program.inputs
        if is_external(value.name)
    }
    for node in needed(program.nodes, final):
        for name in users.keys() & set(node.inputs()):
            users[name].add(node.unit)
    return {
        value.name: InputBytes(value_bytes(value, batch), tuple(sorted(users[value.name])))
        for value in program.inputs
        if users.get(value.name)
    }


def state_bytes(spec: StateSpec) -> int:
    """Bytes of a parameter, buffer or constant."""
    return torch.Size(spec.shape).numel() * DTYPES[spec.dtype].itemsize


def _saved_bytes(program: Program, batch: int) -> dict[int, int]:
    """Bytes of the distinct storages autograd saves, by the unit that first saved them."""
    state = meta_state(program)
    own = {tensor.untyped_storage()._cdata for tensor in state.values()}
    seen: dict[int, torch.Tensor] = {}
    pending: list[torch.Tensor] = []
    by_unit: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        pending.append(tensor)
        return tensor

    def settle(node: Node, results: tuple[torch.Tensor, ...]) -> None:
        for tensor in pending:
            storage = tensor.untyped_storage()
            if storage._cdata not in seen and storage._cdata not in own:
                seen[storage._cdata] = tensor  # keeps the address taken
                by_unit[node.unit] = by_unit.get(node.unit, 0) + storage.nbytes()
        pending.clear()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        propagate(program, batch, observe=settle, state=state)
    return by_unit
