"""Find a function of operators from what sums over them took.

A sum's logarithm is not linear in the function, so there are Gauss-Newton steps: each operator
counts by its share of the time. What a unit takes that is off by far counts little (Student's t).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.latency.scales import Noise
from benchmarks.latency.teaching import Teaching
from edgeweave.predict.embedding import Embedding, Indices
from edgeweave.predict.features import Floats

__all__ = ["Solver"]

_TAILS = 4.0
"""Degrees of freedom."""
_MOST_LOG_CHANGE = 4.0


@dataclass(frozen=True, slots=True)
class _Block:
    """A family's operators in the units that have some; ``first`` are their first rows."""

    rows: Indices
    units: Indices
    first: Indices
    columns: Indices
    points: Floats


class Solver:
    """Coefficients of an embedding for the units that teach."""

    def __init__(self, taught: Teaching, embedding: Embedding) -> None:
        self._taught, self._n = taught, embedding.n_coordinates
        self._blocks = [
            _block(taught, rows, columns, points)
            for rows, columns, points in embedding.parts(taught.rows)
        ]
        pairs = itertools.combinations_with_replacement(range(len(self._blocks)), 2)
        self._common = {pair: self._meeting(*pair) for pair in pairs}

    def coefficients(
        self, seconds: Floats, wanted: Floats, noise: Noise, *, n_steps: int
    ) -> Floats:
        """With which log seconds of units come out as wanted.

        ``seconds`` are those of operators without them.
        """
        taught, variance = self._taught, noise.variance(wanted)
        found: Floats = np.zeros(self._n)
        values: Floats = np.zeros(len(taught.rows))
        for step in range(n_steps):
            now = seconds * np.exp(values)
            totals = taught.totals(now)
            shares = now / totals[taught.owners]
            off = wanted - np.log(totals)
            tails = (_TAILS + 1) / (_TAILS + off**2 / variance) if step else 1.0
            weights = tails / variance
            means = [
                np.add.reduceat(shares[block.rows, None] * block.points, block.first, axis=0)
                for block in self._blocks
            ]
            surprise = weights * (off + taught.totals(shares * values))
            normal, sums = self._normal(means, weights), self._sums(means, surprise)
            found = np.asarray(np.linalg.solve(normal, sums), dtype=np.float64)
            values = self.values(found).clip(-_MOST_LOG_CHANGE, _MOST_LOG_CHANGE)
        return found

    def values(self, coefficients: Floats) -> Floats:
        """The function at every operator that teaches."""
        values = np.zeros(len(self._taught.rows))
        for block in self._blocks:
            values[block.rows] = block.points @ coefficients[block.columns]
        return values

    def _normal(self, means: Sequence[Floats], weights: Floats) -> Floats:
        found = np.eye(self._n)
        for (i, j), (in_i, in_j, units) in self._common.items():
            product = (means[i][in_i] * weights[units, None]).T @ means[j][in_j]
            found[np.ix_(self._blocks[i].columns, self._blocks[j].columns)] += product
            if i != j:
                found[np.ix_(self._blocks[j].columns, self._blocks[i].columns)] += product.T
        return found

    def _sums(self, means: Sequence[Floats], surprise: Floats) -> Floats:
        found = np.zeros(self._n)
        for block, mean in zip(self._blocks, means, strict=True):
            found[block.columns] += mean.T @ surprise[block.units]
        return found

    def _meeting(self, i: int, j: int) -> tuple[Indices, Indices, Indices]:
        """Units that have operators of both, by their places in each."""
        units, in_i, in_j = np.intersect1d(
            self._blocks[i].units, self._blocks[j].units, assume_unique=True, return_indices=True
        )
        return in_i, in_j, units


def _block(taught: Teaching, rows: Indices, columns: Indices, points: Floats) -> _Block:
    owners = taught.owners[rows]
    first = np.flatnonzero(np.diff(owners, prepend=-1))
    return _Block(rows, owners[first], first, columns, points)
