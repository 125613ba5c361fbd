"""Exchanges of several peers in one place: every message delivered when a test says so."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

import torch

from edgeweave.mixing import Exchange, GossipSettings, Send, exchange_of, graph_of

WIDTH = 7


def models(n: int, seed: int = 0, width: int = WIDTH) -> list[torch.Tensor]:
    """A different model for each peer."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(width, generator=generator) for _ in range(n)]


class World:
    """The exchanges of a run, with all edges of the algorithm's graph open."""

    def __init__(self, settings: GossipSettings, *, seed: int = 0, width: int = WIDTH) -> None:
        self.graph = graph_of(settings)
        first = models(len(self.graph.peers), seed, width)
        self.peers: dict[str, Exchange] = {
            name: exchange_of(settings, name, model)
            for name, model in zip(self.graph.peers, first, strict=True)
        }
        self.queue: deque[tuple[str, Send]] = deque()
        for a, b in self.graph.edges:
            self.open(a, b)

    def open(self, a: str, b: str, *, incarnation: int = 1) -> None:
        for one, other in ((a, b), (b, a)):
            sends = self.peers[one].opened(other, incarnation=incarnation, round_number=0)
            self.post(one, sends)

    def close(self, a: str, b: str) -> None:
        self.peers[a].closed(b)
        self.peers[b].closed(a)
        self.queue = deque((s, x) for s, x in self.queue if {s, x.to} != {a, b})

    def post(self, source: str, sends: list[Send]) -> None:
        self.queue.extend((source, send) for send in sends)

    def deliver(self, *, loses: Callable[[str, str], bool] = lambda _a, _b: False) -> None:
        """Deliver all that was sent, and what that leads to."""
        while self.queue:
            source, send = self.queue.popleft()
            if not loses(source, send.to):
                self.post(send.to, self.peers[send.to].heard(source, send.message))

    def round(self) -> None:
        """One iteration of everybody, without training."""
        for name, peer in self.peers.items():
            self.post(name, peer.begin())
        self.deliver()
        for peer in self.peers.values():
            assert peer.waits_for() == ()
            peer.finish()

    def values(self) -> torch.Tensor:
        return torch.stack([peer.model for peer in self.peers.values()])


def mean_of(models_: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(models_.values())).double().mean(dim=0)
