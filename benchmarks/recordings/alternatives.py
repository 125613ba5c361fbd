"""Other ways to predict a device from few samples of it, each tuned as one would.

All are given what ours is given: what other devices took for every piece, and the samples.

    scalar     FTPipeHD's capacity: the times of the device whose ratios to the samples scatter
               least, times their median
    FLOPs      overhead and seconds per multiply-add of a piece, fitted to the samples
    roofline   overhead and the larger of computing and moving bytes, fitted to the samples
    trees      gradient-boosted, taught what other devices took, scaled by the samples; and trees
               for what then remains, where cross-validation among the samples says that they help
    factors    no listed alternative, but the plain baseline of the data: as devices differ from
               each other in four directions, so does this one (ridge regression)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

from edgeweave.predict.features import FAMILIES, Floats, macs_and_bytes

__all__ = ["Factors", "Scalar", "Trees", "Work", "sums"]

Units = np.ndarray[tuple[int], np.dtype[np.intp]]

_OVERHEADS = (0.0, *np.logspace(-3, 2, 41))
_RIDGES = (0.0, *np.logspace(-3, 3, 49))
_FACTOR_NOISE = 0.1
_LEAST_FOR_MORE_TREES = 20


class Scalar:
    """``others[device, piece]`` are logarithms of seconds; devices' mean is one more."""

    def __init__(self, others: Floats) -> None:
        self._references = np.vstack([others, others.mean(axis=0)])

    def predict(self, seen: Units, seconds: Floats) -> Floats:
        """Seconds of all pieces, from those of the pieces seen."""
        ratios = np.log(seconds) - self._references[:, seen]
        capacities = np.median(ratios, axis=1)
        best = int(np.abs(ratios - capacities[:, None]).mean(axis=1).argmin())
        return np.asarray(np.exp(self._references[best] + capacities[best]))


class Work:
    """Proportional to ``overhead + multiply-adds``, or to ``overhead + max(multiply-adds, bytes at
    the ridge)``: the shape of least mean error of the samples' logarithms, of a grid.
    """

    def __init__(self, pieces: Sequence[Floats], *, roofline: bool) -> None:
        macs, moved = sums(pieces)
        ridges = _RIDGES if roofline else (0.0,)
        balance = macs.mean() / moved.mean()
        overheads = [macs.mean() * each for each in _OVERHEADS]
        work = [np.maximum(macs, ridge * balance * moved) for ridge in ridges]
        self._shapes = np.log([o + each + 1.0 for o in overheads for each in work])

    def predict(self, seen: Units, seconds: Floats) -> Floats:
        """Seconds of all pieces, from those of the pieces seen."""
        ratios = np.log(seconds) - self._shapes[:, seen]
        rates = np.median(ratios, axis=1)
        best = int(np.abs(ratios - rates[:, None]).mean(axis=1).argmin())
        return np.asarray(np.exp(self._shapes[best] + rates[best]))


class Trees:
    """Of a piece's sums by family; devices' levels are no matter of shapes and taken off."""

    def __init__(self, pieces: Sequence[Floats], others: Floats) -> None:
        self._table = _table(pieces)
        typical = others.mean(axis=0)
        trees = HistGradientBoostingRegressor(
            max_iter=400, learning_rate=0.06, min_samples_leaf=4, random_state=0
        )
        levels = others.mean(axis=1, keepdims=True)
        many = np.tile(self._table, (len(others), 1))
        trees.fit(many, (others - levels).ravel())
        self._typical: Floats = trees.predict(self._table) + typical.mean()

    def predict(self, seen: Units, seconds: Floats) -> Floats:
        """Seconds of all pieces, from those of the pieces seen."""
        wanted = np.log(seconds) - self._typical[seen]
        plain = np.full(len(self._table), np.median(wanted))
        if len(seen) >= _LEAST_FOR_MORE_TREES:
            folds = np.arange(len(seen)) % 5
            errors = np.zeros(2)
            for fold in range(5):
                rest, left = folds != fold, folds == fold
                level = np.median(wanted[rest])
                more = self._more(seen[rest], wanted[rest] - level)[seen[left]]
                errors += [np.abs(wanted[left] - level - each).sum() for each in (0.0, more)]
            if errors[1] < errors[0]:
                plain = plain + self._more(seen, wanted - plain[seen])
        return np.asarray(np.exp(self._typical + plain))

    def _more(self, seen: Units, wanted: Floats) -> Floats:
        trees = HistGradientBoostingRegressor(
            max_iter=60, learning_rate=0.1, min_samples_leaf=4, max_leaf_nodes=8, random_state=0
        )
        return np.asarray(trees.fit(self._table[seen], wanted).predict(self._table))


class Factors:
    """Principal directions of devices' deviations from the typical one, each with its prior."""

    def __init__(self, others: Floats, *, n_factors: int = 4) -> None:
        typical = others.mean(axis=0)
        _, sizes, directions = np.linalg.svd(others - typical, full_matrices=False)
        n = min(n_factors, len(others) - 1)
        scale = sizes[:n, None] / np.sqrt(len(others))
        self._typical, self._directions = typical, (scale * directions[:n]).T

    def predict(self, seen: Units, seconds: Floats) -> Floats:
        """Seconds of all pieces, from those of the pieces seen."""
        known = self._directions[seen]
        ridge = _FACTOR_NOISE**2 * np.eye(known.shape[1])
        told = np.log(seconds) - self._typical[seen]
        weights = np.linalg.solve(known.T @ known + ridge, known.T @ told)
        return np.asarray(np.exp(self._typical + self._directions @ weights))


def sums(pieces: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Multiply-adds and bytes moved of each piece."""
    work = [macs_and_bytes(piece) for piece in pieces]
    macs, moved = (np.array([part.sum() for part in parts]) for parts in zip(*work, strict=True))
    return macs, moved


def _table(pieces: Sequence[Floats]) -> Floats:
    """A piece's multiply-adds and bytes by family, and its largest features."""
    found = []
    for piece in pieces:
        family = piece[:, 0].astype(int)
        work = [
            np.bincount(family, part, minlength=len(FAMILIES)) for part in macs_and_bytes(piece)
        ]
        counts = np.bincount(family, minlength=len(FAMILIES))
        found.append(
            np.concatenate([np.log1p(np.array(work)).ravel(), counts, piece[:, 1:].max(0)])
        )
    return np.array(found)
