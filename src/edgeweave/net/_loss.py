"""Which packets of a sequence are lost: each for itself, or in bursts. Seeded by the caller."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgeweave.net.link import GilbertElliott

__all__ = ["Losses"]

_Flags = npt.NDArray[np.bool_]


class Losses:
    """The fates of packets, in their order."""

    def __init__(self, loss: float | GilbertElliott, rng: np.random.Generator) -> None:
        self._rng = rng
        self._bad = False
        self.change(loss)

    @property
    def possible(self) -> bool:
        """Whether anything is ever lost."""
        loss = self._loss
        return loss.share > 0 if isinstance(loss, GilbertElliott) else loss > 0

    def change(self, loss: float | GilbertElliott) -> None:
        """Lose by another rule from the next packet on; a burst begins in its long-run share."""
        self._loss = loss
        if isinstance(loss, GilbertElliott):
            share_bad = loss.to_bad / (loss.to_bad + loss.to_good)
            self._bad = bool(self._rng.random() < share_bad)

    def draw(self, n_packets: int) -> _Flags:
        """True for each of the next packets that is lost."""
        loss = self._loss
        if not self.possible:
            return np.zeros(n_packets, dtype=np.bool_)
        if not isinstance(loss, GilbertElliott):
            return self._rng.random(n_packets) < loss
        shares = np.where(self._states(loss, n_packets), loss.loss_bad, loss.loss_good)
        return self._rng.random(n_packets) < shares

    def _states(self, loss: GilbertElliott, n_packets: int) -> _Flags:
        """Whether the state is bad for each packet. Stays have geometric lengths."""
        changes = np.array(
            [loss.to_good, loss.to_bad] if self._bad else [loss.to_bad, loss.to_good]
        )
        expected = n_packets * loss.to_bad * loss.to_good / (loss.to_bad + loss.to_good)
        n_pairs = 2 + int(1.2 * expected)
        stays = [np.zeros(0, dtype=np.int64)]
        # The first stay has begun: as the state may change before its next packet, it may be 0.
        begun = 1
        while sum(int(stay.sum()) for stay in stays) < n_packets:
            drawn = np.full(2 * n_pairs, n_packets + 1, dtype=np.int64)
            for which, change in enumerate(changes):
                if change > 0:
                    drawn[which::2] = self._rng.geometric(change, n_pairs)
            drawn[0] -= begun
            begun = 0
            stays.append(np.minimum(drawn, n_packets))
        lengths = np.concatenate(stays)
        is_bad = np.resize(np.array([self._bad, not self._bad]), len(lengths))
        states = np.repeat(is_bad, lengths)[:n_packets]
        self._bad = bool(states[-1])
        return states
