"""What may be learnt of a device, and what is remembered of it. Keeps nothing itself.

    noted (a profile's units, a run's stage) -> waiting -> learn -> kept
                                                            |
                                                            +-> refused: rolled back

*Roll-back*, in this order, whenever predictions are asked for:

1. What was kept is set aside while it contradicts the probe, which is the newest measurement there
   is: a board may be hot today. What waits then counts in its stead and goes on waiting; it takes
   its place only once ``MOST_WAITING`` batches have come.
2. Of a batch that waits, measurements are refused that lie more than ``_FARTHEST`` deviations from
   what all others predict for them, the farthest first. A deviation is as wide as those of what
   was known before turn out to be.
3. The rest of it is refused if what was known before (probe and kept, each predicted from all but
   itself) is predicted worse with it than without: by more than 5 % of the error and 2 % of time.

*Replay*: everything kept takes part in every prediction. Of more than ``MOST_KEPT`` measurements
those stay that are spread widest over all work measured, old or new (``spread``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeweave.predict.device import DeviceLatency, Measurement
from edgeweave.predict.features import Floats
from edgeweave.predict.model import LatencyModel

__all__ = ["MOST_KEPT", "MOST_WAITING", "Learnt", "Lessons", "Verdict", "learn", "spread"]

MOST_KEPT = 200
MOST_WAITING = 16
"""Batches."""

_FARTHEST = 4.0
_WORSE = 1.05
_WORSE_LOG_SECONDS = 0.02

Batch = tuple[Measurement, ...]


@dataclass(frozen=True, slots=True)
class Lessons:
    """What is remembered of a device: measurements that were believed, and batches that are not
    judged yet, each of one profile or one run; from old to new.
    """

    kept: Batch = ()
    waiting: tuple[Batch, ...] = ()

    def noted(self, batch: Sequence[Measurement]) -> Lessons:
        """With one more batch; the oldest one that waits is dropped if there are too many."""
        waiting = (*self.waiting, tuple(batch)[:MOST_KEPT])
        return replace(self, waiting=waiting[-MOST_WAITING:])


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why measurements are not used."""

    reason: str
    n_refused: int
    n_measured: int

    def __str__(self) -> str:
        return f"{self.n_refused} of {self.n_measured} measurements are not used: {self.reason}"


@dataclass(frozen=True, slots=True)
class Learnt:
    """What is known now. ``lessons`` are the same object that went in if nothing was settled."""

    latency: DeviceLatency
    lessons: Lessons
    verdicts: tuple[Verdict, ...]


def learn(probed: DeviceLatency, lessons: Lessons) -> Learnt:
    """Judge what waits, given what is known from the probe and from what was kept."""
    n_probed, n_kept = len(probed.measurements), len(lessons.kept)
    known, verdicts = probed.given(lessons.kept), []
    is_set_aside = n_kept > 0 and _worsens(probed, known)
    if is_set_aside:
        verdicts.append(Verdict("they contradict the probe, which is newer", n_kept, n_kept))
        known = probed
    for batch in lessons.waiting:
        known, found = _judged(known, batch)
        verdicts += found
        if len(known.measurements) > n_probed + MOST_KEPT:
            learnt = known.measurements[n_probed:]
            known = probed.given(spread(probed.model, learnt, MOST_KEPT))
    kept = known.measurements[n_probed:]
    goes_on_waiting = is_set_aside and not (kept and len(lessons.waiting) == MOST_WAITING)
    is_settled = bool(lessons.waiting) and not goes_on_waiting
    remembered = Lessons(kept) if is_settled else lessons
    return Learnt(known, remembered, tuple(verdicts))


def spread(
    model: LatencyModel, measurements: Sequence[Measurement], most: int
) -> tuple[Measurement, ...]:
    """The ``most`` that leave least of all work in ``measurements`` uncertain, in their order.

    One after another, the one whose seconds those before it tell least (a pivoted Cholesky of the
    prior's covariance): what is like nothing else stays, however old. Of the same work the newest.
    """
    if len(measurements) <= most:
        return tuple(measurements)
    newest = measurements[::-1]
    left = DeviceLatency(model).covariance([each.rows for each in newest])
    seconds = np.array([each.forward_seconds for each in newest])
    noise = model.prior.noise_variance(np.log(seconds))
    free = np.ones(len(newest), dtype=bool)
    for _ in range(most):
        best = int(np.argmax(np.where(free, np.diag(left), -1.0)))
        free[best] = False
        left = left - np.outer(left[best], left[best]) / (left[best, best] + noise[best])
    return tuple(each for each, is_free in zip(newest, free, strict=True) if not is_free)[::-1]


def _judged(known: DeviceLatency, batch: Batch) -> tuple[DeviceLatency, list[Verdict]]:
    """What is known with what of a batch is believed, and why the rest is not."""
    together = _with_near(known, batch)
    n_near = len(together.measurements) - len(known.measurements)
    verdicts = []
    if n_near < len(batch):
        n_far = len(batch) - n_near
        verdicts.append(Verdict("all others predict something else", n_far, len(batch)))
    if n_near and known.measurements and _worsens(known, together):
        reason = "with them, everything else is predicted worse than without"
        verdicts.append(Verdict(reason, n_near, len(batch)))
        together = known
    return together, verdicts


def _with_near(known: DeviceLatency, batch: Batch) -> DeviceLatency:
    """What is known with a batch, but for those that are far from what all others predict.

    One that is far off draws its neighbours along: in each round only the farther half goes.
    """
    near, width = batch, _width(known)
    while near:
        together = known.given(near)
        off = _off(together)[len(known.measurements) :].max(axis=1) / width
        farthest = float(off.max())
        if farthest <= _FARTHEST:
            return together
        least = max(_FARTHEST, farthest / 2)
        near = tuple(each for each, far in zip(near, off, strict=True) if far <= least)
    return known


def _width(known: DeviceLatency) -> float:
    """How much wider errors are than they were expected to be; 1 if they are not."""
    off = _off(known) if len(known.measurements) > 1 else np.zeros(1)
    return max(1.0, float(np.sqrt(np.square(off).mean())))


def _off(latency: DeviceLatency) -> Floats:
    """In deviations, how far each measurement is from what all others predict; 0 where none is."""
    held_out = latency.held_out()
    return np.nan_to_num(np.abs(held_out.errors / held_out.deviations))


def _worsens(known: DeviceLatency, together: DeviceLatency) -> bool:
    """Whether what is known is predicted worse from all others where more is known with it."""
    n_known = len(known.measurements)
    bearable = _WORSE * _error(known, n_known) + _WORSE_LOG_SECONDS
    return _error(together, n_known) > bearable


def _error(latency: DeviceLatency, n_first: int) -> float:
    """Of the first measurements, each predicted from all but itself: mean distance in log time."""
    return float(np.nanmean(np.abs(latency.held_out().errors[:n_first])))
