"""How often the stages' states are copied to where they survive their device.

    chain    each stage's to the next one's device, the last one's to the first: any one device may
             vanish, and more that are no neighbours
    whole    all of them to the coordinator: any number may vanish

FTPipeHD calls them local and global replication, every 100 and 200 batches (its public code).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from edgeweave.core.errors import ConfigError
from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.plan.costs import Costs

__all__ = ["Replication", "replication_for"]

_LINK_SHARE = 0.05
"""Of a link's time, while activations and gradients go first."""
_LEAST_STEPS = 10
_WHOLE_PER_CHAIN = 2


@dataclass(frozen=True, slots=True)
class Replication:
    """Steps from one copy to the next. After a failure at most so many are computed again."""

    chain_every: int = 100
    whole_every: int = 200

    def __post_init__(self) -> None:
        if min(self.chain_every, self.whole_every) < 1:
            raise ConfigError(
                "states are copied every step or less often (got "
                f"{self.chain_every} and {self.whole_every}). Use at least 1."
            )


def replication_for(
    devices: tuple[str, ...], bounds: tuple[int, ...], step_seconds: float, costs: Costs
) -> Replication:
    """Intervals for which copying keeps no link busier than a twentieth of the time."""
    sizes = [
        math.ceil(
            sum(
                each.trainable_bytes * (1 + costs.optimizer_bytes_per_trainable_byte)
                + each.buffer_bytes
                for each in costs.units[first:stop]
            )
        )
        for first, stop in pairwise(bounds)
    ]
    to_next = zip(devices, (*devices[1:], *devices[:1]), strict=True)
    chain_seconds = max(
        (
            costs.link(source, target).occupied_seconds(size)
            for size, (source, target) in zip(sizes, to_next, strict=True)
            if source != target
        ),
        default=0.0,
    )
    whole_seconds = sum(
        costs.link(device, COORDINATOR_NAME).occupied_seconds(size)
        for size, device in zip(sizes, devices, strict=True)
    )
    chain = _steps(chain_seconds, step_seconds)
    return Replication(chain, max(_steps(whole_seconds, step_seconds), _WHOLE_PER_CHAIN * chain))


def _steps(seconds: float, step_seconds: float) -> int:
    if not step_seconds:
        return _LEAST_STEPS
    return max(_LEAST_STEPS, math.ceil(seconds / step_seconds / _LINK_SHARE))
