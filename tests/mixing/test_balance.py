"""Unequal devices come to equal iteration times, and equal ones are left alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeweave.core.errors import ConfigError
from edgeweave.mixing import Balance, BalanceSettings, Topology, Trained, topology
from edgeweave.mixing.balance import Scoring

BATCH = 64
QUARTER = Scoring(2.0, 1, 128, every=8)


def simulate(
    slowness: list[float],
    graph: Topology,
    *,
    n_rounds: int,
    settings_: BalanceSettings | None = None,
    scoring: Scoring | None = QUARTER,
    noise: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Rounds of all peers with messages to neighbours; seconds and samples by round and peer."""
    random = np.random.default_rng(0)
    peers = [Balance(settings_ or BalanceSettings(), BATCH, scoring) for _ in slowness]
    seconds, counts = np.zeros((n_rounds, len(peers))), np.zeros((n_rounds, len(peers)))
    for turn in range(n_rounds):
        told = [peer.tell() for peer in peers]
        for number, name in enumerate(graph.peers):
            for other in graph.neighbours(name):
                peers[number].hear(told[graph.peers.index(other)])
        for number, peer in enumerate(peers):
            n = peer.n_samples()
            factor = slowness[number] * (1 + noise * random.normal())
            scores = scoring is not None and n < BATCH and turn % scoring.every == 0
            scored = scoring.n_points(n) if scoring and scores else 0
            trained = Trained(n, 0.001 * factor * n, 1.0, scored, 0.0002 * factor * scored, 0.002)
            peer.learn(trained)
            seconds[turn, number] = (
                trained.seconds + trained.scoring_seconds + trained.other_seconds
            )
            counts[turn, number] = n
    return seconds, counts


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(1.0, 4.0), min_size=4, max_size=16))
def test_iteration_times_are_equal_after_twenty_iterations(slowness: list[float]) -> None:
    graph = topology("ring", [str(k) for k in range(len(slowness))])
    seconds, counts = simulate(slowness, graph, n_rounds=60)
    late = seconds[20:].mean(axis=0)
    assert late.std() / late.mean() <= 0.05
    fastest = int(np.argmin(slowness))
    assert (counts[:, fastest] == BATCH).all()


def test_equal_devices_train_whole_batches_in_spite_of_noise() -> None:
    graph = topology("ring", [str(k) for k in range(6)])
    _, counts = simulate([1.0] * 6, graph, n_rounds=100, noise=0.005)
    assert (counts == BATCH).all()


def test_equal_devices_train_whole_batches_though_every_third_iteration_is_stretched() -> None:
    """Bug: three equal agents on a busy computer trained on a fifth of their samples."""
    random = np.random.default_rng(1)
    graph = topology("ring", [str(k) for k in range(3)])
    peers = [Balance(BalanceSettings(), BATCH) for _ in range(3)]
    counts = []
    for _ in range(200):
        told = [peer.tell() for peer in peers]
        for number, name in enumerate(graph.peers):
            for other in graph.neighbours(name):
                peers[number].hear(told[graph.peers.index(other)])
            n = peers[number].n_samples()
            counts.append(n)
            busy = 5.0 if random.random() < 1 / 3 else 1.0
            peers[number].learn(Trained(n, 0.001 * busy * random.uniform(0.9, 1.1) * n, 1.0))
    assert np.mean(counts) > 0.95 * BATCH


def test_one_iteration_that_other_work_stretched_thins_nobody() -> None:
    balance = Balance(BalanceSettings(), BATCH)
    for turn in range(30):
        balance.hear({"epoch": 0.0, "fastest": 0.064})
        balance.learn(Trained(BATCH, 6.4 if turn == 15 else 0.064, 1.0))
        assert balance.n_samples() == BATCH


def test_a_peer_that_hears_of_a_period_before_its_own_begins_counts_it_once() -> None:
    """Else neighbours would drive each other on, and forget the pace on the way."""
    ahead, behind = (Balance(BalanceSettings(period=5), BATCH) for _ in range(2))
    for _ in range(20):
        ahead.learn(Trained(BATCH, 1.0, 1.0))
        behind.hear(ahead.tell())
        behind.learn(Trained(BATCH, 2.0, 1.0))
        ahead.hear(behind.tell())
        assert ahead.tell()["epoch"] == behind.tell()["epoch"]
        assert behind.pace_seconds == 1.0


def test_the_pace_travels_on_when_a_period_ends_before_it_has_reached_everybody() -> None:
    graph = topology("ring", [str(k) for k in range(24)])
    slowness = [1.0, *[2.0] * 23]
    _, counts = simulate(slowness, graph, n_rounds=60, scoring=None)
    assert (counts[22:, 12] < BATCH).all()


def test_a_device_that_is_fast_no_more_is_forgotten() -> None:
    graph = topology("ring", [str(k) for k in range(4)])
    peers = [Balance(BalanceSettings(period=5), BATCH) for _ in range(4)]
    slowness = [1.0, 3.0, 3.0, 3.0]
    for turn in range(120):
        if turn == 40:
            slowness[0] = 3.0
        told = [peer.tell() for peer in peers]
        for number, name in enumerate(graph.peers):
            for other in graph.neighbours(name):
                peers[number].hear(told[graph.peers.index(other)])
            n = peers[number].n_samples()
            peers[number].learn(Trained(n, 0.001 * slowness[number] * n, 1.0))
        if turn == 39:
            assert peers[2].n_samples() == pytest.approx(BATCH / 3, abs=1)
    assert [peer.n_samples() for peer in peers] == [BATCH] * 4


def test_a_very_slow_device_still_trains_its_least_share() -> None:
    balance = Balance(BalanceSettings(least_share=0.25), BATCH)
    balance.learn(Trained(BATCH, 100.0, 1.0))
    balance.hear({"epoch": 0.0, "fastest": 0.001})
    assert balance.n_samples() == BATCH // 4


def test_a_fixed_share_is_the_same_everywhere_and_always() -> None:
    balance = Balance(BalanceSettings(share=0.3), BATCH)
    assert balance.n_samples() == round(0.3 * BATCH)
    balance.learn(Trained(BATCH, 100.0, 1.0))
    balance.hear({"epoch": 0.0, "fastest": 0.001})
    assert balance.n_samples() == round(0.3 * BATCH)


@pytest.mark.parametrize(
    "scalars",
    [
        {"epoch": 0.0, "fastest": float("nan")},
        {"fastest": -1.0},
        {"fastest": 0.0},
        {"epoch": 9.0},
        {"fastest": 0.1, "before": -1.0},
        {"fastest": 0.1, "before": float("nan")},
    ],
)
def test_nonsense_from_a_neighbour_changes_nothing(scalars: dict[str, float]) -> None:
    balance = Balance(BalanceSettings(), BATCH)
    balance.learn(Trained(BATCH, 1.0, 1.0))
    balance.hear(scalars)
    assert balance.n_samples() == BATCH


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="balance has shares above 0"):
        BalanceSettings(share=1.5)
    with pytest.raises(ConfigError, match="beta of 1 or more"):
        BalanceSettings(beta=0.5)


@pytest.mark.parametrize("scoring", [QUARTER, Scoring(0.0, 13, 13)])
def test_scoring_is_paid_for_with_samples(scoring: Scoring) -> None:
    """In the mean a quarter of a point for each sample, or all points whatever is trained on."""
    graph = topology("full", ["fast", "slow"])
    seconds, counts = simulate([1.0, 2.5], graph, n_rounds=60, scoring=scoring)
    assert (counts[20:, 1] < counts[20:, 0] / 2.5).all()
    means = seconds[20:].mean(axis=0)
    assert means[1] == pytest.approx(means[0], rel=0.05)
