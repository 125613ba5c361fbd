"""Tell the units apart while a stage runs whole: where each one's forward and backward begins.

Running units one by one would charge every unit for being run alone, which makes small units look
dear and large ones cheap. Here one pass runs as always, and only the moments are noted: forward as
the interpreter enters a unit; backward when the gradient of the last value a unit hands on is
complete, because autograd has then finished everything behind it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from edgeweave.program.graph import SHARED_UNIT, Node, Program

__all__ = ["UnitWatch", "units_with_backward"]


class UnitWatch:
    """Seconds per unit of one forward and one backward pass, read off ``stopwatch``.

    ``forward_seconds`` and ``backward_seconds`` are keyed by unit and add up to the whole pass. A
    unit through which no gradient flows has a backward of zero.
    """

    def __init__(self, program: Program, stopwatch: Callable[[], float]) -> None:
        self._stopwatch = stopwatch
        self._units = program.unit_numbers
        self._handed_on = _handed_on(program)
        self.forward_seconds = dict.fromkeys(self._units, 0.0)
        self.backward_seconds = dict.fromkeys(self._units, 0.0)
        self._account = self.forward_seconds
        self._unit = self._units[0]
        self._since = 0.0
        self._last: torch.Tensor | None = None

    def begin_forward(self) -> None:
        """A forward pass begins; what comes before the first unit is charged to it."""
        self._account, self._unit, self._since = (
            self.forward_seconds,
            self._units[0],
            self._stopwatch(),
        )
        self._last = None

    def begin_backward(self) -> None:
        """A backward pass begins, with the last unit."""
        self._begin(self.backward_seconds, self._units[-1])

    def end(self) -> None:
        """The pass is over."""
        self._switch(self._unit)
        self._last = None

    def enter(self, unit: int) -> None:
        """The interpreter enters a unit."""
        left = self._unit
        self._switch(unit)
        if self._last is not None and unit != left:
            hook = self._last.register_hook
            hook(lambda _gradient: self._switch(left))  # type: ignore[no-untyped-call]
        self._last = None

    def produced(self, node: Node, results: tuple[torch.Tensor, ...]) -> None:
        """A node is done: remember the last value with a gradient that other units read."""
        if node.unit == SHARED_UNIT:
            return
        for value, tensor in zip(node.results, results, strict=True):
            if tensor.requires_grad and value.name in self._handed_on:
                self._last = tensor

    def _begin(self, account: dict[int, float], unit: int) -> None:
        self._account, self._unit, self._last = account, unit, None
        self._since = self._stopwatch()

    def _switch(self, unit: int) -> None:
        now = self._stopwatch()
        self._account[self._unit] += now - self._since
        self._unit, self._since = unit, now


def units_with_backward(program: Program) -> frozenset[int]:
    """The units to which ``UnitWatch`` charges a backward: those through which a gradient flows.

    They hand on a value that has one; the last unit makes the loss.
    """
    handed_on = _handed_on(program)
    through = {
        node.unit
        for node in program.nodes
        for value in node.results
        if value.requires_grad and (value.name in handed_on or value.name == program.loss)
    }
    return frozenset(through - {SHARED_UNIT})


def _handed_on(program: Program) -> frozenset[str]:
    """Names of values that another unit than their own reads."""
    made = {value.name: node.unit for node in program.nodes for value in node.results}
    return frozenset(
        name
        for node in program.nodes
        for name in node.inputs()
        if name in made and made[name] != node.unit
    )
