"""Packet reception: the share of messages that arrive on each directed link, learnt or given."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LEAST_SHARE", "Reception"]

_PRIOR_SENT = 4.0
_MEMORY_SENT = 2000.0
LEAST_SHARE = 0.2
"""What arrives less often than this is scaled as if it arrived this often: a few lucky messages of
a dying link must not outweigh everything that arrives."""


@dataclass(frozen=True, slots=True)
class Reception:
    """What was seen of one link. A link that nobody has used is believed to lose nothing.

    >>> Reception().seen(6, 10).share < 0.8
    True
    """

    arrived: float = _PRIOR_SENT
    sent: float = _PRIOR_SENT

    @property
    def share(self) -> float:
        """Of what is sent, what arrives."""
        return self.arrived / self.sent

    @property
    def scale(self) -> float:
        """What makes up for losses on average."""
        return 1.0 / max(self.share, LEAST_SHARE)

    def seen(self, n_arrived: float, n_sent: float) -> Reception:
        """After so many more messages; older ones are forgotten by and by."""
        sent = self.sent + n_sent
        shrink = min(1.0, _MEMORY_SENT / sent)
        return Reception((self.arrived + n_arrived) * shrink, sent * shrink)
