"""Every algorithm keeps the mean and brings peers together, whatever a codec loses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgeweave.codec import Codec, blockfloat, none, uniform
from edgeweave.core.errors import WireError
from edgeweave.mixing import (
    NAMES,
    Algorithm,
    GossipSettings,
    Message,
    mixing_matrix,
    topology,
)
from edgeweave.mixing.lines import Line
from edgeweave.mixing.push_sum import PushSum

from .worlds import World

SYMMETRIC: tuple[Algorithm, ...] = ("d-psgd", "gossip-sgd", "ad-psgd")
LOSSY = (uniform(8), blockfloat(4))
WIDE = 100
"""Values of a model, so that these codecs code it: few values travel as they are."""


def run_of(
    name: str,
    n: int,
    algorithm: Algorithm,
    *,
    codec: Codec | None = None,
    rate: float = 1.0,
    seed: int = 0,
) -> GossipSettings:
    graph = topology(name, [f"p{k}" for k in range(n)])
    return GossipSettings(
        graph,
        batch_size=8,
        algorithm=algorithm,
        codec=codec or none(),
        consensus_rate=rate,
        seed=seed,
    )


@pytest.mark.parametrize("codec", LOSSY, ids=str)
def test_what_is_said_in_few_bits_differs_from_the_model(codec: Codec) -> None:
    """Bug: models of these tests were so small that nothing was lost, whatever the codec."""
    line, model = Line(codec, 0), torch.randn(WIDE)
    line.say(model)
    moved = model + torch.randn(WIDE)
    _, is_coded, said = line.say(moved)
    assert is_coded
    assert torch.linalg.vector_norm(said - moved) > 1e-3


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.integers(4, 12),
    st.sampled_from(SYMMETRIC),
    st.sampled_from([none(), *LOSSY]),
    st.integers(0, 99),
)
@example("ring", 6, "d-psgd", blockfloat(4), 0)
@example("ring", 6, "gossip-sgd", blockfloat(4), 0)
@example("ring", 6, "ad-psgd", blockfloat(4), 0)
def test_mixing_changes_no_mean(
    name: str, n: int, algorithm: Algorithm, codec: Codec, seed: int
) -> None:
    """Whoever is cut off and comes back in between: ends of an edge then have unequal degrees."""
    settings_ = run_of(name, n, algorithm, codec=codec, rate=0.7, seed=seed)
    world, random = World(settings_, seed=seed, width=WIDE), np.random.default_rng(seed)
    before = world.values().double().mean(dim=0)
    closed: set[tuple[str, str]] = set()
    for turn in range(12):
        world.round()
        torch.testing.assert_close(world.values().double().mean(dim=0), before, atol=1e-6, rtol=0.0)
        a, b = world.graph.edges[int(random.integers(len(world.graph.edges)))]
        if turn % 2 and (a, b) in closed:
            world.open(a, b)
        elif turn % 2:
            world.close(a, b)
        if turn % 2:
            closed ^= {(a, b)}


@pytest.mark.parametrize("algorithm", [*SYMMETRIC, "push-sum"])
@pytest.mark.parametrize("name", NAMES)
def test_mixing_brings_everybody_to_the_mean(name: str, algorithm: Algorithm) -> None:
    world = World(run_of(name, 6, algorithm))
    before = world.values().mean(dim=0)
    for _ in range(120):
        world.round()
    torch.testing.assert_close(world.values(), before.expand(6, -1), atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("bits", [8, 3])
@pytest.mark.parametrize("algorithm", SYMMETRIC)
def test_coded_differences_leave_no_noise_where_peers_agree(
    algorithm: Algorithm, bits: int
) -> None:
    world = World(run_of("ring", 4, algorithm, codec=blockfloat(bits, 16), rate=0.5))
    before = world.values().mean(dim=0)
    for _ in range(250):
        world.round()
    torch.testing.assert_close(world.values(), before.expand(4, -1), atol=1e-3, rtol=0.0)


def test_d_psgd_mixes_with_the_metropolis_matrix() -> None:
    settings_ = run_of("torus", 9, "d-psgd")
    world = World(settings_)
    expected = mixing_matrix(settings_.graph) @ world.values().double().numpy()
    world.round()
    np.testing.assert_allclose(world.values().numpy(), expected, atol=1e-6)


def test_peers_that_agree_stay_bit_equal() -> None:
    world = World(run_of("exponential", 8, "d-psgd"))
    same = torch.randn(7)
    for peer in world.peers.values():
        peer.replace(same)
    world.round()
    assert all(torch.equal(peer.model, same) for peer in world.peers.values())


def test_rows_adapt_to_who_is_alive() -> None:
    settings_ = run_of("regular", 8, "d-psgd")
    world = World(settings_)
    dead = "p3"
    for other in settings_.graph.neighbours(dead):
        world.close(dead, other)
    alive = set(settings_.graph.peers) - {dead}
    matrix = mixing_matrix(settings_.graph, alive=alive)
    expected = matrix @ world.values().double().numpy()
    world.round()
    np.testing.assert_allclose(world.values().numpy(), expected, atol=1e-6)


def test_a_neighbour_that_is_ahead_is_met_message_by_message() -> None:
    world = World(run_of("ring", 3, "d-psgd"))
    p0, p1, p2 = (world.peers[f"p{k}"] for k in range(3))
    for peer in (p1, p2):
        world.post("p1" if peer is p1 else "p2", peer.begin())
    world.deliver()
    assert set(p0.waits_for()) == set()  # it has not begun
    assert set(p1.waits_for()) == {"p0"}
    world.post("p0", p0.begin())
    world.deliver()
    assert all(peer.waits_for() == () for peer in (p0, p1, p2))


def test_a_message_out_of_turn_is_refused() -> None:
    world = World(run_of("ring", 3, "ad-psgd"))
    with pytest.raises(WireError, match="out of turn"):
        world.peers["p0"].heard("p1", Message("answer", {}, torch.zeros(7)))


def test_a_model_of_another_program_is_refused() -> None:
    line = Line(none(), 0)
    with pytest.raises(WireError, match="runs another program"):
        line.hear(Message("model", {}, torch.zeros(3)), torch.zeros(7))


def test_a_difference_without_what_it_differs_from_is_refused() -> None:
    coded = torch.zeros(8, dtype=torch.uint8)
    with pytest.raises(WireError, match="before the model it differs from"):
        Line(uniform(8), 0).hear(Message("model", {}, coded, coded=True), torch.zeros(7))


def mass_of(world: World) -> tuple[torch.Tensor, float]:
    """All mass: what peers have, and what is on its way."""
    mass, weight = torch.zeros(7, dtype=torch.float64), 0.0
    for name, peer in world.peers.items():
        assert isinstance(peer, PushSum)
        mass += peer.mass.double()
        weight += peer.weight
        for other, flow in peer._flows.items():
            there = world.peers[other]
            assert isinstance(there, PushSum)
            back = there._flows.get(name)
            if back is None:
                continue  # of a process that has gone: all had arrived
            mass += (flow.pushed - back.came).double()
            weight += flow.pushed_weight - back.came_weight
    return mass, weight


@settings(max_examples=6, deadline=None)
@given(st.integers(4, 8), st.integers(0, 99), st.floats(0.0, 0.7))
def test_push_sum_is_unbiased_under_loss(n: int, seed: int, loss: float) -> None:
    """However many messages are lost, mass is what it was, and peers agree on the true mean."""
    world = World(run_of("exponential", n, "push-sum"), seed=seed)
    random = np.random.default_rng(seed)
    before, mass = world.values().mean(dim=0), mass_of(world)[0]
    for turn in range(400):
        for name, peer in world.peers.items():
            if random.random() < 0.7:  # nobody waits for the others
                world.post(name, peer.begin())
        world.deliver(loses=lambda _a, _b: bool(random.random() < loss))
        if turn % 100 == 0:
            torch.testing.assert_close(mass_of(world)[0], mass, atol=1e-3, rtol=0.0)
            assert mass_of(world)[1] == pytest.approx(n)
    torch.testing.assert_close(world.values(), before.expand(n, -1), atol=2e-3, rtol=0.0)


@settings(max_examples=4, deadline=None)
@given(st.integers(4, 8), st.integers(0, 99), st.floats(0.0, 0.5))
def test_push_sum_is_unbiased_under_churn(n: int, seed: int, loss: float) -> None:
    """Peers leave and come back as new processes, edges are cut and heal, messages are lost: the
    mean is that of the first models, because no mass goes and nobody who comes brings any.
    """
    world = World(run_of("full", n, "push-sum"), seed=seed)
    random = np.random.default_rng(seed)
    before, mass = world.values().mean(dim=0), mass_of(world)[0]
    away: list[str] = []
    lives = dict.fromkeys(map(frozenset, world.graph.edges), 1)
    """Of an edge: a new one where one of its processes is."""
    for turn in range(220):
        here = [name for name in world.peers if name not in away]
        for name in here:
            if random.random() < 0.7 and world.peers[name].can_begin():
                world.post(name, world.peers[name].begin())
        world.deliver(loses=lambda _a, _b: bool(random.random() < loss))
        one, other = random.choice(here, 2, replace=False)
        event = random.random() if turn < 120 else 1.0
        if event < 0.1 and len(here) > 3:
            _leave(world, one, here)
            away.append(one)
        elif event < 0.3 and away:
            back = away.pop(0)
            lives.update({frozenset({back, each}): turn + 2 for each in here})
            _return(world, back, here, incarnation=turn + 2)
        elif event < 0.5:
            world.close(one, other)
            world.open(one, other, incarnation=lives[frozenset({one, other})])
        torch.testing.assert_close(mass_of(world)[0], mass, atol=1e-3, rtol=0.0)
        assert mass_of(world)[1] == pytest.approx(n)
    found = torch.stack([peer.model for name, peer in world.peers.items() if name not in away])
    torch.testing.assert_close(found, before.expand(len(found), -1), atol=2e-3, rtol=0.0)


def _leave(world: World, name: str, here: list[str]) -> None:
    """In order, as a device does that is told to go: all that is on its way arrives first."""
    for other in here:
        world.post(other, world.peers[other].begin())
    world.deliver()
    world.post(name, world.peers[name].farewell())
    world.deliver()
    for other in here:
        if other != name:
            world.close(name, other)


def _return(world: World, name: str, here: list[str], *, incarnation: int) -> None:
    newcomer = PushSum(torch.zeros(7))
    newcomer.adopt(world.peers[here[0]].model)
    world.peers[name] = newcomer
    for other in here:
        world.open(name, other, incarnation=incarnation)


def test_push_sum_hands_its_mass_on_when_a_peer_leaves_and_gives_some_to_one_that_comes() -> None:
    world = World(run_of("full", 5, "push-sum"))
    before = world.values().mean(dim=0)
    for _ in range(3):
        world.round()
    world.post("p4", world.peers["p4"].farewell())
    world.deliver()
    leaver = world.peers["p4"]
    assert isinstance(leaver, PushSum)
    assert leaver.weight == pytest.approx(0.0, abs=1e-12)
    for other in ("p0", "p1", "p2", "p3"):
        world.close("p4", other)
    newcomer = PushSum(torch.zeros(7))
    newcomer.adopt(torch.zeros(7))
    world.peers["p4"] = newcomer
    assert newcomer.can_begin(), "there is nobody whose mass it could wait for"
    for other in ("p0", "p1", "p2", "p3"):
        world.open("p4", other, incarnation=2)
    assert not newcomer.can_begin()
    for _ in range(200):
        world.round()
    assert newcomer.can_begin()
    torch.testing.assert_close(world.values(), before.expand(5, -1), atol=1e-4, rtol=0.0)


def test_pairs_average_at_once_and_exactly() -> None:
    world = World(run_of("ring", 4, "ad-psgd"))
    before = world.values().clone()
    world.post("p0", world.peers["p0"].begin())
    world.deliver()
    after = world.values()
    moved = [k for k in range(4) if not torch.equal(after[k], before[k])]
    assert len(moved) == 2
    torch.testing.assert_close(after[moved[0]], after[moved[1]])
