"""What the serving stages of a device did so far, counted from several threads."""

from __future__ import annotations

import threading
from dataclasses import dataclass

__all__ = ["StageTally", "TallyStatistics"]


@dataclass(frozen=True, slots=True)
class TallyStatistics:
    """A snapshot of a tally."""

    requests: int = 0
    refused: int = 0
    compute_seconds: float = 0.0
    wait_seconds: float = 0.0


class StageTally:
    """All terms together: while one takes over from another, two stages count at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._so_far = TallyStatistics()

    def add(
        self,
        *,
        requests: int = 0,
        refused: int = 0,
        compute_seconds: float = 0.0,
        wait_seconds: float = 0.0,
    ) -> None:
        """Count so much more."""
        with self._lock:
            before = self._so_far
            self._so_far = TallyStatistics(
                before.requests + requests,
                before.refused + refused,
                before.compute_seconds + compute_seconds,
                before.wait_seconds + wait_seconds,
            )

    def statistics(self) -> TallyStatistics:
        """As of now; never half of a count."""
        return self._so_far
