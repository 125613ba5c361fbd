"""Operators as points of a space in which equal work lies close: what a Gaussian process sees.

One function per family of operators, so that a convolution says nothing about a softmax. Each is
known by its covariance with a few typical operators (inducing points, Snelson and Ghahramani 2006);
in whitened coordinates its prior is that of independent standard normals::

    point(x) = [1, 1 of the family, K(U, U) ** -0.5 K(U, x) of the family]
    K(a, b)  = amplitude ** 2 / (1 + |a - b| ** 2 / 2)       distances in the family's length scales

Thus a function is a vector of coefficients, and everything that is learnt is linear algebra.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeweave.predict.features import FAMILIES, FEATURES, Floats

__all__ = ["Embedding"]

_JITTER = 1e-6


@dataclass(frozen=True, slots=True)
class _Family:
    """The part of the space that belongs to one family."""

    scales: Floats
    amplitude: float
    typical: Floats
    whitening: Floats
    start: int
    """Its first coordinate."""

    def points(self, features: Floats) -> Floats:
        between = _covariance(features / self.scales, self.typical, self.amplitude)
        return np.asarray(between @ self.whitening)


class Embedding:
    """Where operators lie. ``typical`` are rows of ``FEATURES`` by the family's name.

    ``scales`` are length scales by family and feature, ``amplitudes`` and ``levels`` the prior's
    deviation of a family's function: as it varies, and as a whole. ``common`` is that of all.
    """

    def __init__(
        self,
        typical: Mapping[str, Floats],
        *,
        scales: Floats,
        amplitudes: Floats,
        levels: Floats,
        common: float,
    ) -> None:
        self.typical = dict(typical)
        self.scales, self.amplitudes, self.levels, self.common = scales, amplitudes, levels, common
        self._families: dict[int, _Family] = {}
        self.n_coordinates = 1 + len(FAMILIES)
        for name, rows in self.typical.items():
            family, start = FAMILIES.index(name), self.n_coordinates
            amplitude = float(amplitudes[family])
            self._families[family] = _family(rows, scales[family], amplitude, start)
            self.n_coordinates += len(rows)

    def points(self, rows: Floats) -> Floats:
        """The coordinates of operators, each row the family's number and ``FEATURES``."""
        if rows.ndim != 2 or rows.shape[1] != 1 + len(FEATURES):
            raise ValueError(f"operators are rows of 1 + {len(FEATURES)} (got {rows.shape})")
        families = rows[:, 0].astype(int)
        points = np.zeros((len(rows), self.n_coordinates))
        points[:, 0] = self.common
        points[np.arange(len(rows)), 1 + families] = self.levels[families]
        for family, part in self._families.items():
            mine = np.flatnonzero(families == family)
            if len(mine):
                found = part.points(rows[mine, 1:])
                points[mine, part.start : part.start + found.shape[1]] = found
        return points

    def covariance(self, a: Floats, b: Floats) -> Floats:
        """The prior covariance of a function's values at operators, exact also far from typical."""
        of_a, of_b = a[:, 0].astype(int), b[:, 0].astype(int)
        found = np.full((len(a), len(b)), self.common**2)
        for family in set(of_a) & set(of_b):
            in_a, in_b = np.flatnonzero(of_a == family), np.flatnonzero(of_b == family)
            scales, amplitude = self.scales[family], float(self.amplitudes[family])
            alike = _covariance(a[in_a, 1:] / scales, b[in_b, 1:] / scales, amplitude)
            found[np.ix_(in_a, in_b)] += self.levels[family] ** 2 + alike
        return found


def _family(typical: Floats, scales: Floats, amplitude: float, start: int) -> _Family:
    scaled = typical / scales
    values, vectors = np.linalg.eigh(_covariance(scaled, scaled, amplitude))
    kept = np.maximum(values, _JITTER * amplitude**2)
    return _Family(scales, amplitude, scaled, (vectors / np.sqrt(kept)) @ vectors.T, start)


def _covariance(a: Floats, b: Floats, amplitude: float) -> Floats:
    squares: Sequence[Floats] = [(each**2).sum(axis=1) for each in (a, b)]
    distances = np.maximum(squares[0][:, None] + squares[1][None] - 2 * a @ b.T, 0.0)
    return np.asarray(amplitude**2 / (1 + distances / 2))
