"""One member of a sliced program with its weights: forward and backward, segment by segment.

What it receives it is handed, what it makes it hands back: whoever calls decides what becomes of
parts that are lost. Weights are stashed as in a pipeline without flush (``versions``).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from edgeweave.program.graph import Program
from edgeweave.program.operators import DTYPES
from edgeweave.program.shares import Share
from edgeweave.program.slice import Sliced
from edgeweave.program.sliced_state import put, taken
from edgeweave.program.spans import Span, positions
from edgeweave.program.stage import Moment, StageResult
from edgeweave.program.transfers import Shard, Transfer
from edgeweave.program.versions import VersionedStage

__all__ = ["Member", "Part", "Routes"]

Part = tuple[Transfer, torch.Tensor]
"""What a transfer brought: values forward, gradients backward."""


class Routes:
    """Where in the tensors of its two ends each transfer's part lies."""

    def __init__(self, sliced: Sliced) -> None:
        self._sliced = sliced
        self.arriving: dict[Shard, list[Transfer]] = {}
        self.leaving: dict[Shard, list[Transfer]] = {}
        for transfer in sliced.transfers:
            self.arriving.setdefault(transfer.target, []).append(transfer)
            self.leaving.setdefault(transfer.source, []).append(transfer)
        self._at_source = {t: self._source_span(t) for t in sliced.transfers}
        self._at_target = {t: self._target_span(t) for t in sliced.transfers}

    def cut_from_source(self, transfer: Transfer, tensor: torch.Tensor) -> torch.Tensor:
        """The transfer's part of what its source holds."""
        return taken(tensor, transfer.dim, self._at_source[transfer])

    def add_at_source(self, transfer: Transfer, into: torch.Tensor, part: torch.Tensor) -> None:
        """Add a gradient to that of what the source holds."""
        put(into, transfer.dim, self._at_source[transfer], part)

    def cut_from_target(self, transfer: Transfer, tensor: torch.Tensor) -> torch.Tensor:
        """The transfer's part of the gradient of what its target was given."""
        return taken(tensor, transfer.dim, self._at_target[transfer])

    def add_at_target(self, transfer: Transfer, into: torch.Tensor, part: torch.Tensor) -> None:
        """Add a part to what the target is given."""
        put(into, transfer.dim, self._at_target[transfer], part)

    def _source_span(self, transfer: Transfer) -> Span:
        lies = self._sliced.held[transfer.value].lies
        if not isinstance(lies, Share):
            return transfer.span
        return positions(transfer.span, lies.spans[transfer.source.member])

    def _target_span(self, transfer: Transfer) -> Span:
        asked = self._sliced.segments[transfer.target.segment].asked[transfer.value]
        if not asked:
            return transfer.span
        return positions(transfer.span, asked[0].spans[transfer.target.member])


class Member:
    """The segments of one member. ``own`` is its part of the state (``slice_state``), copied."""

    def __init__(
        self,
        sliced: Sliced,
        group: int,
        member: int,
        own: Mapping[str, torch.Tensor],
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self._weights = {n: s.loss_weight for n, s in enumerate(sliced.segments)}
        self._stages: dict[int, VersionedStage] = {}
        for number, segment in enumerate(sliced.segments):
            program = segment.programs[member] if segment.group == group else None
            if program is not None:
                self._stages[number] = VersionedStage(program, own, seed=seed, device=device)

    @property
    def segments(self) -> tuple[int, ...]:
        """Numbers of the segments in which it holds anything, ascending."""
        return tuple(self._stages)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What it trains, under the user's names."""
        return {
            name: parameter
            for stage in self._stages.values()
            for name, parameter in stage.parameters.items()
            if parameter.requires_grad
        }

    def program(self, segment: int) -> Program:
        return self._stages[segment].program

    def blank(self, segment: int, batch: int) -> dict[str, torch.Tensor]:
        """Its inputs from other segments if nothing arrives: zeros."""
        return {
            value.name: torch.zeros(value.shape_at(batch), dtype=DTYPES[value.dtype])
            for value in self.program(segment).inputs
            if not value.name.startswith(("input:", "target:"))
        }

    def forward(
        self, segment: int, inputs: Mapping[str, torch.Tensor], moment: Moment, *, key: int
    ) -> StageResult:
        """Compute a segment and keep what its backward needs, under ``key``."""
        return self._stages[segment].forward(inputs, moment, key=key)

    def backward(
        self,
        segment: int,
        key: int,
        gradients: Mapping[str, torch.Tensor],
        *,
        loss_weight: float = 1.0,
    ) -> dict[str, torch.Tensor]:
        """Add the segment's gradients to the parameters; those of its inputs."""
        weight = self._weights[segment] * loss_weight
        return self._stages[segment].backward(key, gradients, loss_weight=weight)

    def forget(self, segment: int, key: int) -> None:
        """Give up a microbatch that will have no backward."""
        self._stages[segment].forget(key)

    def evaluate(self, segment: int, inputs: Mapping[str, torch.Tensor]) -> StageResult:
        """Compute a segment as ``model.eval()`` does."""
        return self._stages[segment].evaluate(inputs)

    def leave_version(self) -> None:
        """Parameters are about to change; microbatches in flight keep those they began with."""
        for stage in self._stages.values():
            stage.leave_version()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Its part, under the user's names; not copies."""
        found: dict[str, torch.Tensor] = {}
        for stage in self._stages.values():
            found |= stage.state_dict()
        return found
