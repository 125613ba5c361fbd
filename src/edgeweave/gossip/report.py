"""What a gossip run came to: every peer, the mean of their models, and how far they are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev

import msgspec
import torch

from edgeweave.core.evaluation import Evaluation
from edgeweave.device import Enrolled, PeerStatus

__all__ = ["GossipReport", "PeerReport", "consensus_distance", "mean_state"]

State = Mapping[str, torch.Tensor]


class PeerReport(msgspec.Struct, frozen=True):
    """One device of a run."""

    device: str
    status: PeerStatus | None
    """What it said last; None if it never answered."""
    enrolled: Enrolled | None
    """What it brought; None where another process enrolled it."""
    there: bool
    """Whether its model is in the mean: it was there at the end, and had done a step."""
    evaluation: Evaluation | None
    """Of its own model."""


class GossipReport(msgspec.Struct, frozen=True):
    """A run of gossip, from its begin to its end."""

    run: str
    peers: tuple[PeerReport, ...]
    seconds: float
    """Of the device that took longest, whoever waited for it."""
    evaluation: Evaluation | None
    """Of the mean of all models that are there."""
    consensus_distance: float
    """Root mean square distance of a peer's model from the mean, over that mean's norm."""

    @property
    def iteration_time_cv(self) -> float:
        """Standard deviation over mean of the peers' iteration times, waiting left out."""
        told = [p.status.iteration_seconds for p in self.peers if p.there and p.status is not None]
        times = [seconds for seconds in told if seconds > 0]
        return pstdev(times) / fmean(times) if times else 0.0


def mean_state(states: Sequence[State]) -> dict[str, torch.Tensor]:
    """The mean of models, tensor by tensor; what is no float is the first one's."""
    first = states[0]
    return {
        name: torch.stack([state[name] for state in states]).mean(dim=0)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in first.items()
    }


def consensus_distance(states: Sequence[State]) -> float:
    """Root mean square distance of models from their mean, over the norm of the mean."""
    mean, names = mean_state(states), [n for n, t in states[0].items() if t.is_floating_point()]
    norm = sum(float(mean[name].double().square().sum()) for name in names) ** 0.5
    squares = [
        sum(float((state[name] - mean[name]).double().square().sum()) for name in names)
        for state in states
    ]
    return fmean(squares) ** 0.5 / norm if norm > 0 else 0.0
