"""What is known of one device: predictions from its probe at once, better ones as it works.

Every measurement of whatever sum of operators (a probe's layer, a unit, a whole stage) tells about
the device's own function. A sum is not linear in it, so the posterior is found by Gauss-Newton
steps: each operator counts by its share of the time. All measurements are used anew at each
learning: nothing is forgotten, because nothing is overwritten (papers.md 2(c), replay).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeweave.predict.features import Floats
from edgeweave.predict.model import DIRECTIONS, LatencyModel, Work

__all__ = ["DeviceLatency", "Measurement", "Predicted"]

Entries = np.ndarray[tuple[int], np.dtype[np.intp]]

_STEPS = 3
_MOST_LOG_CHANGE = 4.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """What all operators of ``rows`` took together, as ``unit_features`` gives them.

    ``backward_seconds`` is None where no gradient flows.
    """

    rows: Floats
    forward_seconds: float
    backward_seconds: float | None


@dataclass(frozen=True, slots=True)
class Predicted:
    """``seconds[piece, direction]``, and the deviation of their logarithm.

    With about 90 % probability a piece takes between ``low`` and ``high``.
    """

    seconds: Floats
    deviation: Floats

    @property
    def low(self) -> Floats:
        return np.asarray(self.seconds * np.exp(-1.645 * self.deviation))

    @property
    def high(self) -> Floats:
        return np.asarray(self.seconds * np.exp(1.645 * self.deviation))


class DeviceLatency:
    """The posterior of a device, given its measurements. Immutable: ``given`` makes another."""

    def __init__(self, model: LatencyModel, measurements: Sequence[Measurement] = ()) -> None:
        self.model = model
        self.measurements = tuple(measurements)

    def given(self, measurements: Sequence[Measurement]) -> DeviceLatency:
        """What is known after more measurements."""
        return DeviceLatency(self.model, (*self.measurements, *measurements))

    def predict(self, pieces: Sequence[Floats]) -> Predicted:
        """Seconds of pieces of work, each the rows of its operators."""
        wanted = self.model.work(pieces)
        if not self.measurements:
            prior = self._linear(wanted, np.zeros_like(wanted.seconds))
            return self._predicted(prior.log_seconds, self._variances(prior))
        seen = self.model.work([each.rows for each in self.measurements])
        known, values = _told(self.measurements)
        at_seen, at_wanted = np.zeros_like(seen.seconds), np.zeros_like(wanted.seconds)
        for step in range(_STEPS):
            a, b = self._linear(seen, at_seen), self._linear(wanted, at_wanted)
            covariance = self._covariance(a, a)[np.ix_(known, known)]
            noise = self.model.prior.noise_variance(values)
            weights = np.linalg.inv(covariance + np.diag(noise))
            answer = weights @ (values - (a.log_seconds - a.own)[known])
            between = self._covariance(b, a)[:, known]
            if step < _STEPS - 1:
                at_seen = self._own(seen, a, known, answer)
                at_wanted = self._own(wanted, a, known, answer)
        explained = np.einsum("ij,jk,ik->i", between, weights, between)
        variances = np.maximum(self._variances(b) - explained, 0.0)
        return self._predicted(b.log_seconds - b.own + between @ answer, variances)

    def _linear(self, work: Work, own: Floats) -> _Linear:
        """The pieces' logarithms of seconds as linear functions, around what is believed now."""
        seconds = work.seconds * np.exp(own)
        totals = work.total(seconds)
        logs, owns, points, kinds = [], [], [], []
        for direction in range(len(DIRECTIONS)):
            shares = seconds[direction] / totals[work.owners, direction]
            mean = work.weighted(shares, work.points)
            logs.append(np.log(totals[:, direction]))
            owns.append(work.weighted(shares, own[direction][:, None])[:, 0])
            points.append(mean)
            kinds.append(mean @ self.model.kinds[:, direction].T)
        return _Linear(*(np.concatenate(each) for each in (logs, owns, points, kinds)))

    def _covariance(self, a: _Linear, b: _Linear) -> Floats:
        prior = self.model.prior
        alike = _alike(len(a.log_seconds), len(b.log_seconds), prior.likeness)
        own = prior.own**2 * (a.points @ b.points.T) * alike
        return np.asarray(own + prior.mixture**2 * (a.kinds @ b.kinds.T))

    def _variances(self, a: _Linear) -> Floats:
        prior = self.model.prior
        own = prior.own**2 * (a.points**2).sum(axis=1)
        return np.asarray(own + prior.mixture**2 * (a.kinds**2).sum(axis=1))

    def _own(self, work: Work, seen: _Linear, known: Entries, answer: Floats) -> Floats:
        """The device's own function at every operator of ``work``, in both directions."""
        prior, found = self.model.prior, []
        half = len(seen.log_seconds) // len(DIRECTIONS)
        spread = np.zeros(len(seen.log_seconds))
        spread[known] = answer
        mixture = seen.kinds.T @ spread
        parts = [seen.points[:half].T @ spread[:half], seen.points[half:].T @ spread[half:]]
        for direction in range(len(DIRECTIONS)):
            other = 1 - direction
            local = work.points @ (parts[direction] + prior.likeness * parts[other])
            known_kinds = work.points @ self.model.kinds[:, direction].T
            found.append(prior.own**2 * local + prior.mixture**2 * (known_kinds @ mixture))
        return np.clip(np.stack(found), -_MOST_LOG_CHANGE, _MOST_LOG_CHANGE)

    def _predicted(self, log_seconds: Floats, variances: Floats) -> Predicted:
        noise = self.model.prior.noise_variance(log_seconds)
        shape = (len(DIRECTIONS), -1)
        return Predicted(
            np.exp(log_seconds).reshape(shape).T, np.sqrt(variances + noise).reshape(shape).T
        )


@dataclass(frozen=True, slots=True)
class _Linear:
    """Forward of all pieces, then backward: log seconds, what of it is the device's own, and the
    coordinates of the linear function.
    """

    log_seconds: Floats
    own: Floats
    points: Floats
    kinds: Floats


def _alike(n_rows: int, n_columns: int, likeness: float) -> Floats:
    rows = np.arange(n_rows) < n_rows // len(DIRECTIONS)
    columns = np.arange(n_columns) < n_columns // len(DIRECTIONS)
    return np.where(rows[:, None] == columns[None], 1.0, likeness)


def _told(measurements: Sequence[Measurement]) -> tuple[Entries, Floats]:
    """Which entries of ``_Linear`` were measured, and the logarithms of what was."""
    seconds = [m.forward_seconds for m in measurements]
    seconds += [m.backward_seconds or 0.0 for m in measurements]
    known = np.flatnonzero(np.array(seconds) > 0)
    return known, np.log(np.array(seconds)[known])
