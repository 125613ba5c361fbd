"""Mixing weights: how much of a neighbour's model goes into one's own.

    W_ij = 1 / (1 + max(degree_i, degree_j))      W_ii = 1 - sum_j W_ij      (Metropolis-Hastings)

Both ends of an edge compute the same number from what both know, so the matrix is symmetric and
doubly stochastic whoever is alive: mixing changes no mean, and everybody converges to it.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from edgeweave.mixing.topology import Topology

__all__ = ["Matrix", "edge_weight", "mixing_matrix", "spectral_gap"]

Matrix = npt.NDArray[np.float64]


def edge_weight(own_degree: int, other_degree: int) -> float:
    """The weight of an edge between two peers that have so many neighbours."""
    return 1.0 / (1 + max(own_degree, other_degree))


def mixing_matrix(graph: Topology, *, alive: Collection[str] | None = None) -> Matrix:
    """The whole matrix, in the order of the peers. Who is not ``alive`` keeps what it has."""
    living = set(graph.peers if alive is None else alive)
    edges = [(a, b) for a, b in graph.edges if a in living and b in living]
    degree = dict.fromkeys(graph.peers, 0)
    for edge in edges:
        for end in edge:
            degree[end] += 1
    place = {peer: number for number, peer in enumerate(graph.peers)}
    weights = np.zeros((len(graph.peers), len(graph.peers)))
    for a, b in edges:
        weights[place[a], place[b]] = weights[place[b], place[a]] = edge_weight(
            degree[a], degree[b]
        )
    np.fill_diagonal(weights, 1.0 - weights.sum(axis=1))
    return weights


def spectral_gap(weights: Matrix) -> float:
    """One minus the second largest magnitude of the eigenvalues: the share of a disagreement that
    a round removes at least. 0: not everybody is reached.
    """
    magnitudes = np.sort(np.abs(np.linalg.eigvalsh(weights)))
    return float(1.0 - magnitudes[-2])
