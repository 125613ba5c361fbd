"""The stages of a cut program in one process, with a codec in every cut.

    stage 0 --activation, to nearest--> stage 1 --...--> stage 2 -> loss
            <----gradient, at random---         <--...--

A stage's backward uses its own outputs as they were, not what the next stage made of the coded
ones: a device has no other, and rounding has no useful derivative ("straight through").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from edgeweave.codec import Codec, decode, encode
from edgeweave.program import Moment, Program, StageProgram, flatten_inputs
from edgeweave.program.stage import unit_seed

__all__ = ["Batch", "CodedStages"]

Batch = tuple[Any, Any]
"""What the model takes, and the target."""

_Tensors = dict[str, torch.Tensor]


class CodedStages:
    """Stages that own a copy of ``state``, and train on one microbatch after another.

    A gradient's rounding follows from ``seed``, step, microbatch and the stage that sends it.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        state: Mapping[str, torch.Tensor],
        codec: Codec,
        *,
        seed: int,
    ) -> None:
        self._programs, self._state, self._codec, self._seed = programs, dict(state), codec, seed
        self._stages = [StageProgram(program, state, seed=seed) for program in programs]

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Of all stages, in their order."""
        return [each for stage in self._stages for each in stage.parameters.values()]

    def with_codec(self, codec: Codec) -> CodedStages:
        """The same weights and buffers, copied, and no gradients yet."""
        state = dict(self._state)
        for stage in self._stages:
            state |= stage.state_dict()
        return CodedStages(self._programs, state, codec, seed=self._seed)

    def learn(self, batch: Batch, moment: Moment, *, loss_weight: float = 1.0) -> float:
        """Add the gradients of one microbatch to those of the parameters; return its loss."""
        arriving = flatten_inputs(*batch)
        for stage in self._stages:
            result = stage.forward(arriving, moment)
            arriving |= self._coded(result.outputs, seed=None)
        gradients: _Tensors = {}
        for index, stage in reversed(list(enumerate(self._stages))):
            found = stage.backward(moment.microbatch, gradients, loss_weight=loss_weight)
            gradients = self._coded(found, seed=unit_seed(self._seed, moment, index))
        assert result.loss is not None
        return float(result.loss)

    def gradient(self, batch: Batch, moment: Moment) -> torch.Tensor:
        """Of all parameters, in one row, as ``learn`` left it; for stages that learnt nothing."""
        self.learn(batch, moment)
        found = (each.grad for each in self.parameters)
        return torch.cat([each.flatten() for each in found if each is not None])

    def evaluate(self, batch: Batch) -> dict[str, float]:
        """Loss and metrics of the model as it would be used: in one piece, nothing coded."""
        arriving = flatten_inputs(*batch)
        for stage in self._stages:
            result = stage.evaluate(arriving)
            arriving |= result.outputs
        assert result.loss is not None
        return {"loss": float(result.loss)} | {k: float(v) for k, v in result.metrics.items()}

    def _coded(self, tensors: _Tensors, *, seed: int | None) -> _Tensors:
        """What a neighbour makes of the tensors; rounded at random with a seed, else to nearest."""
        return {
            name: decode(encode(tensor, self._codec, seed=None if seed is None else seed + index))
            for index, (name, tensor) in enumerate(tensors.items())
        }
