"""What is known of one device: predictions from its probe, better ones the more it measured.

Every measurement of whatever sum of operators (a probe's layer, a unit, a whole stage) tells about
the device's own function. A sum is not linear in it, so the posterior is found by Gauss-Newton
steps: each operator counts by its share of the time. All measurements are used anew at each
learning: nothing is forgotten, because nothing is overwritten (papers.md 2(c), replay).

Stages have hundreds of operators, many of them alike: covariances are found once for each distinct
one, and above ``_MOST_DISTINCT`` the most alike count as the same.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from edgeweave.predict.features import Floats
from edgeweave.predict.model import DIRECTIONS, LatencyModel, Prior, plain_seconds

__all__ = ["DeviceLatency", "HeldOut", "Measurement", "Predicted"]

Entries = np.ndarray[tuple[int], np.dtype[np.intp]]

_STEPS = 3
_MOST_LOG_CHANGE = 4.0
_MOST_DISTINCT = 1500
_FIRST_WIDTH = 1 / 16
"""In length scales: of operators so close one tells all but 0.2 % of the other's variance."""


@dataclass(frozen=True, slots=True, eq=False)
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


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Every measurement as the others predict it, ``[measurement, direction]``.

    ``errors`` are logarithms of measured over predicted seconds, ``deviations`` what they were
    expected to be; NaN where nothing was measured.
    """

    errors: Floats
    deviations: Floats


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
        wanted = _Pieces.of(self.model, pieces)
        around = wanted.linear(wanted.unknown)
        if not self.measurements:
            return self._predicted(around.log_seconds, self._variances(wanted, around))
        known = self._posterior
        between = self.model.covariance(wanted.rows, known.seen.rows)
        around = wanted.linear(self._own(wanted, between, known.before, known.answer_before))
        cross = self._covariance(around, between, known.now)[:, known.told]
        explained = ((cross @ known.precision) * cross).sum(axis=1)
        return self._predicted(
            around.log_seconds - around.own + cross @ known.answer[known.told],
            self._variances(wanted, around) - explained,
        )

    def covariance(self, pieces: Sequence[Floats]) -> Floats:
        """Of the logarithms of their forward seconds, before anything was measured."""
        work = _Pieces.of(self.model, pieces, most=_MOST_DISTINCT)
        linear = work.linear(work.unknown)
        own = self.model.covariance(work.rows, work.rows)
        return self._covariance(linear, own, linear)[: work.n, : work.n]

    def held_out(self) -> HeldOut:
        """Each measurement as all the others predict it, linearised where all of them believe."""
        known, n = self._posterior, len(self.measurements)
        errors, deviations = np.full((2, len(DIRECTIONS) * n), np.nan)
        place = np.full(len(DIRECTIONS) * n, -1)
        place[known.told] = np.arange(len(known.told))
        for index in range(n):
            entries = np.array([index, n + index])
            entries = entries[place[entries] >= 0]
            mine = place[entries]
            left = np.linalg.inv(known.precision[np.ix_(mine, mine)])
            errors[entries] = left @ known.answer[entries]
            deviations[entries] = np.sqrt(np.diag(left))
        shape = (len(DIRECTIONS), n)
        return HeldOut(errors.reshape(shape).T, deviations.reshape(shape).T)

    @functools.cached_property
    def _posterior(self) -> _Posterior:
        seen = _Pieces.of(self.model, [m.rows for m in self.measurements], most=_MOST_DISTINCT)
        told, values = _told(self.measurements)
        within = self.model.covariance(seen.rows, seen.rows)
        noise = np.diag(self.model.prior.noise_variance(values))
        now = before = seen.linear(seen.unknown)
        answer = answer_before = np.zeros(len(now.log_seconds))
        for step in range(_STEPS):
            if step:
                before, answer_before = now, answer
                now = seen.linear(self._own(seen, within, now, answer))
            covariance = self._covariance(now, within, now)[np.ix_(told, told)]
            precision = np.asarray(np.linalg.inv(covariance + noise), dtype=np.float64)
            answer = np.zeros(len(now.log_seconds))
            answer[told] = precision @ (values - now.log_seconds[told] + now.own[told])
        return _Posterior(seen, told, before, answer_before, now, answer, precision)

    def _covariance(self, a: _Linear, own: Floats, b: _Linear) -> Floats:
        """Of pieces with pieces, given that of the device's own function at their operators."""
        told = [own @ right.T for right in b.means]
        blocks = [
            [left @ each * _likeness(self.model.prior, i, j) for j, each in enumerate(told)]
            for i, left in enumerate(a.means)
        ]
        prior = self.model.prior
        return np.asarray(np.block(blocks) + prior.mixture**2 * (a.kinds @ b.kinds.T))

    def _variances(self, wanted: _Pieces, around: _Linear) -> Floats:
        """The prior's, of every piece forward, then backward."""
        own = np.empty((len(DIRECTIONS), wanted.n))
        for index in range(wanted.n):
            mine = np.unique(wanted.like[wanted.owners == index])
            within = self.model.covariance(wanted.rows[mine], wanted.rows[mine])
            means = [each[index, mine] for each in around.means]
            own[:, index] = [mean @ within @ mean for mean in means]
        prior = self.model.prior
        mixture = (around.kinds**2).sum(axis=1)
        return np.asarray(own.ravel() + prior.mixture**2 * mixture)

    def _own(self, work: _Pieces, covariance: Floats, seen: _Linear, answer: Floats) -> Floats:
        """The device's own function at every distinct operator, in both directions."""
        prior = self.model.prior
        mixture = seen.kinds.T @ answer
        halves = np.split(answer, len(DIRECTIONS))
        told = [covariance @ (mean.T @ half) for mean, half in zip(seen.means, halves, strict=True)]
        found = [
            sum(_likeness(prior, i, j) * each for j, each in enumerate(told))
            + prior.mixture**2 * (kinds @ mixture)
            for i, kinds in enumerate(work.kinds)
        ]
        return np.asarray(np.clip(np.stack(found), -_MOST_LOG_CHANGE, _MOST_LOG_CHANGE))

    def _predicted(self, log_seconds: Floats, variances: Floats) -> Predicted:
        noise = self.model.prior.noise_variance(log_seconds)
        deviations = np.sqrt(np.maximum(variances, 0.0) + noise)
        shape = (len(DIRECTIONS), -1)
        return Predicted(np.exp(log_seconds).reshape(shape).T, deviations.reshape(shape).T)


@dataclass(frozen=True, slots=True)
class _Linear:
    """Forward of all pieces, then backward: log seconds, what of it is the device's own, and how
    it depends on the functions: ``means`` by direction over operators, ``kinds`` over kinds.
    """

    log_seconds: Floats
    own: Floats
    means: list[Floats]
    kinds: Floats


@dataclass(frozen=True, slots=True)
class _Posterior:
    """What measurements say: ``answer`` to them, linearised as ``now``; the same a step earlier.

    ``precision`` is the inverse covariance of the entries that were ``told``.
    """

    seen: _Pieces
    told: Entries
    before: _Linear
    answer_before: Floats
    now: _Linear
    answer: Floats
    precision: Floats


@dataclass(frozen=True, slots=True)
class _Pieces:
    """``n`` pieces of work. ``rows`` are the distinct operators, and operator ``i``, which belongs
    to piece ``owners[i]``, is like ``rows[like[i]]``; it takes ``typical[direction, i]`` seconds.
    ``kinds[direction, row, kind]`` is how known kinds differ there.
    """

    n: int
    owners: Entries
    like: Entries
    rows: Floats
    kinds: Floats
    typical: Floats

    @classmethod
    def of(cls, model: LatencyModel, pieces: Sequence[Floats], *, most: int | None = None) -> Self:
        """Of the rows of each piece; ``most`` bounds the distinct operators."""
        operators = np.concatenate(list(pieces))
        scales = np.minimum(model.embedding.alikeness.scales, model.own.alikeness.scales)
        first, like = _distinct(operators, scales[operators[:, 0].astype(int)], most)
        work = model.work([operators[first]])
        shared = (work.seconds / plain_seconds(model.work_costs, work.rows))[:, like]
        return cls(
            n=len(pieces),
            owners=np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces]),
            like=like,
            rows=work.rows,
            kinds=work.kinds,
            typical=plain_seconds(model.work_costs, operators) * shared,
        )

    @property
    def unknown(self) -> Floats:
        """What is believed of each distinct operator at first: nothing of its own."""
        return np.zeros((len(DIRECTIONS), len(self.rows)))

    def linear(self, own: Floats) -> _Linear:
        """The pieces' logarithms of seconds as linear functions, around what is believed."""
        seconds = self.typical * np.exp(own[:, self.like])
        totals = np.stack([np.bincount(self.owners, each, self.n) for each in seconds])
        shares = seconds / totals[:, self.owners]
        means = [self._means(each) for each in shares]
        owns = [mean @ each for mean, each in zip(means, own, strict=True)]
        kinds = [mean @ each for mean, each in zip(means, self.kinds, strict=True)]
        # A piece without operators takes no time.
        logs = np.log(totals, out=np.full_like(totals, -np.inf), where=totals > 0)
        return _Linear(logs.ravel(), np.concatenate(owns), means, np.concatenate(kinds))

    def _means(self, shares: Floats) -> Floats:
        """The matrix that takes means over the distinct operators of each piece."""
        n_rows = len(self.rows)
        places = self.owners * n_rows + self.like
        means = np.bincount(places, shares, self.n * n_rows).reshape(self.n, n_rows)
        return np.asarray(means, dtype=np.float64)


def _distinct(operators: Floats, scales: Floats, most: int | None) -> tuple[Entries, Entries]:
    """Which operators stand for all, and for each of them which of those: itself or one alike.

    The most alike are merged first, until at most ``most`` are left.
    """
    first, like = _groups(operators)
    places, width = operators.copy(), _FIRST_WIDTH
    while most is not None and len(first) > most:
        places[:, 1:] = np.round(operators[:, 1:] / scales / width)
        first, like = _groups(places)
        width *= 2
    return first, like


def _groups(rows: Floats) -> tuple[Entries, Entries]:
    """The first of each group of equal rows, and the group of each row."""
    plain = np.ascontiguousarray(rows + 0.0)  # without negative zeros: bytes are compared
    keys = plain.view(np.dtype((np.void, plain.itemsize * plain.shape[1]))).ravel()
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    return first, group.ravel()


def _likeness(prior: Prior, i: int, j: int) -> float:
    """How alike the device's own functions of two directions are."""
    return 1.0 if i == j else prior.likeness


def _told(measurements: Sequence[Measurement]) -> tuple[Entries, Floats]:
    """Which entries of ``_Linear`` were measured, and the logarithms of what was."""
    seconds = [m.forward_seconds for m in measurements]
    seconds += [m.backward_seconds or 0.0 for m in measurements]
    known = np.flatnonzero(np.array(seconds) > 0)
    return known, np.log(np.array(seconds)[known])
