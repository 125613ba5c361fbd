"""A gossip run on a virtual clock: the peers of real devices, real training, modelled time.

    events by moment:  a message arrives | a gradient is done | a peer wakes | a script acts

Everything is computed on this thread, in the order of virtual time: a thousand peers need no
thousand threads, and the same seed gives the same bits. What an iteration takes follows from each
device's costs, which are measured on real ones; what a message takes from the links, as
``edgeweave.net.link_model`` has it. Peers are lost, return and are cut off when a script says so;
others notice after ``detection_seconds``.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import torch

from edgeweave.core.errors import ConfigError
from edgeweave.device import Learner
from edgeweave.mixing import (
    Effect,
    Finished,
    GossipSettings,
    Message,
    Peer,
    Send,
    Train,
    Trained,
    Wake,
    graph_of,
)
from edgeweave.net import Links
from edgeweave.net.link_model import LinkModel

__all__ = ["DeviceCosts", "VirtualGossip"]

_HEADER_BYTES = 300
"""What a frame says beside its tensors, about."""
_PATIENCE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class DeviceCosts:
    """What a device takes, in seconds."""

    seconds_per_sample: float
    """Forward, backward: of each sample trained on."""
    seconds_per_point: float = 0.0
    """Of each aggregated point that is scored."""
    other_seconds: float = 0.0
    """Mixing and updating, once an iteration."""

    def slowed(self, factor: float) -> DeviceCosts:
        """The costs of a device that takes so many times as long."""
        return DeviceCosts(
            factor * self.seconds_per_sample,
            factor * self.seconds_per_point,
            factor * self.other_seconds,
        )


@dataclass(slots=True)
class _Member:
    """A device: its peer while it lives, and what a new one is made of."""

    peer: Peer
    learner: Learner
    costs: DeviceCosts
    alive: bool = True
    life: int = 1
    began_at: float = 0.0


class VirtualGossip:
    """A run of ``settings`` among ``devices``: a learner and costs for every peer of the graph."""

    def __init__(
        self,
        settings: GossipSettings,
        devices: Mapping[str, tuple[Learner, DeviceCosts]],
        model: torch.Tensor,
        *,
        steps: int,
        links: Links | None = None,
        detection_seconds: float = 0.01,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        missing = set(settings.graph.peers) - devices.keys()
        if missing:
            raise ConfigError(f"every peer has a device ({sorted(missing)[0]} has none).")
        self.now = 0.0
        self.bytes_carried = 0
        self._settings = settings
        self._model = model
        self._steps = steps
        self._patience_seconds = patience_seconds
        self._links = links or Links()
        self._models: dict[tuple[str, str], LinkModel] = {}
        self._detection = detection_seconds
        self._cut: frozenset[frozenset[str]] = frozenset()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._members = {
            name: _Member(self._new_peer(name, *devices[name], life=1), *devices[name])
            for name in settings.graph.peers
        }
        for name in self._members:
            self._start(name, returning=False)

    @property
    def peers(self) -> Mapping[str, Peer]:
        """The peers that live, by name."""
        return {name: m.peer for name, m in self._members.items() if m.alive}

    def learner(self, name: str) -> Learner:
        """What computes for a peer."""
        return self._members[name].learner

    def models(self) -> dict[str, torch.Tensor]:
        """The models now, of those that live."""
        return {name: peer.model for name, peer in self.peers.items()}

    def run(self, until: float = float("inf")) -> bool:
        """Let happen what happens until then, or until all are done; whether all are done."""
        while self._events and self._events[0][0] <= until:
            if all(peer.phase == "finished" for peer in self.peers.values()):
                break
            self.now, _, happen = heapq.heappop(self._events)
            happen()
        return all(peer.phase == "finished" for peer in self.peers.values())

    def at(self, moment: float, act: Callable[[], None]) -> None:
        """Call ``act`` at a moment of the virtual clock."""
        heapq.heappush(self._events, (max(moment, self.now), next(self._numbers), act))

    def kill(self, name: str) -> None:
        """End a device without a word."""
        member = self._members[name]
        member.alive = False
        self._tell_neighbours(name, there=False)

    def leave(self, name: str) -> None:
        """Let a device leave in peace."""
        member = self._members[name]
        self._perform(name, member.peer.leave(self.now))
        member.alive = False
        self._tell_neighbours(name, there=False)

    def revive(self, name: str) -> None:
        """Start a device that was killed: it knows nothing, and asks a neighbour."""
        member = self._members[name]
        member.alive, member.life = True, member.life + 1
        member.peer = self._new_peer(name, member.learner, member.costs, life=member.life)
        self._start(name, returning=True)
        self._tell_neighbours(name, there=True)

    def join(self, name: str, learner: Learner, costs: DeviceCosts, near: Collection[str]) -> None:
        """A device that nobody knew joins as a neighbour of some."""
        graph = self._settings.graph.with_peer(name, near)
        self._settings = replace(self._settings, graph=graph)
        peer = self._new_peer(name, learner, costs, life=1)
        self._members[name] = _Member(peer, learner, costs)
        self._start(name, returning=True)

    def cut(self, *islands: Collection[str]) -> None:
        """Nothing passes between islands from now on; what is on its way is lost."""
        self._cut = frozenset(frozenset(island) for island in islands)
        self._tell_cut(there=False, islands=self._cut)

    def heal(self) -> None:
        """Everything passes again."""
        islands, self._cut = self._cut, frozenset()
        self._tell_cut(there=True, islands=islands)

    def _new_peer(self, name: str, learner: Learner, costs: DeviceCosts, *, life: int) -> Peer:
        rank = self._settings.graph.peers.index(name)
        return Peer(
            self._settings,
            name,
            self._model,
            steps=self._steps,
            apply=learner.apply,
            incarnation=1 + rank + 100_000 * life,
            patience_seconds=self._patience_seconds,
        )

    def _start(self, name: str, *, returning: bool) -> None:
        peer = self._members[name].peer
        self.at(self.now, lambda: self._perform(name, peer.start(self.now, returning=returning)))
        for other in graph_of(self._settings).neighbours(name):
            if other in self._members and self._members[other].alive and self._passes(name, other):
                self._tell(name, other, there=True)

    def _tell_neighbours(self, name: str, *, there: bool) -> None:
        for other in graph_of(self._settings).neighbours(name):
            if other in self._members and self._passes(name, other):
                self._tell(other, name, there=there)

    def _tell_cut(self, *, there: bool, islands: Collection[Collection[str]]) -> None:
        for a, b in graph_of(self._settings).edges:
            if not any(a in island and b in island for island in islands):
                if there and not (self._members[a].alive and self._members[b].alive):
                    continue
                self._tell(a, b, there=there)
                self._tell(b, a, there=there)

    def _tell(self, name: str, other: str, *, there: bool) -> None:
        """A peer notices that another came or went, after a while."""
        member = self._members[name]
        peer, delay = member.peer, 0.0 if there else self._detection

        def notice() -> None:
            event = peer.found if there else peer.lost
            self._perform(name, event(self.now, other), of=peer)

        self.at(self.now + delay, notice)

    def _passes(self, a: str, b: str) -> bool:
        return not self._cut or any(a in island and b in island for island in self._cut)

    def _perform(self, name: str, effects: list[Effect], *, of: Peer | None = None) -> None:
        member = self._members[name]
        if not member.alive or (of is not None and of is not member.peer):
            return
        for effect in effects:
            if isinstance(effect, Send):
                self._carry(name, effect)
            elif isinstance(effect, Train):
                self._train(name, effect)
            elif isinstance(effect, Wake):
                peer = member.peer
                self.at(effect.at_seconds, self._waking(name, peer))
            elif isinstance(effect, Finished):
                continue

    def _waking(self, name: str, peer: Peer) -> Callable[[], None]:
        return lambda: self._perform(name, self._if_alive(name, peer, peer.woke), of=peer)

    def _if_alive(
        self, name: str, peer: Peer, event: Callable[[float], list[Effect]]
    ) -> list[Effect]:
        member = self._members[name]
        return event(self.now) if member.alive and member.peer is peer else []

    def _carry(self, name: str, send: Send) -> None:
        """A message travels; it is lost with its receiver, or where nothing passes."""
        target, message = send.to, send.message
        if target not in self._members or not self._passes(name, target):
            return
        ends = (name, target)
        if ends not in self._models:
            shape = self._links.shape(*ends)
            self._models[ends] = LinkModel(shape, ends, seed=self._links.seed)
        n_bytes = message.n_bytes + _HEADER_BYTES
        self.bytes_carried += n_bytes
        arrives = self._models[ends].carry(self.now, n_bytes).arrives_at
        self.at(arrives, lambda: self._arrive(name, target, message))

    def _arrive(self, source: str, target: str, message: Message) -> None:
        member = self._members[target]
        if member.alive and self._passes(source, target):
            self._perform(target, member.peer.heard(self.now, source, message))

    def _train(self, name: str, train: Train) -> None:
        """Compute now; it is done once the device would be."""
        member = self._members[name]
        peer, costs = member.peer, member.costs
        computed = member.learner.train(train.model, train.n_samples, train.step)
        trained = replace(
            computed,
            seconds=costs.seconds_per_sample * computed.n_samples,
            scoring_seconds=costs.seconds_per_point * computed.n_scored,
            other_seconds=costs.other_seconds,
        )
        self.at(self.now + _duration(trained), lambda: self._done(name, peer, trained))

    def _done(self, name: str, peer: Peer, trained: Trained) -> None:
        effects = self._if_alive(name, peer, lambda now: peer.trained(now, trained))
        self._perform(name, effects, of=peer)


def _duration(trained: Trained) -> float:
    return trained.seconds + trained.scoring_seconds + trained.other_seconds
