"""Runs on a virtual clock: equal to one process, and undisturbed by whoever comes and goes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from edgeweave.codec import uniform
from edgeweave.data import Split, deal
from edgeweave.device import Optimizer
from edgeweave.device.peers.sampler import Sampler
from edgeweave.mixing import Algorithm, BalanceSettings, mixing_matrix
from edgeweave.net import Links, LinkShape
from edgeweave.train.models import mlp

from .runs import (
    PER_SAMPLE,
    accuracy_of,
    digits,
    learners,
    mean_model,
    plain,
    run_of,
    settings_of,
)

SLOW = {"p1": 1.5, "p2": 2.0, "p3": 3.0}
SAMPLED = [
    "d-psgd",
    "push-sum",
    *(pytest.param(each, marks=pytest.mark.slow) for each in ("gossip-sgd", "ad-psgd")),
]
"""All algorithms; the last two are slow."""


def d_psgd_by_hand(n: int, steps: int, *, lr: float, batch_size: int) -> list[torch.Tensor]:
    """D-PSGD as its paper writes it, in one process, with torch alone."""
    torch.manual_seed(0)
    first = [p.detach() for p in mlp(64, 10, hidden=(24,)).parameters()]
    models = [[p.clone().requires_grad_() for p in first] for _ in range(n)]
    inputs, targets = digits()
    parts = [torch.from_numpy(part) for part in deal(targets.numpy(), n, Split())]
    samplers = [Sampler(len(part), batch_size, seed=k) for k, part in enumerate(parts)]
    weights = mixing_matrix(settings_of("ring", n).graph)
    for step in range(steps):
        gradients = []
        for k, (w1, b1, w2, b2) in enumerate(models):
            rows = parts[k][samplers[k].at(step)]
            hidden = functional.linear(inputs[rows].flatten(1), w1, b1).relu()
            loss = functional.cross_entropy(functional.linear(hidden, w2, b2), targets[rows])
            gradients.append(torch.autograd.grad(loss, models[k]))
        before = [[p.detach().clone() for p in model] for model in models]
        for k in range(n):
            for place in range(4):
                mixed = before[k][place]
                for j in range(n):
                    if j != k and weights[k, j] > 0:
                        change = before[j][place] - before[k][place]
                        mixed = torch.add(mixed, change, alpha=float(weights[k, j]))
                models[k][place] = torch.add(mixed, gradients[k][place], alpha=-lr).requires_grad_()
    return [torch.cat([p.detach().reshape(-1) for p in model]) for model in models]


def test_d_psgd_is_bit_equal_to_one_process_that_does_the_same_sums() -> None:
    settings = plain(settings_of("ring", 4))
    world = run_of(settings, steps=15, slowness=SLOW, optimizer=Optimizer("SGD", lr=0.1))
    assert world.run()
    expected = d_psgd_by_hand(4, 15, lr=0.1, batch_size=32)
    for found, wanted in zip(world.models().values(), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("algorithm", ["d-psgd", "gossip-sgd"])
def test_with_equal_speeds_everything_on_is_bit_equal_to_the_plain_algorithm(
    algorithm: Algorithm,
) -> None:
    settings = settings_of("ring", 4, algorithm=algorithm)
    assert settings.selects
    balanced, bare = (run_of(each, steps=30) for each in (settings, plain(settings)))
    assert balanced.run()
    assert bare.run()
    for name, model in balanced.models().items():
        assert torch.equal(model, bare.models()[name])


@pytest.mark.parametrize("algorithm", SAMPLED)
def test_every_algorithm_learns_and_agrees(algorithm: Algorithm) -> None:
    settings = settings_of("ring", 4, algorithm=algorithm, batch_size=48, group_size=4)
    world = run_of(settings, steps=120, slowness=SLOW)
    assert world.run()
    assert accuracy_of(world, mean_model(world)) > 0.92
    for model in world.models().values():
        assert accuracy_of(world, model) > 0.85


def test_the_same_seed_gives_the_same_bits_whatever_the_machine_does() -> None:
    one, two = (
        run_of(settings_of("ring", 4, algorithm="ad-psgd"), steps=20, slowness=SLOW)
        for _ in range(2)
    )
    assert one.run()
    assert two.run()
    assert all(torch.equal(one.models()[name], two.models()[name]) for name in one.models())


@pytest.mark.parametrize(
    "algorithm", ["d-psgd", pytest.param("gossip-sgd", marks=pytest.mark.slow)]
)
def test_balance_makes_iterations_equal_and_the_run_as_fast_as_the_fastest(
    algorithm: Algorithm,
) -> None:
    settings = settings_of("ring", 8, algorithm=algorithm, batch_size=36)
    slowness = {f"p{k}": (1.0, 1.5, 2.0, 3.0)[k % 4] for k in range(8)}
    balanced = run_of(settings, steps=60, slowness=slowness)
    bare = run_of(plain(settings), steps=60, slowness=slowness)
    assert balanced.run()
    assert bare.run()
    assert bare.now / balanced.now > 2.4
    means = [np.mean(p.statistics.busy_seconds[20:]) for p in balanced.peers.values()]
    assert np.std(means) / np.mean(means) <= 0.05
    assert accuracy_of(balanced, mean_model(balanced)) > (
        accuracy_of(bare, mean_model(bare)) - 0.03
    )


def test_ad_psgd_has_no_barrier() -> None:
    """The fastest is done when it has computed, whoever else is still at work."""
    settings = plain(settings_of("ring", 4, algorithm="ad-psgd"))
    world = run_of(settings, steps=30, slowness={"p3": 20.0})
    assert world.run()
    waited = {name: sum(p.statistics.waited_seconds) for name, p in world.peers.items()}
    assert waited["p0"] < 0.01 * world.now


@pytest.mark.slow
def test_local_steps_exchange_less_and_learn_as_well() -> None:
    settings = plain(settings_of("ring", 4))
    often, seldom = (run_of(replace(settings, local_steps=n), steps=100) for n in (1, 4))
    assert often.run()
    assert seldom.run()
    assert seldom.bytes_carried < 0.3 * often.bytes_carried
    assert accuracy_of(seldom, mean_model(seldom)) > 0.9


def test_a_codec_with_error_feedback_sends_less_and_learns_as_well() -> None:
    settings = plain(settings_of("ring", 4))
    whole = run_of(settings, steps=60)
    coded = run_of(replace(settings, codec=uniform(4), consensus_rate=0.7), steps=60)
    assert whole.run()
    assert coded.run()
    assert coded.bytes_carried < 0.3 * whole.bytes_carried
    assert accuracy_of(coded, mean_model(coded)) > 0.9


@pytest.mark.parametrize("algorithm", SAMPLED)
def test_a_peer_that_is_killed_stops_nobody_and_catches_up_when_it_returns(
    algorithm: Algorithm,
) -> None:
    settings = plain(settings_of("ring", 4, algorithm=algorithm))
    world = run_of(settings, steps=80, patience_seconds=5.0)
    world.at(0.5, lambda: world.kill("p2"))
    world.at(1.2, lambda: world.revive("p2"))
    assert not world.run(until=1.1)
    assert {name: peer.step > 25 for name, peer in world.peers.items()} == dict.fromkeys(
        ["p0", "p1", "p3"], True
    )
    assert world.run()
    back = world.peers["p2"]
    assert back.phase == "finished"
    assert len(back.statistics.losses) < 60  # it went on from a neighbour's step
    assert back.statistics.losses[0] < 1.0  # and from its model
    for model in world.models().values():
        assert accuracy_of(world, model) > 0.85


@pytest.mark.parametrize("algorithm", SAMPLED)
def test_a_network_in_two_goes_on_in_both_and_heals(algorithm: Algorithm) -> None:
    settings = plain(settings_of("ring", 6, algorithm=algorithm))
    world = run_of(settings, steps=120, split=Split("labels", per_peer=2), patience_seconds=5.0)
    world.at(1.0, lambda: world.cut(["p0", "p1", "p2"], ["p3", "p4", "p5"]))
    world.at(2.5, world.heal)
    world.run(until=2.5)
    assert all(peer.step > 60 for peer in world.peers.values())
    models = world.models()
    apart = torch.linalg.vector_norm(
        sum(models[f"p{k}"] for k in range(3)) - sum(models[f"p{k}"] for k in range(3, 6))
    )
    assert world.run()
    models = world.models()
    together = torch.linalg.vector_norm(
        sum(models[f"p{k}"] for k in range(3)) - sum(models[f"p{k}"] for k in range(3, 6))
    )
    assert together < 0.7 * apart


@pytest.mark.parametrize("algorithm", ["d-psgd", "push-sum"])
def test_a_device_that_nobody_knew_joins_and_one_leaves(algorithm: Algorithm) -> None:
    settings = plain(settings_of("ring", 4, algorithm=algorithm))
    world = run_of(settings, steps=60)
    learner = learners(settings)["p3"]
    world.at(0.8, lambda: world.join("new", learner, PER_SAMPLE, ["p0", "p2"]))
    world.at(1.2, lambda: world.leave("p1"))
    assert world.run()
    assert set(world.peers) == {"p0", "p2", "p3", "new"}
    assert 0 < len(world.peers["new"].statistics.losses) < 60
    assert "new" in world.peers["p0"].neighbours
    assert accuracy_of(world, world.peers["new"].model) > 0.85


def test_every_step_waits_for_neighbours_only() -> None:
    """A link that is slow delays its two ends, and the others as they meet these."""
    slow = LinkShape(bytes_per_second=20_000.0)
    links = Links.of({("p0", "p1"): slow, ("p1", "p0"): slow})
    settings = plain(settings_of("ring", 8))
    world = run_of(settings, steps=10, links=links)
    world.run(until=0.3)
    steps = {name: peer.step for name, peer in world.peers.items()}
    assert steps["p0"] == 0
    assert steps["p4"] >= 3
    assert world.run()


def test_a_fixed_share_trains_that_share() -> None:
    settings = settings_of("ring", 4, balance=BalanceSettings(share=0.25))
    world = run_of(settings, steps=10)
    assert world.run()
    assert all(p.statistics.n_samples == [8] * 10 for p in world.peers.values())


def test_a_peer_that_heals_late_does_not_wait_for_those_that_are_done() -> None:
    """Bug: a peer that was done opened the edge again, and never sent a model over it."""
    for algorithm in ("d-psgd", "gossip-sgd"):
        world = run_of(
            plain(settings_of("ring", 3, algorithm=algorithm)), steps=20, slowness={"p2": 4.0}
        )
        world.at(0.2, lambda w=world: w.cut(["p0", "p1"], ["p2"]))  # type: ignore[misc]
        world.at(1.5, world.heal)
        assert world.run()
        assert sum(world.peers["p2"].statistics.waited_seconds) < 0.5


def test_push_sum_goes_on_without_the_neighbour_that_had_its_mass() -> None:
    """Bug: a peer whose mass died with its neighbour waited for ever, and so did the neighbour."""
    settings = plain(settings_of("ring", 2, algorithm="push-sum"))
    world = run_of(settings, steps=30, slowness={"p1": 30.0}, patience_seconds=5.0)
    world.at(0.9, lambda: world.kill("p1"))
    world.run(until=0.95)
    assert world.peers["p0"].step == 30 or world.run(until=10.0)
    world.revive("p1")
    assert world.run()
    assert {peer.step for peer in world.peers.values()} == {30}


def test_push_sum_ends_where_a_late_peer_meets_those_that_are_done() -> None:
    """Bug: what it pushed to them never came back, and it waited for ever."""
    settings = plain(settings_of("ring", 3, algorithm="push-sum"))
    world = run_of(settings, steps=20, slowness={"p2": 4.0}, patience_seconds=5.0)
    world.at(0.2, lambda: world.cut(["p0", "p1"], ["p2"]))
    world.at(1.5, world.heal)
    assert world.run()


def test_a_slow_first_exchange_is_waited_for_as_long_as_any() -> None:
    """Bug: the deadline of gathering stayed, and gave up models that took longer than 10 s."""
    slow = LinkShape(bytes_per_second=600.0)
    links = Links.of({("p0", "p1"): slow, ("p1", "p0"): slow})
    world = run_of(plain(settings_of("ring", 3)), steps=1, links=links)
    assert world.run()
    assert world.now > 11.0
    assert [peer.statistics.n_closed for peer in world.peers.values()] == [0, 0, 0]
