"""What stages tell each other of their gradients before the optimizer steps.

tied weights   every stage that holds a parameter adds up all parts of its gradient
global norm    every stage tells the norm of each of its gradients, and scales by the whole
"""

from __future__ import annotations

import torch

from edgeweave.device.stages.exchange import StageExchange, as_mapping
from edgeweave.device.stages.messages import Assignment
from edgeweave.program import StageProgram

__all__ = ["Reduction"]

_TIED, _NORMS = 0, 1  # the two exchanges, told apart by the microbatch field


class Reduction:
    """One stage's part in it."""

    def __init__(
        self, assignment: Assignment, stage: StageProgram, exchange: StageExchange
    ) -> None:
        self._assignment = assignment
        self._stage = stage
        self._exchange = exchange

    @property
    def is_needed(self) -> bool:
        """Whether stages have anything to tell each other."""
        return bool(self._assignment.tied) or self._assignment.clip_grad_norm is not None

    def run(self, number: int) -> None:
        """Exchange what there is in round ``number``; gradients are then those of the model."""
        self._sum_tied(number)
        if self._assignment.clip_grad_norm is not None:
            self._clip(number, self._assignment.clip_grad_norm)

    def _sum_tied(self, number: int) -> None:
        """Add up the gradients of parameters that several stages hold, in one order everywhere."""
        tied, mine = self._assignment.tied, self._assignment.stage
        peers = sorted({stage for held in tied.values() if mine in held for stage in held} - {mine})
        own = {
            name: parameter.grad
            for name, parameter in self._stage.parameters.items()
            if name in tied and parameter.grad is not None
        }
        for peer in peers:
            shared = {name: grad for name, grad in own.items() if peer in tied[name]}
            self._exchange.send("reduce", peer, number, _TIED, shared)
        parts = {mine: own}
        for peer in peers:
            parts[peer] = as_mapping(self._exchange.wait("reduce", peer, number, _TIED))
        for name in tied.keys() & self._stage.parameters.keys():
            grads = [
                parts[stage][name] for stage in sorted(parts, reverse=True) if name in parts[stage]
            ]
            if grads:
                parameter = self._stage.parameters[name]
                parameter.grad = _sum_in_order([grad.to(parameter.device) for grad in grads])

    def _clip(self, number: int, max_norm: float) -> None:
        """Scale gradients by the norm over all stages, as ``clip_grad_norm_`` does over a model."""
        mine = self._assignment.stage
        norms = {
            f"norm:{name}": torch.linalg.vector_norm(parameter.grad).item()
            for name, parameter in self._stage.parameters.items()
            if parameter.grad is not None and mine == min(self._assignment.tied.get(name, (mine,)))
        }
        others = [stage for stage in range(self._assignment.n_stages) if stage != mine]
        for peer in others:
            self._exchange.send("reduce", peer, number, _NORMS, {}, norms)
        for peer in others:
            norms.update(self._exchange.wait("reduce", peer, number, _NORMS).header.scalars)
        parameters = [p for p in self._stage.parameters.values() if p.grad is not None]
        if parameters:
            names = [f"norm:{name}" for name in self._assignment.parameter_order]
            ordered = torch.tensor(
                [norms[name] for name in names if name in norms], dtype=parameters[0].dtype
            )
            total = torch.linalg.vector_norm(ordered)
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, total)


def _sum_in_order(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The sum from left to right, in a tensor of its own."""
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor
    return total
