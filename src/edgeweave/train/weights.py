"""The coordinator's copy of what the devices hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from edgeweave.device import received_state

__all__ = ["StateSource", "Weights"]


class StateSource(Protocol):
    """Whoever can tell the state of a run."""

    def fetch_state(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Weights and optimizer state by device, as safetensors."""


@dataclass(slots=True)
class Weights:
    """Weights, buffers and the optimizer's state after ``step`` steps, always all of one step."""

    state: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor] = field(default_factory=dict)
    step: int = 0

    def fetch(self, run: StateSource, step: int) -> None:
        """Take everything over from the devices, which have done ``step`` steps."""
        weights, optimizers = run.fetch_state()
        received = [received_state(data, device) for device, data in weights.items()]
        entries = [received_state(data, device) for device, data in optimizers.items()]
        self.state.update(_joined(received))
        self.optimizer = _joined(entries)
        self.step = step

    def take(self, step: int, states: Iterable[Mapping[str, torch.Tensor]]) -> None:
        """Take over what training changed, the optimizer's part as ``<parameter>|<entry>``."""
        if step < self.step:
            return
        joined = _joined(states)
        self.state.update({name: t for name, t in joined.items() if "|" not in name})
        self.optimizer = {name: t for name, t in joined.items() if "|" in name}
        self.step = step


def _joined(parts: Iterable[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: tensor for part in parts for name, tensor in part.items()}
