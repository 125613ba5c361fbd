"""How peers come to agree: the part of an iteration that is not training, behind one protocol.

    begin()   the model of now goes to neighbours ----.
    train     meanwhile, at that model                 >  overlap
    heard()   theirs come ----------------------------'
    finish()  mix; then the optimizer steps the result (``replace``)

Every algorithm moves a model by ``weight * (what they told - what I told)`` at one end of an edge
and by the negative of it at the other, so that no exchange changes the sum of all models. State
machines without input or output; ``edgeweave.mixing.peer`` drives them.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch

from edgeweave.mixing.message import Message, Send

__all__ = ["ALGORITHMS", "Algorithm", "Exchange"]

Algorithm = Literal["d-psgd", "gossip-sgd", "ad-psgd", "push-sum"]
ALGORITHMS: tuple[Algorithm, ...] = ("d-psgd", "gossip-sgd", "ad-psgd", "push-sum")


class Exchange(Protocol):
    """One peer's side of an algorithm. Edges it may use are told by ``opened`` and ``closed``."""

    @property
    def model(self) -> torch.Tensor:
        """The peer's model, to train at and to evaluate."""

    @property
    def goes_on(self) -> bool:
        """Whether a peer that has done its steps still serves others."""

    def can_begin(self) -> bool:
        """Whether there is a model to train at."""

    def begin(self) -> list[Send]:
        """An iteration begins."""

    def waits_for(self) -> tuple[str, ...]:
        """Whose messages the iteration still needs."""

    def finish(self) -> None:
        """Mix what came. Only while nothing is waited for."""

    def replace(self, model: torch.Tensor) -> None:
        """The optimizer made this of ``model``."""

    def adopt(self, model: torch.Tensor) -> None:
        """Go on from a neighbour's model, having none of one's own."""

    def opened(self, peer: str, *, incarnation: int, round_number: int) -> list[Send]:
        """An edge may be used from now on. A process that died returns in a new incarnation."""

    def closed(self, peer: str) -> None:
        """An edge may not be used any more. What came over it already still counts."""

    def heard(self, peer: str, message: Message) -> list[Send]:
        """A message came over an open edge."""

    def farewell(self) -> list[Send]:
        """What to send before leaving for good."""

    @property
    def round_number(self) -> int:
        """Iterations as neighbours must agree on them; 0 where they need not."""
