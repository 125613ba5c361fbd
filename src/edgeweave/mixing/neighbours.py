"""D-PSGD (Lian et al., 2017): in every iteration everybody averages with all neighbours.

    x_i  <-  x_i + sum_j W_ij (x_j - x_i)  - step        W: Metropolis weights of this round

Iterations need no number: on each edge the n-th message of one end meets the n-th of the other, so
neighbours keep pace, and edges that open later (a peer that joins, a network that heals) need no
agreement on where the others are. Each message tells the degree its sender counts with, therefore
both ends compute the same weight.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch

from edgeweave.codec import Codec
from edgeweave.core.errors import WireError
from edgeweave.mixing.lines import Line
from edgeweave.mixing.message import Message, Send
from edgeweave.mixing.weights import edge_weight

__all__ = ["Neighbours"]

_MOST_AHEAD = 3
"""A neighbour is at most one iteration ahead; more is refused."""


@dataclass(slots=True, eq=False)
class _Edge:
    line: Line
    inbox: deque[tuple[int, torch.Tensor]] = field(default_factory=deque)
    """Degree and model of the messages that were not mixed yet."""


class Neighbours:
    """One peer of D-PSGD. ``order`` is that of sums: the same neighbours give the same bits."""

    goes_on = False
    round_number = 0

    def __init__(
        self, model: torch.Tensor, order: tuple[str, ...], codec: Codec, *, rate: float, seed: int
    ) -> None:
        self.model = model
        self._order = {peer: number for number, peer in enumerate(order)}
        self._codec = codec
        self._rate = rate
        self._seed = seed
        self._open: dict[str, _Edge] = {}
        self._round: dict[str, tuple[_Edge, torch.Tensor]] = {}
        self._degree = 0

    def can_begin(self) -> bool:
        return True

    def begin(self) -> list[Send]:
        self._degree = len(self._open)
        self._round, sends = {}, []
        for peer in sorted(self._open, key=self._order.__getitem__):
            edge = self._open[peer]
            tensor, coded, said = edge.line.say(self.model)
            self._round[peer] = (edge, said)
            scalars = {"degree": float(self._degree)}
            sends.append(Send(peer, Message("model", scalars, tensor, coded)))
        return sends

    def waits_for(self) -> tuple[str, ...]:
        return tuple(peer for peer, (edge, _) in self._round.items() if not edge.inbox)

    def finish(self) -> None:
        model = self.model
        for edge, said in self._round.values():
            degree, heard = edge.inbox.popleft()
            weight = self._rate * edge_weight(self._degree, degree)
            model = torch.add(model, heard - said, alpha=weight)
        self.model, self._round = model, {}

    def replace(self, model: torch.Tensor) -> None:
        self.model = model

    adopt = replace

    def opened(self, peer: str, *, incarnation: int, round_number: int) -> list[Send]:
        self._open[peer] = _Edge(Line(self._codec, self._seed))
        self._order.setdefault(peer, len(self._order))
        return []

    def closed(self, peer: str) -> None:
        self._open.pop(peer, None)
        if peer in self._round and not self._round[peer][0].inbox:
            del self._round[peer]

    def heard(self, peer: str, message: Message) -> list[Send]:
        edge = self._open[peer]
        if message.kind != "model" or len(edge.inbox) >= _MOST_AHEAD:
            raise WireError(f"{peer} sent a {message.kind} message out of turn in D-PSGD.")
        degree = int(message.scalars.get("degree", 0))
        edge.inbox.append((degree, edge.line.hear(message, self.model)))
        return []

    def farewell(self) -> list[Send]:
        return []
