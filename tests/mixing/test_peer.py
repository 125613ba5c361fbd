"""Peers whose messages a test delivers in the order it likes: the numbers do not depend on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch

from edgeweave.mixing import (
    Effect,
    GossipSettings,
    Message,
    Peer,
    Send,
    Train,
    Trained,
    topology,
)

STEPS = 6


class Wires:
    """Peers, what is on its way between each two of them, and no clock."""

    def __init__(self, settings: GossipSettings) -> None:
        self.now = 0.0
        self.ways: dict[tuple[str, str], deque[Message]] = {}
        self.training: dict[str, Train] = {}
        self.peers: dict[str, Peer] = {}
        for number, name in enumerate(settings.graph.peers):
            self.peers[name] = Peer(
                settings,
                name,
                torch.zeros(5),
                steps=STEPS,
                apply=_own_direction(number),
                incarnation=number + 1,
                patience_seconds=60.0,
            )

    def start(self, name: str) -> None:
        self._perform(name, self.peers[name].start(self.now))

    def find(self, name: str, other: str) -> None:
        self._perform(name, self.peers[name].found(self.now, other))

    def deliver(self, source: str, target: str, n: int = 1) -> None:
        way = self.ways.get((source, target), deque())
        for _ in range(min(n, len(way))):
            self._perform(target, self.peers[target].heard(self.now, source, way.popleft()))

    def train(self, name: str) -> None:
        del self.training[name]
        done = Trained(1, 1.0, 0.0)
        self._perform(name, self.peers[name].trained(self.now, done))

    def stop(self, name: str) -> None:
        self._perform(name, self.peers[name].stop(self.now))

    def settle(self) -> None:
        """Deliver and train until nothing happens any more."""
        while any(self.ways.values()) or self.training:
            for source, target in list(self.ways):
                self.deliver(source, target)
            for name in list(self.training):
                self.train(name)

    def models(self) -> list[torch.Tensor]:
        assert all(peer.phase == "finished" for peer in self.peers.values())
        return [peer.model for peer in self.peers.values()]

    def _perform(self, name: str, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self.ways.setdefault((name, effect.to), deque()).append(effect.message)
            elif isinstance(effect, Train):
                self.training[name] = effect


def _own_direction(number: int) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """An optimizer that takes another peer's model elsewhere than its own, and never far."""

    def apply(model: torch.Tensor, step: int) -> torch.Tensor:
        return model * 0.9 + torch.arange(5.0) * (number + 1) + step

    return apply


def settings_of(n: int) -> GossipSettings:
    return GossipSettings(
        topology("ring", [f"p{k}" for k in range(n)]), batch_size=4, importance="none"
    )


def in_order(n: int) -> list[torch.Tensor]:
    """Everybody is there before anybody begins."""
    wires = Wires(settings_of(n))
    for name, peer in wires.peers.items():
        for other in peer.neighbours:
            wires.find(name, other)
    for name in wires.peers:
        wires.start(name)
    wires.settle()
    return wires.models()


def test_a_neighbour_found_after_its_hello_came_changes_no_number() -> None:
    """Bug: being found opened a new session over the one that the neighbour had begun to use."""
    wires = Wires(settings_of(2))
    wires.start("p0")
    wires.start("p1")
    wires.find("p0", "p1")  # p0 greets
    wires.deliver("p0", "p1")  # p1 answers,
    wires.find("p1", "p0")  # and greets in turn, while its answer is on the way
    wires.deliver("p1", "p0")  # p0 opens the edge and begins
    assert "p0" in wires.training
    wires.settle()
    for found, wanted in zip(wires.models(), in_order(2), strict=True):
        assert torch.equal(found, wanted)
    assert [peer.statistics.n_closed for peer in wires.peers.values()] == [0, 0]


def test_a_lost_model_breaks_the_edge_and_the_pairs_meet_again() -> None:
    """Else every later message would be mixed with the one before its own."""
    wires = Wires(settings_of(2))
    for name, other in (("p0", "p1"), ("p1", "p0")):
        wires.find(name, other)
        wires.start(name)
    for _ in range(2):
        wires.deliver("p0", "p1")
        wires.deliver("p1", "p0")
    assert set(wires.training) == {"p0", "p1"}
    assert [m.kind for m in wires.ways["p0", "p1"]] == ["model"]
    wires.ways["p0", "p1"].clear()
    wires.deliver("p1", "p0")
    wires.train("p0")  # p0 is in its second iteration, p1 waits for the message that was lost
    wires.train("p1")
    assert wires.peers["p0"].step == 1
    assert wires.peers["p1"].step == 0
    wires.settle()
    assert [peer.step for peer in wires.peers.values()] == [STEPS, STEPS]
    assert all(peer.statistics.n_closed == 1 for peer in wires.peers.values())


def test_a_peer_that_is_stopped_keeps_its_model_and_the_other_goes_on() -> None:
    wires = Wires(settings_of(2))
    for name, other in (("p0", "p1"), ("p1", "p0")):
        wires.find(name, other)
        wires.start(name)
    for _ in range(4):
        wires.deliver("p0", "p1")
        wires.deliver("p1", "p0")
    wires.train("p0")
    wires.stop("p0")
    assert wires.peers["p0"].phase == "finished"
    kept = wires.peers["p0"].model
    wires.settle()
    assert torch.equal(wires.peers["p0"].model, kept)
    assert wires.peers["p0"].step < wires.peers["p1"].step == STEPS
    assert wires.peers["p1"].statistics.n_closed == 0  # it was told, and waited for nobody
