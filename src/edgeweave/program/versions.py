"""A stage whose weights change while microbatches are in flight: each keeps those it began with.

    parameters   what the optimizer steps, in place
    version      the same memory under names of its own: what forwards compute with
    leaving it   the parameters go on in a copy; the old memory lives as long as a graph needs it

Buffers are no part of it: running statistics are the newest ones for everybody. Gradients belong
to the parameters, whichever version they were computed with. PipeDream (arXiv:1806.03377) calls it
weight stashing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from edgeweave.program.graph import Program
from edgeweave.program.stage import Moment, StageProgram, StageResult
from edgeweave.program.watch import UnitWatch

__all__ = ["VersionedStage", "Weights"]

Weights = Mapping[str, torch.Tensor]
"""One version of the trainable parameters, by name."""


class VersionedStage(StageProgram):
    """A ``StageProgram`` whose backwards use the weights that their forwards used.

    Call ``leave_version`` before parameters change; without that, autograd would compute with
    whatever they are by then. Gradients grow in ``parameters`` as usual.
    """

    def __init__(
        self,
        program: Program,
        state: Mapping[str, torch.Tensor],
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        take_over: bool = False,
    ) -> None:
        super().__init__(program, state, device=device, seed=seed, take_over=take_over)
        self._trained: dict[str, nn.Parameter] = {
            name: parameter
            for name, parameter in self.parameters.items()
            if parameter.requires_grad
        }
        self._used: dict[int, Weights] = {}
        self._current: Weights = {}
        self._begin_version()

    @property
    def version(self) -> Weights:
        """The trainable parameters as the next forward uses them."""
        return self._current

    @property
    def n_older_versions(self) -> int:
        """How many versions but the newest microbatches in flight still need."""
        return len({id(used) for used in self._used.values() if used is not self._current})

    def forward(
        self,
        inputs: Mapping[str, torch.Tensor],
        moment: Moment,
        *,
        key: int | None = None,
        watch: UnitWatch | None = None,
    ) -> StageResult:
        """As ``StageProgram.forward``, with the newest version, which is noted."""
        result = super().forward(inputs, moment, key=key, watch=watch)
        self._used[moment.microbatch if key is None else key] = self._current
        return result

    def backward(
        self, microbatch: int, gradients: Weights, *, loss_weight: float = 1.0
    ) -> dict[str, torch.Tensor]:
        """As ``StageProgram.backward``, with the version that the forward used."""
        with self._gathering(self._used.pop(microbatch, self._current)):
            return super().backward(microbatch, gradients, loss_weight=loss_weight)

    def forget(self, microbatch: int) -> None:
        """As ``StageProgram.forget``; the version that it used is freed."""
        super().forget(microbatch)
        self._used.pop(microbatch, None)

    def leave_version(self, *, keep: bool = False) -> None:
        """The parameters are about to change.

        If a microbatch in flight uses them, or with ``keep``, they go on in a copy, and the present
        ``version`` stays as it is; it is freed with the last reference to it.
        """
        if keep or any(used is self._current for used in self._used.values()):
            self.set_version({name: p.data.clone() for name, p in self._trained.items()})

    def set_version(self, weights: Weights) -> None:
        """Let the parameters be these tensors, which are taken over; older versions stay."""
        for name, parameter in self._trained.items():
            parameter.data = weights[name]
        self._begin_version()

    def _begin_version(self) -> None:
        """Leaves on the parameters' memory. An update in place is not noticed by autograd."""
        self._current = {name: p.data.requires_grad_() for name, p in self._trained.items()}
        for name, tensor in self._current.items():
            self._training.replace_state(name, tensor)

    @contextmanager
    def _gathering(self, used: Weights) -> Iterator[None]:
        """Inside, gradients of a version add to those of the parameters, without a copy."""
        for name, parameter in self._trained.items():
            used[name].grad, parameter.grad = parameter.grad, None
        try:
            yield
        finally:
            for name, parameter in self._trained.items():
                parameter.grad, used[name].grad = used[name].grad, None
