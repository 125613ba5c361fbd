"""Which messages between members of a rehearsal arrive. Seeded; knows nothing of what they say."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from edgeweave.net import GilbertElliott, Losses
from edgeweave.plan import Reception

__all__ = ["Fates", "LossSource", "RecordedLosses", "losses_on_all_links"]

_Flags = npt.NDArray[np.bool_]
_MOST_REPEATS = 1000


class LossSource(Protocol):
    """The fates of one directed link's packets, in their order."""

    def draw(self, n_packets: int) -> _Flags:
        """True for each of the next packets that is lost."""


class RecordedLosses:
    """A recorded sequence of losses, from anywhere in it, and over again."""

    def __init__(self, lost: _Flags, rng: np.random.Generator) -> None:
        self._lost = lost
        self._next = int(rng.integers(len(lost)))

    def draw(self, n_packets: int) -> _Flags:
        """True for each of the next packets that is lost."""
        places = np.arange(self._next, self._next + n_packets) % len(self._lost)
        self._next = int(places[-1] + 1) if n_packets else self._next
        found: _Flags = self._lost[places]
        return found


def losses_on_all_links(
    loss: float | GilbertElliott | Mapping[tuple[str, str], float], seed: int
) -> Callable[[str, str], LossSource]:
    """Makes the losses of each directed link: the same law for all, or a share for each."""

    def make(source: str, target: str) -> LossSource:
        own = loss[source, target] if isinstance(loss, Mapping) else loss
        digest = hashlib.sha256(f"{source}\0{target}".encode()).digest()
        return Losses(own, np.random.default_rng([seed, int.from_bytes(digest[:8], "big")]))

    return make


class Fates:
    """All links of a rehearsal, and what each end has learnt of them.

    ``per`` says what is lost as one: a whole message, as EdgePipe's link model has it, or each
    datagram. Devices in ``dead`` hear nothing and say nothing.
    """

    def __init__(
        self,
        losses: Callable[[str, str], LossSource],
        *,
        per: Literal["message", "datagram"] = "datagram",
    ) -> None:
        self._make, self._per = losses, per
        self._sources: dict[tuple[str, str], LossSource] = {}
        self._seen: dict[tuple[str, str], Reception] = {}
        self.dead: set[str] = set()
        self.n_messages = self.n_lost = 0

    def arrived(self, source: str, target: str, n_datagrams: int) -> torch.Tensor:
        """Which datagrams of the next message arrive. What is learnt of the link is from this."""
        if source in self.dead or target in self.dead:
            return torch.zeros(n_datagrams, dtype=torch.bool)
        n_drawn = 1 if self._per == "message" else n_datagrams
        arrived = ~self._source(source, target).draw(n_drawn)
        before = self._seen.get((source, target), Reception())
        self._seen[source, target] = before.seen(int(arrived.sum()), n_drawn)
        self.n_messages += 1
        self.n_lost += not arrived.all()
        return torch.from_numpy(arrived).expand(n_datagrams)

    def repeats(self, source: str, target: str, n_datagrams: int) -> int:
        """How often a message is sent again until all of it is there: rounds, not datagrams."""
        n_missing = 1 if self._per == "message" else n_datagrams
        rounds = -1
        while n_missing and rounds < _MOST_REPEATS:
            n_missing = int(self._source(source, target).draw(n_missing).sum())
            rounds += 1
        self.n_messages += 1
        return rounds

    def scale(self, source: str, target: str) -> float:
        """What makes up for the losses of a link, by what was seen of it."""
        return self._seen.get((source, target), Reception()).scale

    def _source(self, source: str, target: str) -> LossSource:
        if (source, target) not in self._sources:
            self._sources[source, target] = self._make(source, target)
        return self._sources[source, target]
