"""Equal iteration times on unequal devices: how many samples each trains on. Reads no clock.

    full_i = g_i + c_i b            seconds of an iteration with a whole batch of b samples
    tau    = beta * min_i full_i    gossiped: every message carries the least its sender knows of
    n_i    = (tau - g_i - s_i P) / c_i     with P points scored, at least a share of b, at most b
    P      = CANDIDATES n_i / members of a group, at most b / members

(EdgeGossip, reference section 5(c): c, s and g are exponentially weighted means of seconds per
trained sample, per scored point, and of mixing and updating.) Waiting for others is in none of
them. The minimum is taken anew in every period of iterations, so that a device that is fast no more
is forgotten after two of them.

Deviations: points are scored for twice as many samples as are trained on, not for the whole batch,
because a slow device would spend all it has on scoring. A peer uses the minimum as soon as it hears
of it, not from the next period on, so that times are equal after as many iterations as the graph is
wide; and a device within ``TOLERANCE`` of the pace trains whole batches, so that noise of equal
devices drops no samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edgeweave.core.errors import ConfigError
from edgeweave.mixing.message import Trained

__all__ = ["CANDIDATES", "TOLERANCE", "Balance", "BalanceSettings"]

TOLERANCE: Final = 0.025
CANDIDATES: Final = 2
"""Times the samples to train on: those among which they are chosen."""
_GAIN: Final = 0.2
_FIRST: Final = 3
"""Measurements that a peer tells at once; later ones once a period, because the least of many
measurements is less than what any device takes.
"""


@dataclass(frozen=True, slots=True)
class BalanceSettings:
    """Whether and how. ``share`` keeps that share of every batch on every device instead."""

    enabled: bool = True
    share: float | None = None
    beta: float = 1.0
    period: int = 20
    least_share: float = 0.1

    def __post_init__(self) -> None:
        shares = (self.least_share, 1.0 if self.share is None else self.share)
        if not all(0 < share <= 1 for share in shares) or self.beta < 1 or self.period < 1:
            raise ConfigError(
                "balance has shares above 0 and at most 1, beta of 1 or more and a period of 1 or "
                f"more (got share {self.share}, least_share {self.least_share}, beta {self.beta}, "
                f"period {self.period}). Correct them."
            )


@dataclass(slots=True)
class _Mean:
    """An exponentially weighted mean that begins with its first value."""

    value: float | None = None

    def add(self, value: float) -> None:
        self.value = value if self.value is None else self.value + _GAIN * (value - self.value)


class Balance:
    """One peer's part: learns its own times, hears of the fastest, says how many samples."""

    def __init__(
        self, settings: BalanceSettings, batch_size: int, samples_per_point: int | None
    ) -> None:
        """``samples_per_point``: members of a group that is scored; None if none are."""
        self._settings = settings
        self._batch_size = batch_size
        self._points_per_sample = 0.0 if samples_per_point is None else 1 / samples_per_point
        self._per_sample, self._per_point, self._other = _Mean(), _Mean(), _Mean()
        self._epoch = 0
        self._least = self._least_before = math.inf
        self._n_learnt = 0

    @property
    def full_seconds(self) -> float | None:
        """Own seconds of an iteration with a whole batch, once one was trained."""
        if self._per_sample.value is None:
            return None
        return (self._other.value or 0.0) + self._per_sample.value * self._batch_size

    @property
    def pace_seconds(self) -> float:
        """How long an iteration may take; infinite as long as nothing is known."""
        return self._settings.beta * min(self._least, self._least_before)

    def learn(self, trained: Trained) -> None:
        """An iteration was measured."""
        self._per_sample.add(trained.seconds / max(trained.n_samples, 1))
        self._other.add(trained.other_seconds)
        if trained.n_scored:
            self._per_point.add(trained.scoring_seconds / trained.n_scored)
        self._n_learnt += 1
        if self._n_learnt % self._settings.period == 0:
            self._begin(self._epoch + 1)
        elif self._n_learnt > _FIRST:
            return
        self._least = min(self._least, self.full_seconds or math.inf)

    def tell(self) -> dict[str, float]:
        """What goes along with every message."""
        known = math.isfinite(self._least)
        return {"epoch": float(self._epoch), "fastest": self._least} if known else {}

    def hear(self, scalars: Mapping[str, float]) -> None:
        """What came along with a message."""
        fastest, epoch = scalars.get("fastest"), int(scalars.get("epoch", 0))
        if fastest is None or not 0 < fastest < math.inf:
            return
        if epoch > self._epoch:
            self._begin(epoch)
            self._least = min(fastest, self.full_seconds or math.inf)
        elif epoch == self._epoch:
            self._least = min(self._least, fastest)
        elif epoch == self._epoch - 1:
            self._least_before = min(self._least_before, fastest)

    def n_samples(self) -> int:
        """How many samples of the next batch to train on."""
        whole, settings = self._batch_size, self._settings
        if settings.share is not None:
            return max(1, round(settings.share * whole))
        full, pace, each = self.full_seconds, self.pace_seconds, self._per_sample.value
        if not settings.enabled or not full or not each or full <= pace * (1 + TOLERANCE):
            return whole
        scoring = (self._per_point.value or 0.0) * self._points_per_sample
        time = pace - (self._other.value or 0.0)
        room = time / (each + CANDIDATES * scoring)
        if CANDIDATES * room > whole:
            room = (time - scoring * whole) / each
        least = max(1, round(settings.least_share * whole))
        return min(max(math.floor(room + 1e-9), least), whole)

    def _begin(self, epoch: int) -> None:
        """A new period: its minimum is not known yet."""
        self._least_before = self._least if epoch == self._epoch + 1 else math.inf
        self._epoch, self._least = epoch, math.inf
