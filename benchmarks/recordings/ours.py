"""The package's own way: a model fitted to other devices, and what the samples tell it.

Only inference was recorded. Forward stands for backward as well while the model is fitted, and
nothing reads the backward half.

Devices differ by factors of hundreds. Thus the model is of levelled devices, and the level of a new
one is whatever makes its samples least surprising (generalised least squares). Of the known
devices those count most that the samples resemble.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.latency.fit import Teaching, fit, fit_scales, fit_work_costs
from benchmarks.recordings.values import WORK
from edgeweave.predict import DeviceLatency, LatencyModel, Measurement
from edgeweave.predict.features import Floats

__all__ = ["Ours"]

Units = np.ndarray[tuple[int], np.dtype[np.intp]]

_TUNING_COUNTS = (8, 30)
_TUNING_FAMILIES = 4
_TUNING_JUDGED = 40
_LEVEL_STEP, _MOST_LEVEL_CHANGE = 0.1, 1.0
_LEAST_SCATTER = 0.03


@dataclass(frozen=True, slots=True)
class _Expected:
    """Of a new device: ``own`` 1 is as much of its own as the package expects, ``noise`` the
    deviation of a sample, ``selection`` how much more those known devices count that scatter less
    about the samples: the power of the scatter.
    """

    own: float
    noise: float
    selection: float


_TRIED = [_Expected(*each) for each in itertools.product((0.5, 1.0), (0.05, 0.15), (0.0, 4.0, 8.0))]


@dataclass(frozen=True, slots=True)
class _Known:
    """Pieces, and the logarithms of seconds ``others[device, piece]`` that made the model."""

    model: LatencyModel
    pieces: Sequence[Floats]
    others: Floats

    def of(self, devices: Units) -> _Known:
        """With these devices only, in all but what all devices share."""
        model = replace(self.model, kinds=self.model.kinds[devices])
        return _Known(model, self.pieces, self.others[devices])

    def expecting(self, expected: _Expected, seen: Units, seconds: Floats) -> LatencyModel:
        """A new device differs from the typical one as the known ones do that resemble it."""
        ratios = np.log(seconds) - self.others[:, seen]
        scatter = np.abs(ratios - np.median(ratios, axis=1, keepdims=True)).mean(axis=1)
        shares = (scatter + _LEAST_SCATTER) ** -expected.selection
        weights = np.sqrt(shares / shares.sum())
        prior = replace(
            self.model.prior,
            own=expected.own * self.model.prior.own,
            mixture=1.0,
            noise=expected.noise,
            small_noise=0.0,
        )
        return replace(self.model, kinds=weights[:, None, None] * self.model.kinds, prior=prior)

    def predict(
        self, expected: _Expected, seen: Units, seconds: Floats, wanted: Sequence[Floats]
    ) -> Floats:
        """Logarithms of the seconds of what is wanted, from those of the pieces seen."""
        model = self.expecting(expected, seen, seconds)
        known = [self.pieces[piece] for piece in seen.tolist()]
        logs = np.log(seconds)

        def believed(level: float, pieces: Sequence[Floats]) -> Floats:
            levelled = np.exp(logs - level)
            measured = [
                Measurement(piece, float(taken), None)
                for piece, taken in zip(known, levelled, strict=True)
            ]
            predicted = DeviceLatency(model, measured).predict(pieces).seconds[:, 0]
            return np.asarray(level + np.log(predicted))

        typical = np.log(DeviceLatency(model).predict(known).seconds[:, 0])
        level = float(np.median(logs - typical))
        here = float((logs - believed(level, known)).mean())
        there = float((logs - believed(level + _LEVEL_STEP, known)).mean())
        change = here * _LEVEL_STEP / max(here - there, 1e-6)
        level += float(np.clip(change, -_MOST_LEVEL_CHANGE, _MOST_LEVEL_CHANGE))
        return believed(level, wanted)


class Ours:
    """``others[device, piece]`` are logarithms of seconds, of devices of these ``families``.

    What is expected of a device is chosen among the others: some are predicted from the rest.
    """

    def __init__(
        self, pieces: Sequence[Floats], others: Floats, families: Sequence[str], *, seed: int = 0
    ) -> None:
        pieces = _varying(pieces)
        levels = others.mean(axis=1, keepdims=True)
        taught = _teaching(pieces, others - levels + levels.mean())
        work_costs = fit_work_costs(taught)
        model = fit(taught, fit_scales(taught, work_costs), work_costs)
        self._known = _Known(model, pieces, others)
        self._expected = _tuned(self._known, np.array(families), np.random.default_rng(seed))

    def predict(self, seen: Units, seconds: Floats) -> Floats:
        """Seconds of all pieces, from those of the pieces seen."""
        known = self._known
        return np.exp(known.predict(self._expected, seen, seconds, known.pieces))


def _varying(pieces: Sequence[Floats]) -> list[Floats]:
    """Without features that are the same everywhere: they tell nothing, and far from 0 they cost
    digits where distances are computed.
    """
    rows = np.concatenate(pieces)
    same = np.flatnonzero((rows == rows[0]).all(axis=0) & (np.arange(rows.shape[1]) > 0))
    zeroed = [column for column in same if column not in WORK]
    found = [piece.copy() for piece in pieces]
    for piece in found:
        piece[:, zeroed] = 0.0
    return found


def _teaching(pieces: Sequence[Floats], others: Floats) -> Teaching:
    owners = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
    kinds = {str(device): np.stack([logs, logs], axis=1) for device, logs in enumerate(others)}
    return Teaching(np.concatenate(pieces), owners, kinds)


def _tuned(
    known: _Known,
    families: np.ndarray[tuple[int], np.dtype[np.str_]],
    chance: np.random.Generator,
) -> _Expected:
    """What makes devices best predicted by those of other families."""
    names = np.unique(families)
    held_out = chance.choice(names, min(_TUNING_FAMILIES, len(names)), replace=False)
    order = chance.permutation(len(known.pieces))
    errors = np.zeros(len(_TRIED))
    for family in held_out:
        rest = known.of(np.flatnonzero(families != family))
        logs = known.others[np.flatnonzero(families == family)[0]]
        for count in _TUNING_COUNTS:
            seen, judged = np.split(order, [min(count, len(order) // 2)])
            judged = judged[:_TUNING_JUDGED]
            wanted = [known.pieces[piece] for piece in judged.tolist()]
            for index, expected in enumerate(_TRIED):
                predicted = rest.predict(expected, seen, np.exp(logs[seen]), wanted)
                errors[index] += np.abs(predicted - logs[judged]).mean()
    return _TRIED[int(errors.argmin())]
