"""Graphs are what their names say, and mixing weights are doubly stochastic whoever is alive."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.core.errors import ConfigError
from edgeweave.mixing import NAMES, edges_in, matching, mixing_matrix, spectral_gap, topology

PEERS = st.integers(4, 24).map(lambda n: [f"p{k}" for k in range(n)])


@given(PEERS, st.sampled_from(NAMES))
def test_every_topology_is_connected_and_has_the_degrees_it_promises(
    peers: list[str], name: str
) -> None:
    graph = topology(name, peers).graph()
    degrees = {degree for _, degree in graph.degree}
    assert nx.is_connected(graph)
    if name == "ring":
        assert degrees == {2}
    if name == "full":
        assert degrees == {len(peers) - 1}
    if name == "torus":
        assert max(degrees) <= 4
    if name == "regular":
        assert degrees == {3 + len(peers) % 2}


def test_an_exponential_graph_has_neighbours_at_powers_of_two() -> None:
    graph = topology("exponential", [str(k) for k in range(16)])
    assert set(graph.neighbours("0")) == {"1", "2", "4", "8", "12", "14", "15"}


@given(PEERS, st.sampled_from(NAMES), st.data())
def test_weights_are_symmetric_and_doubly_stochastic_whoever_is_alive(
    peers: list[str], name: str, data: st.DataObject
) -> None:
    alive = data.draw(st.sets(st.sampled_from(peers), min_size=1))
    weights = mixing_matrix(topology(name, peers), alive=alive)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights, weights.T)
    np.testing.assert_allclose(weights.sum(axis=0), 1.0)
    for number, peer in enumerate(peers):
        if peer not in alive:
            assert weights[number, number] == 1.0


@given(PEERS, st.sampled_from(NAMES))
def test_repeated_mixing_brings_everybody_to_the_mean(peers: list[str], name: str) -> None:
    weights = mixing_matrix(topology(name, peers))
    gap = spectral_gap(weights)
    assert 0 < gap <= 1
    values = np.random.default_rng(0).normal(size=len(peers))
    n_rounds = int(np.ceil(np.log(1e-6) / np.log(max(1 - gap, 1e-9)))) if gap < 1 else 1
    mixed = np.linalg.matrix_power(weights, max(n_rounds, 1)) @ values
    np.testing.assert_allclose(mixed, values.mean(), atol=1e-5 * len(peers))


@given(PEERS, st.sampled_from(NAMES), st.integers(0, 1000))
def test_a_matching_pairs_neighbours_and_leaves_no_two_free_ones(
    peers: list[str], name: str, number: int
) -> None:
    graph = topology(name, peers)
    partners = matching(graph, 0, number)
    for a, b in partners.items():
        assert partners[b] == a
        assert b in graph.neighbours(a)
    assert all(a in partners or b in partners for a, b in graph.edges)


@given(PEERS, st.sampled_from(NAMES))
def test_sides_leave_a_connected_graph_of_edges_between_them(peers: list[str], name: str) -> None:
    asking, graph = topology(name, peers).sides()
    assert nx.is_connected(graph.graph())
    assert all((a in asking) != (b in asking) for a, b in graph.edges)


def test_a_graph_in_two_parts_is_refused_with_who_is_not_joined() -> None:
    with pytest.raises(ConfigError, match=r"what one peer learns reaches all others \(a, b and "):
        edges_in("a b\nc d", ["a", "b", "c", "d"], origin="edges.txt")


def test_a_line_of_three_names_is_refused_with_its_number() -> None:
    with pytest.raises(ConfigError, match=r"edges.txt, line 2: an edge is two names"):
        edges_in("a b\na b c", ["a", "b", "c"], origin="edges.txt")


def test_an_unknown_peer_and_an_unknown_topology_are_told_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="Did you mean pi-1"):
        edges_in("pi-1 pi-2\npi-11 pi-2", ["pi-1", "pi-2"], origin="edges.txt")
    with pytest.raises(ConfigError, match="Did you mean ring"):
        topology("rign", ["a", "b"])


@pytest.mark.parametrize("name", ["regular(9)", "regular(x)", "ring(3)", "regular(3"])
def test_a_degree_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        topology(name, [str(k) for k in range(5)])


def test_a_peer_that_joins_comes_last_and_changes_no_other_edge() -> None:
    graph = topology("ring", ["a", "b", "c"])
    more = graph.with_peer("d", ["a", "b"])
    assert more.peers == ("a", "b", "c", "d")
    assert set(more.edges) - set(graph.edges) == {("a", "d"), ("b", "d")}


@pytest.mark.parametrize(("n", "kept"), [(4, 4), (8, 16), (9, 20)])
def test_sides_of_a_full_graph_keep_as_many_edges_as_two_sides_can(n: int, kept: int) -> None:
    """Bug: it kept the star around the first peer, through which everything then went."""
    _, graph = topology("full", [str(k) for k in range(n)]).sides()
    assert len(graph.edges) == kept


@given(PEERS, st.sampled_from(NAMES))
def test_no_peer_would_keep_more_edges_on_the_other_side_but_to_stay_joined(
    peers: list[str], name: str
) -> None:
    whole = topology(name, peers)
    asking, graph = whole.sides()
    assert len(graph.edges) >= len(whole.edges) / 2
    for peer in peers[1:]:
        lost = len(whole.neighbours(peer)) - len(graph.neighbours(peer))
        if lost > len(graph.neighbours(peer)):
            moved = asking ^ {peer}
            left = nx.Graph()
            left.add_nodes_from(peers)
            left.add_edges_from((a, b) for a, b in whole.edges if (a in moved) != (b in moved))
            assert not nx.is_connected(left)
