"""AD-PSGD (Lian et al., 2018): no barrier; whoever is done averages with one neighbour.

    asks      begin: ask(x_i) --->  answers   x_j told back, then x_j += (x_i - x_j) / 2
              x_i += (x_j - x_i) / 2  <---

Half of the peers ask, the others answer (``Topology.sides``), at once and whatever they compute, so
nobody waits for somebody who waits. Averaging is atomic without a lock: each end moves by half of
the same difference, in one step of its state machine. Models move while gradients are computed;
those are therefore stale by an average or a few, as in the paper.
"""

from __future__ import annotations

import numpy as np
import torch

from edgeweave.codec import Codec
from edgeweave.core.errors import WireError
from edgeweave.mixing.lines import Line
from edgeweave.mixing.message import Message, Send

__all__ = ["Pairwise"]


class Pairwise:
    """One peer of AD-PSGD; ``asks`` says on which side it is."""

    goes_on = True
    round_number = 0

    def __init__(
        self, model: torch.Tensor, codec: Codec, *, asks: bool, rate: float, seed: int
    ) -> None:
        self.model = model
        self._codec = codec
        self._asks = asks
        self._rate = rate
        self._seed = seed
        self._random = np.random.default_rng(seed)
        self._lines: dict[str, Line] = {}
        self._asked: tuple[str, torch.Tensor] | None = None

    def can_begin(self) -> bool:
        return True

    def begin(self) -> list[Send]:
        if not self._asks or not self._lines or self._asked is not None:
            return []
        peer = sorted(self._lines)[int(self._random.integers(len(self._lines)))]
        tensor, coded, said = self._lines[peer].say(self.model)
        self._asked = (peer, said)
        return [Send(peer, Message("ask", {}, tensor, coded))]

    def waits_for(self) -> tuple[str, ...]:
        return () if self._asked is None else (self._asked[0],)

    def finish(self) -> None:
        """Models were averaged when messages came."""

    def replace(self, model: torch.Tensor) -> None:
        self.model = model

    adopt = replace

    def opened(self, peer: str, *, incarnation: int, round_number: int) -> list[Send]:
        self._lines[peer] = Line(self._codec, self._seed)
        return []

    def closed(self, peer: str) -> None:
        self._lines.pop(peer, None)
        if self._asked is not None and self._asked[0] == peer:
            self._asked = None

    def heard(self, peer: str, message: Message) -> list[Send]:
        line = self._lines[peer]
        if message.kind == "ask" and not self._asks:
            heard = line.hear(message, self.model)
            tensor, coded, said = line.say(self.model)
            self._move(heard, said)
            return [Send(peer, Message("answer", {}, tensor, coded))]
        if message.kind == "answer" and self._asked is not None and self._asked[0] == peer:
            _, said = self._asked
            self._asked = None
            self._move(line.hear(message, self.model), said)
            return []
        raise WireError(f"{peer} sent a {message.kind} message out of turn in AD-PSGD.")

    def farewell(self) -> list[Send]:
        return []

    def _move(self, heard: torch.Tensor, said: torch.Tensor) -> None:
        self.model = torch.add(self.model, heard - said, alpha=0.5 * self._rate)
