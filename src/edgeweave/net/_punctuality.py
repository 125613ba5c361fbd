"""How early to deliver so as to be on time: threads wake up 0.1 or 0.2 ms late."""

from __future__ import annotations

__all__ = ["Punctuality"]

_MOST_SECONDS = 3e-4
_LEARNING = 0.05


class Punctuality:
    """Learns from every delivery; one that is very late teaches no more than a usual one."""

    def __init__(self) -> None:
        self.early_seconds = 0.0

    def learn(self, late_seconds: float) -> None:
        """A message was delivered so late, or early if negative."""
        early = self.early_seconds + _LEARNING * min(late_seconds, _MOST_SECONDS)
        self.early_seconds = min(max(early, 0.0), _MOST_SECONDS)
