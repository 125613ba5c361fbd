"""What is known of one device: predictions from its probe, better ones the more it measured.

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
        around = self._linear(wanted, np.zeros_like(wanted.seconds))
        own = self.model.embedding.covariance(wanted.rows, wanted.rows)
        if not self.measurements:
            return self._predicted(around.log_seconds, self._covariance(around, own, around))
        seen = self.model.work([each.rows for each in self.measurements])
        told, values = _told(self.measurements)
        between = self.model.embedding.covariance(wanted.rows, seen.rows)
        within = self.model.embedding.covariance(seen.rows, seen.rows)
        noise = np.diag(self.model.prior.noise_variance(values))
        at_seen = self._linear(seen, np.zeros_like(seen.seconds))
        for step in range(_STEPS):
            covariance = self._covariance(at_seen, within, at_seen)[np.ix_(told, told)] + noise
            answer = np.zeros(len(at_seen.log_seconds))
            surprise = (values - at_seen.log_seconds[told]) + at_seen.own[told]
            answer[told] = np.linalg.solve(covariance, surprise)
            if step < _STEPS - 1:
                wanted_own = self._own(wanted, between, at_seen, answer)
                at_seen = self._linear(seen, self._own(seen, within, at_seen, answer))
                around = self._linear(wanted, wanted_own)
        cross = self._covariance(around, between, at_seen)
        explained = cross[:, told] @ np.linalg.solve(covariance, cross[:, told].T)
        return self._predicted(
            around.log_seconds - around.own + cross @ answer,
            self._covariance(around, own, around) - explained,
        )

    def _linear(self, work: Work, own: Floats) -> _Linear:
        """The pieces' logarithms of seconds as linear functions, around what is believed now."""
        seconds = work.seconds * np.exp(own)
        totals = work.total(seconds)
        means = [
            work.means(each / totals[work.owners, direction])
            for direction, each in enumerate(seconds)
        ]
        kinds = [
            mean @ work.points @ self.model.kinds[:, direction].T
            for direction, mean in enumerate(means)
        ]
        owns = [mean @ each for mean, each in zip(means, own, strict=True)]
        return _Linear(np.log(totals.T.ravel()), np.concatenate(owns), means, np.concatenate(kinds))

    def _covariance(self, a: _Linear, own: Floats, b: _Linear) -> Floats:
        """Of pieces with pieces, given that of the device's own function at their operators."""
        prior = self.model.prior
        blocks = [
            [
                left @ own @ right.T * (1.0 if i == j else prior.likeness)
                for j, right in enumerate(b.means)
            ]
            for i, left in enumerate(a.means)
        ]
        return np.asarray(
            prior.own**2 * np.block(blocks) + prior.mixture**2 * (a.kinds @ b.kinds.T)
        )

    def _own(self, work: Work, covariance: Floats, seen: _Linear, answer: Floats) -> Floats:
        """The device's own function at every operator of ``work``, in both directions."""
        prior = self.model.prior
        mixture = seen.kinds.T @ answer
        halves = np.split(answer, len(DIRECTIONS))
        told = [covariance @ (mean.T @ half) for mean, half in zip(seen.means, halves, strict=True)]
        found = []
        for direction in range(len(DIRECTIONS)):
            local = told[direction] + prior.likeness * told[1 - direction]
            known = work.points @ self.model.kinds[:, direction].T
            found.append(prior.own**2 * local + prior.mixture**2 * (known @ mixture))
        return np.clip(np.stack(found), -_MOST_LOG_CHANGE, _MOST_LOG_CHANGE)

    def _predicted(self, log_seconds: Floats, covariance: Floats) -> Predicted:
        noise = self.model.prior.noise_variance(log_seconds)
        variances = np.maximum(np.diag(covariance), 0.0) + noise
        shape = (len(DIRECTIONS), -1)
        return Predicted(np.exp(log_seconds).reshape(shape).T, np.sqrt(variances).reshape(shape).T)


@dataclass(frozen=True, slots=True)
class _Linear:
    """Forward of all pieces, then backward: log seconds, what of it is the device's own, and how
    it depends on the functions: ``means`` by direction over operators, ``kinds`` over kinds.
    """

    log_seconds: Floats
    own: Floats
    means: list[Floats]
    kinds: Floats


def _told(measurements: Sequence[Measurement]) -> tuple[Entries, Floats]:
    """Which entries of ``_Linear`` were measured, and the logarithms of what was."""
    seconds = [m.forward_seconds for m in measurements]
    seconds += [m.backward_seconds or 0.0 for m in measurements]
    known = np.flatnonzero(np.array(seconds) > 0)
    return known, np.log(np.array(seconds)[known])
