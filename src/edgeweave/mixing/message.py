"""What peers say to each other, and what a peer asks of whoever runs it. Values; no wire format.

hello    I am here, in this session; scalars mine, theirs, wants, round
state    my model, for one that returns; scalar step
model    my model of this iteration (D-PSGD with my degree, gossip SGD with its round)
ask      my model, to be averaged with yours at once (AD-PSGD); answer: yours, before that
push     all mass that ever went to you (push-sum), with its weight
round    the iterations of gossip SGD count from here
bye      I am done, or leave
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

__all__ = [
    "KINDS",
    "Effect",
    "Finished",
    "Kind",
    "Message",
    "Send",
    "Train",
    "Trained",
    "Wake",
]

Kind = Literal["hello", "state", "model", "ask", "answer", "push", "round", "bye"]
KINDS: tuple[Kind, ...] = ("hello", "state", "model", "ask", "answer", "push", "round", "bye")


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """Numbers, and a model if there is one: as it is, or ``coded`` as bytes of a difference.

    Nobody changes a tensor once it is in a message.
    """

    kind: Kind
    scalars: Mapping[str, float] = field(default_factory=dict)
    tensor: torch.Tensor | None = None
    coded: bool = False

    @property
    def n_bytes(self) -> int:
        """What it takes of a link, headers left out."""
        return 0 if self.tensor is None else self.tensor.nbytes


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a neighbour."""

    to: str
    message: Message


@dataclass(frozen=True, slots=True, eq=False)
class Train:
    """Compute the gradient at ``model`` on ``n_samples`` of the next batch; tell by ``trained``."""

    model: torch.Tensor
    n_samples: int
    step: int


@dataclass(frozen=True, slots=True)
class Wake:
    """Call ``woke`` at this moment, or later."""

    at_seconds: float


@dataclass(frozen=True, slots=True)
class Finished:
    """All steps are done."""


Effect = Send | Train | Wake | Finished


@dataclass(frozen=True, slots=True)
class Trained:
    """A gradient was computed: on what, how long it took, and what else took time beside it."""

    n_samples: int
    seconds: float
    loss: float
    n_scored: int = 0
    """Aggregated points that were scored to choose the samples."""
    scoring_seconds: float = 0.0
    other_seconds: float = 0.0
    """Mixing, updating and coding of one iteration."""
