"""What a device brings to every run, of whatever kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from edgeweave.core.clock import Clock
from edgeweave.core.timeouts import Timeouts
from edgeweave.device.pacing import UnitMemory
from edgeweave.device.settings import AgentSettings
from edgeweave.device.throttle import Throttle
from edgeweave.net import Transport

__all__ = ["Workplace"]


@dataclass(frozen=True, slots=True)
class Workplace:
    """What a device brings to every run."""

    settings: AgentSettings
    transport: Transport
    clock: Clock
    timeouts: Timeouts
    throttle: Throttle
    torch_device: torch.device
    n_threads: int
    run_task: Callable[[str, bytes], bytes]
    units: UnitMemory
    """What this device profiled, in seconds at the speed it was started with."""

    def slowdown(self) -> float:
        """How many times slower the device is than it was started, by ``Emulate``."""
        started, now = self.settings.speed, self.throttle.speed
        return 1.0 if started is None or now is None else started / now
