"""What one run of gossip is: who, how they mix, how much each trains. A checked value."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from edgeweave.codec import Codec, none
from edgeweave.core.errors import ConfigError
from edgeweave.core.words import suggest
from edgeweave.mixing.balance import BalanceSettings, Scoring
from edgeweave.mixing.exchange import ALGORITHMS, Algorithm, Exchange
from edgeweave.mixing.importance import CHOOSINGS, IMPORTANCES, Choosing, Importance
from edgeweave.mixing.matched import Matched
from edgeweave.mixing.neighbours import Neighbours
from edgeweave.mixing.pairwise import Pairwise
from edgeweave.mixing.push_sum import PushSum
from edgeweave.mixing.topology import Topology

__all__ = ["GossipSettings", "exchange_of", "graph_of"]

_LEAST_GROUPS = 8
_SCORED_EVERY, _POINTS_PER_SAMPLE = 8, 2.0
"""Old scores do for a weighted choice, which they shift nowhere."""


@dataclass(frozen=True, slots=True)
class GossipSettings:
    """Everything the peers of a run have in common, but program, data and the number of steps."""

    graph: Topology
    batch_size: int
    algorithm: Algorithm = "d-psgd"
    local_steps: int = 1
    """Steps between two exchanges."""
    balance: BalanceSettings = field(default_factory=BalanceSettings)
    importance: Importance = "last-layer"
    """How balanced devices choose what they train on; of whole batches everything is trained."""
    choosing: Choosing = "weighted"
    """What is taken of the groups that were scored."""
    group_size: int = 8
    """Samples that one aggregated point stands for, at most: a batch has at least eight groups, so
    that what is chosen is not all of one class."""
    warm_up_epochs: int = 1
    """Epochs in which samples are chosen at random, because scores say nothing yet."""
    codec: Codec = field(default_factory=none)
    consensus_rate: float = 1.0
    """Of the way to the average, how much an exchange goes: lower for codecs of few bits."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known, got in (
            ("algorithm", ALGORITHMS, self.algorithm),
            ("importance", IMPORTANCES, self.importance),
            ("choosing", CHOOSINGS, self.choosing),
        ):
            if got not in known:
                raise ConfigError(f"unknown {name} {got!r}. {suggest(str(got), known)}")
        counts = {
            "batch_size": self.batch_size,
            "local_steps": self.local_steps,
            "group_size": self.group_size,
        }
        for name, count in counts.items():
            if count < 1:
                raise ConfigError(f"{name} is 1 or more (got {count}).")
        if not 0 < self.consensus_rate <= 1 or self.warm_up_epochs < 0 or self.seed < 0:
            raise ConfigError(
                "consensus_rate is above 0 and at most 1, warm_up_epochs and seed are 0 or more "
                f"(got {self.consensus_rate}, {self.warm_up_epochs}, {self.seed})."
            )
        if self.algorithm == "push-sum" and self.codec.name != "none":
            raise ConfigError(
                f"push-sum sends running sums, which {self.codec} would lose mass of. "
                "Leave the codec out, or use d-psgd."
            )

    @property
    def selects(self) -> bool:
        """Whether samples are ever chosen by score."""
        thinned = self.balance.enabled or self.balance.share is not None
        return thinned and self.importance != "none"

    @property
    def samples_per_point(self) -> int:
        """Members of a group, about."""
        return max(1, min(self.group_size, self.batch_size // _LEAST_GROUPS))

    @property
    def points_per_batch(self) -> int:
        """Aggregated points that stand for a whole batch; 0 where samples are never chosen."""
        return -(-self.batch_size // self.samples_per_point) if self.selects else 0

    @property
    def scoring(self) -> Scoring:
        """How many points are scored to choose samples, and how often."""
        if self.choosing == "groups":
            return Scoring(0.0, self.points_per_batch, self.points_per_batch)
        return Scoring(_POINTS_PER_SAMPLE, 1, 2 * self.batch_size, _SCORED_EVERY)


def graph_of(settings: GossipSettings) -> Topology:
    """The edges that the algorithm uses."""
    return settings.graph.sides()[1] if settings.algorithm == "ad-psgd" else settings.graph


def exchange_of(settings: GossipSettings, me: str, model: torch.Tensor) -> Exchange:
    """One peer's side of the algorithm, beginning with ``model``."""
    graph, rate = settings.graph, settings.consensus_rate
    seed = (settings.seed * 1_000_003 + graph.peers.index(me) * 65_537) % 2**48
    if settings.algorithm == "push-sum":
        return PushSum(model)
    if settings.algorithm == "ad-psgd":
        asks = me in graph.sides()[0]
        return Pairwise(model, settings.codec, asks=asks, rate=rate, seed=seed)
    if settings.algorithm == "gossip-sgd":
        return Matched(
            model,
            me,
            graph,
            settings.codec,
            rate=rate,
            seed=settings.seed,
        )
    return Neighbours(model, graph.peers, settings.codec, rate=rate, seed=seed)
