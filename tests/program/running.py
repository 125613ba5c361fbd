"""Run programs as a fleet would, and models as their owners would, to hold one against the other.

What crosses a cut is copied into contiguous memory, as the frames on the wire do; a stage sees
what the stage before it handed on and what the data owner sends, nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn

from edgeweave.program import (
    Captured,
    Moment,
    StageProgram,
    StageResult,
    cut,
    flatten_inputs,
    ways,
    without_outputs,
)
from tests.models import Batch

Tensors = dict[str, torch.Tensor]


@dataclass
class Trained:
    """One step's numbers: loss of each microbatch, gradients, buffers, bytes sent each way."""

    losses: list[torch.Tensor]
    gradients: Tensors
    buffers: Tensors
    forward_bytes: int = 0
    backward_bytes: int = 0


def wire(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """What arrives at the other end: the same numbers in fresh, contiguous memory."""
    return {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def n_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def select(tree: Any, rows: slice) -> Any:
    return pytree.tree_map(lambda leaf: leaf[rows], tree)


def microbatches(batch: Batch, sizes: Sequence[int]) -> list[Batch]:
    parts, start = [], 0
    for size in sizes:
        parts.append(tuple(select(tree, slice(start, start + size)) for tree in batch))
        start += size
    return parts  # type: ignore[return-value]


def n_samples(batch: Batch) -> int:
    return int(pytree.tree_leaves(batch[1])[0].shape[0])


def call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def train_eagerly(
    model: nn.Module, loss_fn: Callable[[Any, Any], torch.Tensor], parts: Sequence[Batch]
) -> Trained:
    """The reference: the user's own module, untouched, over the same microbatches."""
    model = copy.deepcopy(model).train()
    total = sum(n_samples(part) for part in parts)
    losses = []
    for part in parts:
        loss = loss_fn(call(model, part[0]), part[1])
        loss.backward(gradient=torch.tensor(n_samples(part) / total, dtype=loss.dtype))
        losses.append(loss.detach())
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return Trained(losses, gradients, dict(model.named_buffers()))


class Pipeline:
    """The stages of a cut program in one process, a fresh copy of the state in each."""

    def __init__(
        self,
        captured: Captured,
        boundaries: Sequence[int] = (),
        *,
        outputs: bool = False,
        direct: bool = False,
    ) -> None:
        program = captured.program if outputs else without_outputs(captured.program)
        stages = cut(program, boundaries, direct=direct)
        self.stages = [StageProgram(stage, captured.state) for stage in stages]
        self.ways = ways(stages)
        self.forward_bytes = 0
        self.backward_bytes = 0

    def forward(self, batch: Batch, moment: Moment) -> StageResult:
        return self._through(batch, lambda stage, given: stage.forward(given, moment))

    def evaluate(self, batch: Batch) -> StageResult:
        return self._through(batch, lambda stage, given: stage.evaluate(given))

    def _through(
        self, batch: Batch, run: Callable[[StageProgram, Tensors], StageResult]
    ) -> StageResult:
        external = flatten_inputs(*batch)
        arriving: list[Tensors] = [{} for _ in self.stages]
        for index, (stage, way) in enumerate(zip(self.stages, self.ways, strict=True)):
            known = {**external, **arriving[index]}
            given = wire({v.name: known[v.name] for v in stage.program.inputs})
            result = run(stage, given)
            handed = wire(result.outputs)
            for name, tensor in handed.items() if index + 1 < len(self.stages) else ():
                arriving[way.targets.get(name, index + 1)][name] = tensor
            self.forward_bytes += n_bytes(handed)
        return result

    def backward(self, microbatch: int, loss_weight: float) -> None:
        arriving: list[Tensors] = [{} for _ in self.stages]
        for index in reversed(range(len(self.stages))):
            returned = self.stages[index].backward(
                microbatch, arriving[index], loss_weight=loss_weight
            )
            gradients = wire(returned)
            for name, tensor in gradients.items():
                arriving[self.ways[index].sources.get(name, index - 1)][name] = tensor
            self.backward_bytes += n_bytes(gradients)

    def train(self, parts: Sequence[Batch]) -> Trained:
        """One step: all forward passes, then all backward passes, as ``gpipe`` does."""
        total = sum(n_samples(part) for part in parts)
        losses = []
        for index, part in enumerate(parts):
            loss = self.forward(part, Moment(0, index)).loss
            assert loss is not None
            losses.append(loss)
        for index, part in enumerate(parts):
            self.backward(index, n_samples(part) / total)
        return Trained(
            losses, self.gradients(), self.buffers(), self.forward_bytes, self.backward_bytes
        )

    def gradients(self) -> Tensors:
        """Every parameter's gradient; those of a tied parameter are added over the stages."""
        found: Tensors = {}
        for stage in self.stages:
            for name, parameter in stage.parameters.items():
                if parameter.grad is not None:
                    grad = parameter.grad
                    found[name] = found[name] + grad if name in found else grad
        return found

    def buffers(self) -> Tensors:
        kinds = {s.name: s.kind for stage in self.stages for s in stage.program.state}
        state = {n: t for stage in self.stages for n, t in stage.state_dict().items()}
        return {name: tensor for name, tensor in state.items() if kinds[name] == "buffer"}


def differing(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> list[str]:
    """Names that only one side has, or whose tensors are not equal bit for bit."""
    names = sorted(found.keys() | expected.keys())
    return [
        name
        for name in names
        if name not in found or name not in expected or not torch.equal(found[name], expected[name])
    ]


def assert_same_training(found: Trained, expected: Trained) -> None:
    """Losses, gradients and the buffers that the program owns are equal bit for bit."""
    assert [float(x) for x in found.losses] == [float(x) for x in expected.losses]
    assert differing(found.gradients, expected.gradients) == []
    own = {name: expected.buffers[name] for name in found.buffers}
    assert differing(found.buffers, own) == []
