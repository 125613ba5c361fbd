"""All members of a sliced program in one process, handing each other everything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from edgeweave.program import (
    Captured,
    Group,
    Member,
    Mode,
    Moment,
    Program,
    Routes,
    Shard,
    Sliced,
    StageProgram,
    capture,
    flatten_inputs,
    gather_state,
    slice_program,
    slice_state,
)

Tensors = dict[str, torch.Tensor]


def groups_of(program: Program, sizes: Sequence[int]) -> list[Group]:
    """As many units for each group as can be, the loss in the last."""
    units = program.unit_numbers
    edges = [round(i * len(units) / len(sizes)) for i in range(len(sizes) + 1)]
    return [Group(edges[i], edges[i + 1], size) for i, size in enumerate(sizes)]


class Everybody:
    """Members of a sliced program that lose nothing."""

    def __init__(self, sliced: Sliced, state: Mapping[str, torch.Tensor], *, seed: int = 0) -> None:
        self.sliced, self.state = sliced, state
        self.members = {
            who: Member(sliced, *who, slice_state(sliced, state, *who), seed=seed)
            for who in sliced.members
        }
        self.routes = Routes(sliced)
        self.outputs: dict[Shard, Tensors] = {}

    def _shards(self) -> list[tuple[Shard, Member]]:
        return [
            (Shard(number, member), self.members[segment.group, member])
            for number, segment in enumerate(self.sliced.segments)
            for member, program in enumerate(segment.programs)
            if program is not None
        ]

    def _given(self, shard: Shard, member: Member, inputs: Tensors) -> Tensors:
        given = member.blank(shard.segment, len(next(iter(inputs.values()))))
        for transfer in self.routes.arriving.get(shard, ()):
            part = self.outputs[transfer.source][transfer.value]
            part = self.routes.cut_from_source(transfer, part)
            self.routes.add_at_target(transfer, given[transfer.value], part)
        return given | inputs

    def forward(self, inputs: Tensors) -> tuple[list[float], list[Tensors]]:
        """The losses of all members that compute one, and their metrics."""
        losses, metrics = [], []
        for shard, member in self._shards():
            given = self._given(shard, member, inputs)
            result = member.forward(shard.segment, given, Moment(0, 0), key=0)
            self.outputs[shard] = result.outputs
            if result.loss is not None:
                losses.append(float(result.loss))
                metrics.append(result.metrics)
        return losses, metrics

    def backward(self) -> None:
        gradients: dict[Shard, Tensors] = {}
        for shard, member in reversed(self._shards()):
            found = member.backward(shard.segment, 0, gradients.get(shard, {}))
            for transfer in self.routes.arriving.get(shard, ()):
                if transfer.value not in found:
                    continue
                part = self.routes.cut_from_target(transfer, found[transfer.value])
                into = gradients.setdefault(transfer.source, {})
                made = self.outputs[transfer.source][transfer.value]
                into.setdefault(transfer.value, torch.zeros_like(made))
                self.routes.add_at_source(transfer, into[transfer.value], part)

    def evaluate(self, inputs: Tensors) -> list[float]:
        losses = []
        for shard, member in self._shards():
            result = member.evaluate(shard.segment, self._given(shard, member, inputs))
            self.outputs[shard] = result.outputs
            losses += [] if result.loss is None else [float(result.loss)]
        return losses

    def gradients(self) -> Tensors:
        """Of the whole, under the user's names."""
        parts: dict[tuple[int, int], Tensors] = {}
        for who, member in self.members.items():
            parts[who] = {
                name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                for stage in member._stages.values()
                for name, parameter in stage.parameters.items()
            }
        zero = {name: torch.zeros_like(tensor) for name, tensor in self.state.items()}
        return gather_state(self.sliced, parts, zero)

    def state_dict(self) -> Tensors:
        parts = {who: member.state_dict() for who, member in self.members.items()}
        return gather_state(self.sliced, parts, self.state)


def captured_of(
    model: nn.Module, loss: Callable[[Any, Any], torch.Tensor], batch: tuple[Any, Any]
) -> Captured:
    return capture(model.train(), loss, *batch)


def compare(captured: Captured, batch: tuple[Any, Any], sizes: Sequence[int], mode: Mode) -> Sliced:
    """Assert that members of groups of these sizes compute what the unsplit program does."""
    program = captured.program
    sliced = slice_program(program, groups_of(program, sizes), mode)
    everybody = Everybody(sliced, captured.state)
    inputs = flatten_inputs(*batch)
    whole = everybody.state_dict()  # with what grouped slices leave out as zero
    unsplit = StageProgram(program, whole)
    expected = unsplit.forward(inputs, Moment(0, 0))
    assert expected.loss is not None
    losses, _ = everybody.forward(inputs)
    assert losses
    torch.testing.assert_close(losses, [float(expected.loss)] * len(losses), rtol=1e-5, atol=1e-6)
    unsplit.backward(0, {})
    everybody.backward()
    found = everybody.gradients()
    for name, parameter in unsplit.parameters.items():
        if parameter.grad is None:
            continue
        held = everybody_held(sliced, name, parameter.grad)
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(
            found[name], parameter.grad * held, rtol=1e-4, atol=1e-5 * max(scale, 1e-2), msg=name
        )
    for name, tensor in everybody.state_dict().items():
        torch.testing.assert_close(
            tensor, unsplit._state[name].detach(), rtol=1e-5, atol=1e-6, msg=name
        )
    evaluated = unsplit.evaluate(inputs).loss
    assert evaluated is not None
    answers = everybody.evaluate(inputs)
    torch.testing.assert_close(answers, [float(evaluated)] * len(answers), rtol=1e-5, atol=1e-6)
    return sliced


def everybody_held(sliced: Sliced, name: str, like: torch.Tensor) -> torch.Tensor:
    """Ones where some member holds the weight, zeros where grouped slices leave it out."""
    ones = {
        who: {name: torch.ones(shape)}
        for who in sliced.members
        if (shape := _shape(sliced, name, who)) is not None
    }
    return gather_state(sliced, ones, {name: torch.zeros_like(like)} | _rest(sliced, name))[name]


def _shape(sliced: Sliced, name: str, who: tuple[int, int]) -> tuple[int, ...] | None:
    group, member = who
    for segment in sliced.segments:
        program = segment.programs[member] if segment.group == group else None
        for spec in () if program is None else program.state:
            if spec.name == name:
                return spec.shape
    return None


def _rest(sliced: Sliced, name: str) -> Tensors:
    return {s.name: torch.zeros(s.shape) for s in sliced.program.state if s.name != name}
