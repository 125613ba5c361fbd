"""Gossip SGD with random pairs: in every iteration each peer averages with one neighbour, or none.

    x_i, x_j  <-  (x_i + x_j) / 2        for the pairs of a random matching of the graph

All draw the matching of a round from the run's seed, so that nobody has to be asked; a peer waits
for its partner only. Peers whose rounds differ (after a partition, or a return) go on from the
later one: whoever learns of it tells its neighbours.
"""

from __future__ import annotations

import torch

from edgeweave.codec import Codec
from edgeweave.core.errors import WireError
from edgeweave.mixing.lines import Line
from edgeweave.mixing.message import Message, Send
from edgeweave.mixing.topology import Topology, matching

__all__ = ["Matched"]

_MOST_WAITING = 64
"""Messages of later rounds from one neighbour; it can be as far ahead as it met others."""


class Matched:
    """One peer of gossip SGD."""

    goes_on = False

    def __init__(
        self,
        model: torch.Tensor,
        me: str,
        graph: Topology,
        codec: Codec,
        *,
        rate: float,
        seed: int,
    ) -> None:
        self.model = model
        self.round_number = 0
        self._me = me
        self._graph = graph
        self._codec = codec
        self._rate = rate
        self._seed = seed
        self._lines: dict[str, Line] = {}
        self._inbox: dict[str, dict[int, torch.Tensor]] = {}
        self._partner: tuple[str, torch.Tensor] | None = None
        self._later = 0
        """The round that others are in, if it is later than this peer's."""

    def can_begin(self) -> bool:
        return True

    def begin(self) -> list[Send]:
        self.round_number = max(self.round_number, self._later)
        partner = matching(self._graph, self._seed, self.round_number).get(self._me)
        line = None if partner is None else self._lines.get(partner)
        if partner is None or line is None or self._newest(partner) > self.round_number:
            return []
        tensor, coded, said = line.say(self.model)
        self._partner = (partner, said)
        scalars = {"round": float(self.round_number)}
        return [Send(partner, Message("model", scalars, tensor, coded))]

    def waits_for(self) -> tuple[str, ...]:
        if self._partner is None or self._later > self.round_number:
            return ()
        partner = self._partner[0]
        came = self._inbox.get(partner, {})
        if self.round_number in came or self._newest(partner) > self.round_number:
            return ()  # from a later round: it went past this one without us
        return (partner,)

    def finish(self) -> None:
        if self._partner is not None:
            partner, said = self._partner
            heard = self._inbox.get(partner, {}).pop(self.round_number, None)
            if heard is not None:
                self.model = torch.add(self.model, heard - said, alpha=0.5 * self._rate)
        self._partner = None
        self.round_number += 1
        for inbox in self._inbox.values():
            for passed in [number for number in inbox if number < self.round_number]:
                del inbox[passed]

    def replace(self, model: torch.Tensor) -> None:
        self.model = model

    adopt = replace

    def opened(self, peer: str, *, incarnation: int, round_number: int) -> list[Send]:
        self._lines[peer] = Line(self._codec, self._seed)
        self._inbox[peer] = {}
        return self._go_on_from(round_number)

    def closed(self, peer: str) -> None:
        self._lines.pop(peer, None)
        if self._partner is not None and self._partner[0] == peer:
            if self.round_number not in self._inbox.get(peer, {}):
                self._partner = None
        else:
            self._inbox.pop(peer, None)

    def heard(self, peer: str, message: Message) -> list[Send]:
        number = int(message.scalars.get("round", -1))
        if message.kind == "round":
            return self._go_on_from(number)
        inbox = self._inbox[peer]
        if message.kind != "model" or len(inbox) >= _MOST_WAITING:
            raise WireError(f"{peer} sent a {message.kind} message out of turn in gossip SGD.")
        model = self._lines[peer].hear(message, self.model)
        if number >= self.round_number:
            inbox[number] = model
        return []

    def farewell(self) -> list[Send]:
        return []

    def _newest(self, peer: str) -> int:
        return max(self._inbox.get(peer, {}), default=-1)

    def _go_on_from(self, number: int) -> list[Send]:
        if number <= max(self.round_number, self._later):
            return []
        self._later = number
        message = Message("round", {"round": float(number)})
        return [Send(peer, message) for peer in self._lines]
