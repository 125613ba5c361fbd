"""Equal iteration times on unequal devices: how many samples each trains on. Reads no clock.

    full_i = g_i + c_i b            seconds of an iteration with a whole batch of b samples
    tau    = beta * min_i full_i    gossiped: every message carries the least its sender knows of
    n_i    = (tau - g_i - s_i P) / c_i     with P points scored, at least a share of b, at most b
    P      = all groups of a batch, or in the mean a quarter of n_i (``Scoring``)

(EdgeGossip, reference section 5(c): c, s and g are seconds per trained sample, per scored point,
and of mixing and updating.) Waiting for others is in none of them. The minimum is taken anew in
every period of iterations, so that a device that is fast no more is forgotten after two of them.

Deviations: c, s and g are of the last measurements, without those that other work stretched, where
the reference has moving averages. A device tells the median, and is held to its quick iterations
(the lower quartile): so equal devices on a busy machine, whose measurements jump, go on with whole
batches, as does whoever is within ``TOLERANCE`` of the pace. A peer uses the minimum as soon as it
hears of it, not from the next period on, so that times are equal after as many iterations as the
graph is wide.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Final

from edgeweave.core.errors import ConfigError
from edgeweave.mixing.message import Trained

__all__ = ["TOLERANCE", "Balance", "BalanceSettings", "Scoring"]

TOLERANCE: Final = 0.025
_KEPT: Final = 9
"""Measurements that a median or a quartile is of."""
_EARLY: Final = (3, 9)
"""Measurements after which the minimum is taken anew, beside every period: the first ones are of
little worth. Up to the first of them a peer tells each at once; later ones only when a period
begins, because the least of many measurements is less than what any device takes.
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


@dataclass(frozen=True, slots=True)
class Scoring:
    """How many points are scored, in every step or in one of several: a pass takes its time however
    few they are.
    """

    per_sample: float
    """Points for each sample that is trained on."""
    least: int
    most: int
    every: int = 1
    """Steps."""

    def n_points(self, n_samples: int) -> int:
        """Points scored in a step that scores, where so many samples are chosen."""
        return min(max(math.floor(self.per_sample * n_samples), self.least), self.most)


class _Recent:
    """The last measurements of one thing."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=_KEPT)

    def add(self, value: float) -> None:
        self._values.append(value)

    @property
    def usual(self) -> float:
        """The median; 0 as long as there is none."""
        return median(self._values) if self._values else 0.0

    @property
    def quick(self) -> float:
        """The lower quartile."""
        return sorted(self._values)[(len(self._values) - 1) // 4] if self._values else 0.0


class Balance:
    """One peer's part: learns its own times, hears of the fastest, says how many samples."""

    def __init__(
        self, settings: BalanceSettings, batch_size: int, scoring: Scoring | None = None
    ) -> None:
        """``scoring``: how many points are scored; None if none are."""
        self._settings = settings
        self._batch_size = batch_size
        self._scoring = scoring
        self._per_sample, self._per_point, self._other = _Recent(), _Recent(), _Recent()
        self._epoch = 0
        self._least = self._least_before = math.inf
        self._n_learnt = 0

    @property
    def full_seconds(self) -> float | None:
        """Own seconds of an iteration with a whole batch, once one was trained."""
        return (self._other.usual + self._per_sample.usual * self._batch_size) or None

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
        n, settings = self._n_learnt, self._settings
        epoch = sum(n >= early for early in _EARLY) + n // settings.period
        if epoch > self._epoch:
            self._begin(epoch)
        elif n > _EARLY[0]:
            return
        self._least = min(self._least, self.full_seconds or math.inf)

    def tell(self) -> dict[str, float]:
        """What goes along with every message: the minimum of this period and of the one before."""
        if not math.isfinite(self._least):
            return {}
        told = {"epoch": float(self._epoch), "fastest": self._least}
        return told | ({"before": self._least_before} if math.isfinite(self._least_before) else {})

    def hear(self, scalars: Mapping[str, float]) -> None:
        """What came along with a message."""
        fastest, epoch = scalars.get("fastest", math.nan), int(scalars.get("epoch", 0))
        before = scalars.get("before", math.inf)
        if not (0 < fastest < math.inf and before > 0):
            return
        if epoch > self._epoch:
            self._begin(epoch)
            self._least = self.full_seconds or math.inf
        if epoch == self._epoch:
            self._least = min(self._least, fastest)
            self._least_before = min(self._least_before, before)
        elif epoch == self._epoch - 1:
            self._least_before = min(self._least_before, fastest)

    def n_samples(self) -> int:
        """How many samples of the next batch to train on."""
        whole, settings = self._batch_size, self._settings
        if settings.share is not None:
            return max(1, round(settings.share * whole))
        pace, each, other = self.pace_seconds, self._per_sample.quick, self._other.quick
        if not settings.enabled or not each or other + each * whole <= pace * (1 + TOLERANCE):
            return whole
        time = pace - other
        room = time / each
        if self._scoring is not None:
            scoring = self._scoring
            point = self._per_point.quick / scoring.every
            room = time / (each + scoring.per_sample * point)
            n_points = scoring.n_points(int(room))
            if n_points in (scoring.least, scoring.most):
                room = (time - n_points * point) / each
        least = max(1, round(settings.least_share * whole))
        return min(max(math.floor(room + 1e-9), least), whole)

    def _begin(self, epoch: int) -> None:
        """A new period: its minimum is not known yet."""
        self._least_before = self._least if epoch == self._epoch + 1 else math.inf
        self._epoch, self._least = epoch, math.inf
