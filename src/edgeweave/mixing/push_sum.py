"""Push-sum, as stochastic gradient push (Assran et al., 2019): mass flows, nobody waits.

    mass  (x_i, w_i)      model  z_i = x_i / w_i        in every iteration, with d open edges:
    keep 1 / (1 + d) of the mass, push as much along every edge; a step moves x_i by w_i (z' - z)

A message holds all mass that ever went along its edge, not this iteration's, and the receiver takes
what it has not had (Hadjicostis et al., 2016). So a message that is lost loses nothing: the next
brings it. Mass is lost only with a peer that dies, x and w alike, which leaves the others' mean an
average of what is left; one that leaves pushes all it has first, and one that returns begins with
none and is given some. Whoever has next to none and nobody to get it from (all neighbours died, or
are done) begins anew with a weight of one: its model then counts for more than it had, and it does
not wait for ever.

Deviation: the paper moves x_i by z' - z, which is the same where all keep pace and weights stay
near one. Here nobody waits: mass gathers at slow peers until each passes on as much as the others,
w_i times its pace. Steps weighed by w_i then count all devices' data alike, fast or slow, and a
peer with little mass does not take steps of many times the learning rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgeweave.core.errors import WireError
from edgeweave.mixing.message import Message, Send

__all__ = ["PushSum"]

_LEAST_WEIGHT = 0.05
"""With less mass there is no model to train at yet."""


@dataclass(slots=True, eq=False)
class _Flow:
    """What one end knows of an edge: all that was pushed, and all that came."""

    incarnation: int
    pushed: torch.Tensor
    came: torch.Tensor
    pushed_weight: float = 0.0
    came_weight: float = 0.0


class PushSum:
    """One peer of push-sum."""

    goes_on = False
    round_number = 0

    def __init__(self, model: torch.Tensor) -> None:
        self.mass = model.clone()
        self.weight = 1.0
        self._last = model
        self._flows: dict[str, _Flow] = {}
        self._open: dict[str, None] = {}

    @property
    def model(self) -> torch.Tensor:
        return self.mass / self.weight if self.weight >= _LEAST_WEIGHT else self._last

    def can_begin(self) -> bool:
        return self.weight >= _LEAST_WEIGHT or not self._open

    def begin(self) -> list[Send]:
        self._last = self.model
        if self.weight < _LEAST_WEIGHT and not self._open:
            self.mass, self.weight = self._last, 1.0
        share = 1.0 / (1 + len(self._open))
        portion, weight = self.mass * share, self.weight * share
        return [self._push(peer, portion, weight) for peer in self._open]

    def waits_for(self) -> tuple[str, ...]:
        return ()

    def finish(self) -> None:
        """Mass was added when it came."""

    def replace(self, model: torch.Tensor) -> None:
        self.mass = self.mass + (model - self.model) * self.weight
        self._last = model

    def adopt(self, model: torch.Tensor) -> None:
        self.mass, self.weight, self._last = torch.zeros_like(model), 0.0, model

    def opened(self, peer: str, *, incarnation: int, round_number: int) -> list[Send]:
        known = self._flows.get(peer)
        if known is None or known.incarnation != incarnation:
            zeros = torch.zeros_like(self.mass)
            self._flows[peer] = _Flow(incarnation, zeros, zeros)
        self._open[peer] = None
        return []

    def closed(self, peer: str) -> None:
        self._open.pop(peer, None)

    def heard(self, peer: str, message: Message) -> list[Send]:
        flow, tensor = self._flows[peer], message.tensor
        if message.kind != "push" or tensor is None or tensor.shape != self.mass.shape:
            raise WireError(f"{peer} sent a {message.kind} message out of turn in push-sum.")
        weight = message.scalars.get("weight", 0.0)
        self.mass = self.mass + (tensor - flow.came)
        self.weight += weight - flow.came_weight
        flow.came, flow.came_weight = tensor, weight
        return []

    def farewell(self) -> list[Send]:
        """All mass goes to one neighbour."""
        if not self._open:
            return []
        self._last = self.model
        return [self._push(next(iter(self._open)), self.mass, self.weight)]

    def _push(self, peer: str, portion: torch.Tensor, weight: float) -> Send:
        flow = self._flows[peer]
        total, total_weight = flow.pushed + portion, flow.pushed_weight + weight
        # What the sum really gained: rounded sums then lose no mass.
        self.mass = self.mass - (total - flow.pushed)
        self.weight -= total_weight - flow.pushed_weight
        flow.pushed, flow.pushed_weight = total, total_weight
        return Send(peer, Message("push", {"weight": total_weight}, total))
