"""What distinguishes one agent from another, and what follows from it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from edgeweave.core.errors import ConfigError

__all__ = ["AgentSettings"]


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """One agent. ``speed`` emulates a fraction of one host core; None is a real device.

    ``device`` is where torch computes (cpu, cuda, mps); ``threads=None`` chooses. Probes are
    kept in ``cache_directory``; None keeps them in memory.
    """

    name: str
    fleet: str = "default"
    speed: float | None = None
    memory_limit_bytes: int | None = None
    device: str = "cpu"
    threads: int | None = None
    cache_directory: str | None = None

    def torch_device(self) -> torch.device:
        """The device by name; ``ConfigError`` if torch cannot compute there."""
        try:
            device = torch.device(self.device)
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(
                f"torch cannot compute on {self.device!r} here ({str(error).splitlines()[0]}). "
                "Choose cpu, cuda or mps."
            ) from error
        return device

    def choose_threads(self) -> tuple[int, str]:
        """How many threads torch computes with, and why."""
        cores = os.cpu_count() or 1
        if self.speed is not None:
            return 1, "threads=1 (emulated: a fraction of one core)"
        if self.threads is not None:
            return self.threads, f"threads={self.threads} (as asked)"
        threads = max(cores - 1, 1)
        return threads, f"threads={threads} ({cores} cores, {cores - threads} kept for I/O)"
