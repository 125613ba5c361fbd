"""Operators as points of a space in which equal work lies close: what a Gaussian process sees.

One function per family of operators, so that a convolution says nothing about a softmax. Each is
known by its covariance with a few typical operators (inducing points, Snelson and Ghahramani 2006);
in whitened coordinates its prior is that of independent standard normals::

    point(x) = [1, 1 of the family, K(U, U) ** -0.5 K(U, x) of the family]
    K(a, b)  = amplitude ** 2 / (1 + |a - b| ** 2 / 2)       distances in the family's length scales

Thus a function is a vector of coefficients, and everything that is learnt is linear algebra.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeweave.predict.features import FAMILIES, FEATURES, Floats

__all__ = ["Alikeness", "Embedding"]

Indices = npt.NDArray[np.intp]

_JITTER = 1e-6


@dataclass(frozen=True, slots=True)
class Alikeness:
    """How alike operators are for a function; its values are deviations of a prior.

    ``scales`` are length scales by family and feature, ``amplitudes`` and ``levels`` by family how
    much the function varies and lies off as a whole; ``common`` is how much for all families.
    """

    scales: Floats
    amplitudes: Floats
    levels: Floats
    common: float

    def covariance(self, a: Floats, b: Floats) -> Floats:
        """The prior covariance of the function's values at operators."""
        of_a, of_b = a[:, 0].astype(int), b[:, 0].astype(int)
        found = np.full((len(a), len(b)), self.common**2)
        for family in set(of_a) & set(of_b):
            in_a, in_b = np.flatnonzero(of_a == family), np.flatnonzero(of_b == family)
            alike = self.within(family, a[in_a, 1:], b[in_b, 1:])
            found[np.ix_(in_a, in_b)] += self.levels[family] ** 2 + alike
        return found

    def within(self, family: int, a: Floats, b: Floats) -> Floats:
        """Of what varies within a family, given features."""
        a, b = a / self.scales[family], b / self.scales[family]
        squares: Sequence[Floats] = [(each**2).sum(axis=1) for each in (a, b)]
        distances = np.maximum(squares[0][:, None] + squares[1][None] - 2 * a @ b.T, 0.0)
        return np.asarray(self.amplitudes[family] ** 2 / (1 + distances / 2))


@dataclass(frozen=True, slots=True)
class _Family:
    """The part of the space that belongs to one family."""

    typical: Floats
    whitening: Floats
    start: int
    """Its first coordinate."""


class Embedding:
    """Where operators lie. ``typical`` are rows of ``FEATURES`` by the family's name."""

    def __init__(self, typical: Mapping[str, Floats], alikeness: Alikeness) -> None:
        self.typical = dict(typical)
        self.alikeness = alikeness
        self._families: dict[int, _Family] = {}
        self.n_coordinates = 1 + len(FAMILIES)
        for name, rows in self.typical.items():
            family, start = FAMILIES.index(name), self.n_coordinates
            self._families[family] = _Family(rows, _whitening(alikeness, family, rows), start)
            self.n_coordinates += len(rows)

    def points(self, rows: Floats) -> Floats:
        """The coordinates of operators, each row the family's number and ``FEATURES``."""
        points = np.zeros((len(rows), self.n_coordinates))
        for mine, columns, values in self.parts(rows):
            points[np.ix_(mine, columns)] = values
        return points

    def parts(self, rows: Floats) -> Iterator[tuple[Indices, Indices, Floats]]:
        """``points`` where they are not zero: by family its rows, their columns, the values."""
        if rows.ndim != 2 or rows.shape[1] != 1 + len(FEATURES):
            raise ValueError(f"operators are rows of 1 + {len(FEATURES)} (got {rows.shape})")
        families = rows[:, 0].astype(int)
        for family in np.unique(families).tolist():
            mine = np.flatnonzero(families == family)
            columns = np.array([0, 1 + family])
            values = np.tile([self.alikeness.common, self.alikeness.levels[family]], (len(mine), 1))
            if family in self._families:
                part = self._families[family]
                between = self.alikeness.within(family, rows[mine, 1:], part.typical)
                columns = np.append(columns, np.arange(part.start, part.start + len(part.typical)))
                values = np.hstack([values, between @ part.whitening])
            yield mine, columns, values


def _whitening(alikeness: Alikeness, family: int, typical: Floats) -> Floats:
    values, vectors = np.linalg.eigh(alikeness.within(family, typical, typical))
    kept = np.maximum(values, _JITTER * alikeness.amplitudes[family] ** 2)
    return np.asarray((vectors / np.sqrt(kept)) @ vectors.T)
