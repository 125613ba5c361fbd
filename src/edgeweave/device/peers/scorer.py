"""Scores of aggregated points under the present model. See ``edgeweave.mixing.importance``.

Points are scored in evaluation mode: a mean of samples would disturb running statistics, and
batch statistics would depend on which points are scored together.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from edgeweave.core.errors import ConfigError
from edgeweave.mixing import Importance, last_layer_scores
from edgeweave.program import Interpreter, Moment, Program, StageProgram, evaluation, part_for
from edgeweave.program.graph import Ref

__all__ = ["Scorer", "input_and_target"]

_LINEAR = "aten.linear.default"


def input_and_target(program: Program) -> tuple[str, str]:
    """The names of the one input and the one target that grouping needs; ``ConfigError`` if the
    program takes more.
    """
    inputs = [value.name for value in program.inputs if value.name.startswith("input:")]
    targets = [value.name for value in program.inputs if value.name.startswith("target:")]
    if len(inputs) != 1 or len(targets) != 1 or not program.outputs:
        raise ConfigError(
            "importance needs a model of one input, one output and one class per sample (got "
            f"{len(inputs)} inputs and {len(targets)} targets). Use importance='none'."
        )
    return inputs[0], targets[0]


class Scorer:
    """Scores points with tensors that are trained elsewhere, in place: ``state`` is not copied."""

    def __init__(
        self,
        program: Program,
        state: Mapping[str, torch.Tensor],
        importance: Importance,
        *,
        device: torch.device,
    ) -> None:
        self._input, self._target = input_and_target(program)
        self._device = device
        self._importance = importance
        evaluated = evaluation(program)
        self._logits = program.outputs[0]
        self._hidden = _last_layer_input(evaluated, self._logits)
        outputs = [self._logits] + ([self._hidden] if self._hidden else [])
        self._part = part_for(evaluated, outputs)
        self._forward = Interpreter(self._part, state, device=device)
        self._stage: StageProgram | None = None
        if importance == "first-layer":
            self._stage = StageProgram(evaluated, state, device=device, take_over=True)
            self._first = _first_weight(evaluated)

    def scores(self, points: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One score for each point."""
        if self._stage is not None:
            return torch.stack(
                [
                    self._first_layer(self._stage, points[k : k + 1], labels[k : k + 1])
                    for k in range(len(points))
                ]
            )
        with torch.no_grad():
            wanted = self._part.outputs
            inputs = {self._input: points.to(self._device)}
            values = self._forward.run(inputs, len(points), wanted=wanted)
        hidden = values.get(self._hidden) if self._hidden else None
        return last_layer_scores(values[self._logits], hidden, labels.to(self._device)).cpu()

    def replace_buffers(self, buffers: Mapping[str, torch.Tensor]) -> None:
        """Let scores use these running statistics."""
        for spec in self._part.state:
            if spec.name in buffers:
                self._forward.replace_state(spec.name, buffers[spec.name])
        if self._stage is not None:
            self._stage.replace_buffers(buffers)

    def _first_layer(
        self, stage: StageProgram, point: torch.Tensor, label: torch.Tensor
    ) -> torch.Tensor:
        stage.forward({self._input: point, self._target: label}, Moment(step=-1, microbatch=0))
        stage.backward(0, {})
        gradient = stage.take_gradients().get(self._first)
        return torch.zeros(()) if gradient is None else gradient.abs().sum().cpu()


def _last_layer_input(program: Program, logits: str) -> str:
    """What the last linear layer reads; empty if the output comes from something else."""
    for node in program.nodes:
        if node.op == _LINEAR and node.results[0].name == logits and isinstance(node.args[0], Ref):
            return node.args[0].name
    return ""


def _first_weight(program: Program) -> str:
    """The first trainable weight of two dimensions or more that the graph reads."""
    weights = {spec.name for spec in program.trainable if len(spec.shape) > 1}
    for node in program.nodes:
        for name in node.inputs():
            if name in weights:
                return name
    raise ConfigError("first-layer importance needs a layer with weights (there is none).")
