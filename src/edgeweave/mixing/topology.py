"""Who talks to whom: an undirected, connected graph of peers, as a value.

    ring          two neighbours each                    2 messages a round, slow to agree
    torus         a grid whose ends meet                 4
    exponential   neighbours at distances 1, 2, 4, ...   2 log2(n), quick to agree
    regular(k)    k random neighbours each               k, quick to agree
    full          everybody                              n - 1
    a file        one edge a line

Graphs come from ``networkx``. Who is alive changes which edges are used, not the graph.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np

from edgeweave.core.errors import ConfigError
from edgeweave.core.words import suggest

__all__ = ["NAMES", "Topology", "edges_in", "matching", "topology"]

NAMES = ("ring", "torus", "exponential", "regular", "full")

Edge = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Topology:
    """Peers in order, and the edges between them, each once and sorted by that order."""

    peers: tuple[str, ...]
    edges: tuple[Edge, ...]

    def __post_init__(self) -> None:
        if len(set(self.peers)) != len(self.peers) or len(self.peers) < 2:
            raise ConfigError(
                f"gossip needs two peers or more, each of its own name (got {len(self.peers)}: "
                f"{', '.join(self.peers[:6])}). Add a device."
            )
        order = {peer: number for number, peer in enumerate(self.peers)}
        unknown = sorted({end for edge in self.edges for end in edge} - order.keys())
        if unknown:
            raise ConfigError(
                f"edges join peers of the run ({unknown[0]} is none of {', '.join(self.peers)}). "
                f"{suggest(unknown[0], self.peers)}"
            )
        if any(a == b for a, b in self.edges):
            raise ConfigError("an edge joins two different peers (one is given twice).")
        ends = {tuple(sorted(edge, key=order.__getitem__)) for edge in self.edges}
        edges = sorted(ends, key=lambda edge: (order[edge[0]], order[edge[1]]))
        object.__setattr__(self, "edges", tuple(edges))
        graph = self.graph()
        if not nx.is_connected(graph):
            parts = [sorted(part) for part in nx.connected_components(graph)]
            raise ConfigError(
                f"what one peer learns reaches all others ({', '.join(parts[0][:4])} and "
                f"{', '.join(parts[1][:4])} are not joined). Add an edge between them."
            )

    def graph(self) -> nx.Graph:
        """The same as networkx has it."""
        graph = nx.Graph()
        graph.add_nodes_from(self.peers)
        graph.add_edges_from(self.edges)
        return graph

    def neighbours(self, peer: str) -> tuple[str, ...]:
        """Who has an edge to ``peer``, in the order of the peers."""
        found = {b if a == peer else a for a, b in self.edges if peer in (a, b)}
        return tuple(each for each in self.peers if each in found)

    def with_peer(self, peer: str, neighbours: Iterable[str]) -> Topology:
        """The same with one more peer."""
        edges = (*self.edges, *((peer, other) for other in neighbours))
        return Topology((*self.peers, peer), edges)

    def sides(self) -> tuple[frozenset[str], Topology]:
        """The peers that ask in AD-PSGD, and the graph without edges between two of one side.

        Every edge then joins one that asks and one that answers, so that nobody waits for somebody
        who waits. A graph that has odd circles loses edges for it and stays connected: sides are
        the even and odd distances from the first peer at first, and peers change sides as long as
        that keeps more edges (16 of the 28 of a full graph of eight).
        """
        return _sides(self)


@functools.lru_cache(maxsize=64)
def _sides(whole: Topology) -> tuple[frozenset[str], Topology]:
    graph = whole.graph()
    distance = nx.single_source_shortest_path_length(graph, whole.peers[0])
    asking = {peer for peer in whole.peers if distance[peer] % 2 == 0}
    joined = nx.Graph()
    joined.add_nodes_from(whole.peers)
    joined.add_edges_from((a, b) for a, b in whole.edges if (a in asking) != (b in asking))
    moved = True
    while moved:
        moved = False
        for peer in whole.peers[1:]:
            kept, others = set(joined[peer]), set(graph[peer])
            if 2 * len(kept) >= len(others):
                continue
            _join_instead(joined, peer, kept, others - kept)
            if nx.is_connected(joined):
                asking ^= {peer}
                moved = True
            else:
                _join_instead(joined, peer, others - kept, kept)
    return frozenset(asking), Topology(whole.peers, tuple(joined.edges))


def _join_instead(graph: nx.Graph, peer: str, before: set[str], after: set[str]) -> None:
    graph.remove_edges_from((peer, other) for other in before)
    graph.add_edges_from((peer, other) for other in after)


def topology(name: str, peers: Sequence[str], *, seed: int = 0) -> Topology:
    """A topology by name; ``regular(4)`` says its degree, ``regular`` has 3, or 4 of odd numbers.

    >>> topology("ring", ["a", "b", "c"]).edges
    (('a', 'b'), ('a', 'c'), ('b', 'c'))
    """
    n = len(peers)
    kind, bracket, rest = name.strip().partition("(")
    if kind not in NAMES or bool(bracket) != rest.endswith(")") or (bracket and kind != "regular"):
        raise ConfigError(
            f"a topology is one of {', '.join(NAMES)} or a file of edges (got {name!r}). "
            f"{suggest(kind, NAMES)}"
        )
    if kind == "regular":
        return Topology(tuple(peers), _regular(peers, rest.removesuffix(")"), seed))
    numbers = {
        "ring": lambda: {(k, (k + 1) % n) for k in range(n)},
        "torus": lambda: _torus(n),
        "exponential": lambda: _exponential(n),
        "full": lambda: {(a, b) for a in range(n) for b in range(a)},
    }[kind]()
    edges = tuple((peers[a], peers[b]) for a, b in sorted(numbers) if a != b)
    return Topology(tuple(peers), edges)


def edges_in(text: str, peers: Sequence[str], *, origin: str) -> Topology:
    """The topology of a file: two names a line, ``#`` begins a remark.

    >>> edges_in("a b  # the attic\\nb c", ["a", "b", "c"], origin="edges.txt").edges
    (('a', 'b'), ('b', 'c'))
    """
    edges: list[Edge] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if len(words) not in (0, 2):
            raise ConfigError(
                f"{origin}, line {number}: an edge is two names with a space between "
                f"(got {line.strip()[:60]!r})."
            )
        if words:
            edges.append((words[0], words[1]))
    return Topology(tuple(peers), tuple(edges))


@functools.lru_cache(maxsize=64)
def matching(graph: Topology, seed: int, number: int) -> dict[str, str]:
    """Partner by peer in one round: every peer has one or none, the same for whoever asks.

    Edges are taken in a random order, each if both its ends are still free: no edge is left whose
    ends are.
    """
    random = np.random.default_rng([seed, number])
    partners: dict[str, str] = {}
    for place in random.permutation(len(graph.edges)):
        a, b = graph.edges[place]
        if a not in partners and b not in partners:
            partners[a], partners[b] = b, a
    return partners


def _torus(n: int) -> set[tuple[int, int]]:
    """Rows and columns as near to a square as ``n`` allows; a prime number gives a ring."""
    rows = max(r for r in range(1, math.isqrt(n) + 1) if n % r == 0)
    columns = n // rows
    right = {
        (r * columns + c, r * columns + (c + 1) % columns) for r, c in np.ndindex(rows, columns)
    }
    down = {(r * columns + c, (r + 1) % rows * columns + c) for r, c in np.ndindex(rows, columns)}
    return {(a, b) for a, b in right | down if a != b}


def _exponential(n: int) -> set[tuple[int, int]]:
    hops = [2**power for power in range(max(n - 1, 1).bit_length())]
    return {(k, (k + hop) % n) for k in range(n) for hop in hops if hop < n}


def _regular(peers: Sequence[str], degree_text: str, seed: int) -> tuple[Edge, ...]:
    n = len(peers)
    try:
        degree = int(degree_text) if degree_text else 3 + n % 2
    except ValueError as error:
        raise ConfigError(
            f"the degree of a regular topology is a whole number (got {degree_text!r}). "
            "Write regular(4)."
        ) from error
    degree = min(degree, n - 1) if not degree_text else degree
    if not 1 <= degree < n:
        raise ConfigError(
            f"a regular topology of {n} peers has a degree from 1 to {n - 1} (got {degree})."
        )
    if degree * n % 2:
        raise ConfigError(
            f"degree times peers is even in a regular topology (got {degree} and {n}). "
            f"Take regular({degree - 1})."
        )
    for attempt in range(100):
        graph = nx.random_regular_graph(degree, n, seed=seed + 1000 * attempt)
        if nx.is_connected(graph):
            return tuple((peers[a], peers[b]) for a, b in graph.edges)
    raise ConfigError(
        f"no connected graph of degree {degree} was found for {n} peers in 100 tries. "
        "Take a higher degree."
    )
