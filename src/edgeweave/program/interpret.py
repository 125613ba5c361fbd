"""Run a program node by node. Knows nothing of stages, gradients or files.

Faster ways exist, but this one executes nothing that was not checked: no code is generated.
Values are dropped after their last use, so that only what autograd saved stays alive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from edgeweave.program.graph import SHARED_UNIT, Node, Program
from edgeweave.program.operators import FACTORIES, Bound, bind, operator

__all__ = ["Interpreter", "Observer", "Operation"]

Operation = Callable[..., object]
Observer = Callable[[Node, tuple[torch.Tensor, ...]], None]

_MAX_CACHED_BATCHES = 2


@dataclass(slots=True)
class _Step:
    node: Node
    call: Operation
    args: list[object]
    kwargs: dict[str, object]
    bound_args: list[tuple[int, Bound]]
    bound_kwargs: list[tuple[str, Bound]]
    results: list[int]
    expired: list[int]


class Interpreter:
    """Executes one program on one device, again and again.

    ``state`` is used in place: an optimizer that steps its tensors changes the next run. Values
    that depend on no data are computed once per batch size and kept for the last two sizes.
    ``find`` names the function that stands for an operator.
    """

    def __init__(
        self,
        program: Program,
        state: Mapping[str, torch.Tensor],
        *,
        device: torch.device,
        find: Callable[[str], Operation] = operator,
    ) -> None:
        self._find = find
        self._program = program
        self._device = device
        names = [value.name for value in program.inputs]
        names += [spec.name for spec in program.state]
        names += [value.name for node in program.nodes for value in node.results]
        self._slots = {name: slot for slot, name in enumerate(names)}
        self._template: list[torch.Tensor | None] = [None] * len(names)
        for spec in program.state:
            self._template[self._slots[spec.name]] = state[spec.name]
        self._shared = [self._step(n) for n in program.nodes if n.unit == SHARED_UNIT]
        self._steps = [self._step(n) for n in program.nodes if n.unit != SHARED_UNIT]
        self._shared_cache: dict[int, dict[int, torch.Tensor]] = {}
        self._expire()

    def run(
        self,
        inputs: Mapping[str, torch.Tensor],
        batch: int,
        *,
        wanted: Sequence[str],
        enter_unit: Callable[[int], None] | None = None,
        observe: Observer | None = None,
    ) -> dict[str, torch.Tensor]:
        """Compute the ``wanted`` names for a microbatch of ``batch`` samples.

        ``enter_unit`` is called with a unit's number before its first node; ``observe`` after
        every node with its results.
        """
        values = list(self._template)
        for slot, tensor in self._shared_values(batch, observe).items():
            values[slot] = tensor
        for name, tensor in inputs.items():
            values[self._slots[name]] = tensor
        unit = SHARED_UNIT
        for step in self._steps:
            if enter_unit is not None and step.node.unit != unit:
                unit = step.node.unit
                enter_unit(unit)
            self._execute(step, values, batch, observe)
            for slot in step.expired:
                values[slot] = None
        found = {name: values[self._slots[name]] for name in wanted}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def replace_state(self, name: str, tensor: torch.Tensor) -> None:
        """Let later runs use another tensor for a state entry.

        Buffers are replaced, not overwritten: autograd may have saved the old one.
        """
        self._template[self._slots[name]] = tensor

    def _shared_values(self, batch: int, observe: Observer | None) -> dict[int, torch.Tensor]:
        if batch in self._shared_cache and observe is None:
            return self._shared_cache[batch]
        values = list(self._template)
        with torch.no_grad():
            for step in self._shared:
                self._execute(step, values, batch, observe)
        while len(self._shared_cache) >= _MAX_CACHED_BATCHES:
            del self._shared_cache[next(iter(self._shared_cache))]
        slots = [slot for step in self._shared for slot in step.results]
        found = {slot: tensor for slot in slots if (tensor := values[slot]) is not None}
        self._shared_cache[batch] = found
        return found

    def _execute(
        self,
        step: _Step,
        values: list[torch.Tensor | None],
        batch: int,
        observe: Observer | None,
    ) -> None:
        args = list(step.args)
        for position, function in step.bound_args:
            args[position] = function(values, batch)
        kwargs = step.kwargs
        if step.bound_kwargs:
            kwargs = dict(kwargs)
            for key, function in step.bound_kwargs:
                kwargs[key] = function(values, batch)
        produced = step.call(*args, **kwargs)
        outputs = tuple(produced) if isinstance(produced, list | tuple) else (produced,)
        for slot, tensor in zip(step.results, outputs, strict=True):
            values[slot] = tensor
        if observe is not None:
            observe(step.node, outputs)

    def _step(self, node: Node) -> _Step:
        args = [bind(arg, self._slots) for arg in node.args]
        kwargs = {key: bind(arg, self._slots) for key, arg in node.kwargs.items()}
        fixed_kwargs = {key: fixed for key, (fixed, _) in kwargs.items()}
        if node.op in FACTORIES or node.op == "aten.full.default":
            fixed_kwargs["device"] = self._device
        return _Step(
            node=node,
            call=self._find(node.op),
            args=[fixed for fixed, _ in args],
            kwargs=fixed_kwargs,
            bound_args=[(i, f) for i, (_, f) in enumerate(args) if f is not None],
            bound_kwargs=[(key, f) for key, (_, f) in kwargs.items() if f is not None],
            results=[self._slots[value.name] for value in node.results],
            expired=[],
        )

    def _expire(self) -> None:
        """Tell every step which values nobody reads after it."""
        kept = {self._slots[name] for name in self._program.results()}
        kept.update(self._slots[spec.name] for spec in self._program.state)
        for step in self._shared:
            kept.update(step.results)
        seen = set(kept)
        for step in reversed(self._steps):
            touched = {self._slots[name] for name in step.node.inputs()} | set(step.results)
            step.expired = sorted(touched - seen)
            seen |= touched
