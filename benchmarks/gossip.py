"""Gossip on unequal devices: how much sooner balance and importance reach an accuracy.

Peers are those of real devices, on a virtual clock: training is real, what it takes is what this
machine takes, times 1, 1.5, 2 and 3 in turn. ``plain`` is the algorithm as published, its target
its own accuracy in the end less half a point. All runs take as many steps; one that is not at the
target then is done again with half as many more, for the time to it alone.

    time_to_accuracy_speedup   seconds to the target, plain / balance by score; over all cases
                               (three tasks, 4 and 8 peers, D-PSGD and gossip SGD)
    accuracy_loss_points       accuracy of plain less that of the other, in the end
    ..._balance_random, ..._fixed_share    the same, with one part changed; 4 peers, D-PSGD
    ..._published              whole groups of 20 by first-layer scores, as in the papers
    iteration_time_cv          over peers, after 20 iterations; ..._plain without balance
    equal_speeds_bit_equal     everything on, devices of one speed: the plain algorithm's bits
    churn_...                  one of 8 peers killed every minute, back after 20 s
    scale_...                  10, 100 and 1,000 peers of a perceptron on MNIST
    beside_...                 agents in processes beside all-reduce over Gloo, and a peer killed

With ``--kept FOLDER`` every run is kept there when it is done, and what was cut off goes on: only
``beside_...`` measures wall time, and costs are measured once.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch.nn import functional

from benchmarks.gossip_beside import beside
from benchmarks.gossip_runs import (
    TASKS,
    VARIANTS,
    Costs,
    Curve,
    costs_of,
    curve_of,
    evaluated,
    settings_of,
    steps_of,
    world,
)
from benchmarks.harness import Result
from benchmarks.keeping import kept_or_made
from edgeweave.data import Split, deal
from edgeweave.device import Learner, Optimizer
from edgeweave.device.peers.rows import TensorRows
from edgeweave.gossip import DeviceCosts, VirtualGossip
from edgeweave.mixing import Algorithm, GossipSettings, topology
from edgeweave.program import capture, flatten_inputs
from edgeweave.train.metrics import accuracy
from edgeweave.train.models import mlp

__all__ = ["run"]

_ALGORITHMS: tuple[Algorithm, ...] = ("d-psgd", "gossip-sgd")
_CASES = [(task, n, how) for task in TASKS for n in (4, 8) for how in _ALGORITHMS]
_QUICK_CASES: list[tuple[str, int, Algorithm]] = [("mnist", 4, "d-psgd")]
_QUICK_SAMPLES = 8192
_BELOW_PLAIN_POINTS = 0.5
_LONGER = 1.5
_SEED = 0
_BESIDE_STEPS = 150
_CHURN_SECONDS, _AWAY_SECONDS = 60.0, 20.0
_CHURN_SLOWDOWN = 200.0
"""So that a run lasts minutes, as on small boards."""

Samples = dict[str, list[float]]


def run(*, quick: bool, kept: Path | None = None) -> Result:
    """``quick``: one case on a seventh of the samples; what it learns says little."""
    torch.set_num_threads(1)
    samples: Samples = {}
    settings: dict[str, Any] = {"seed": _SEED, "cases": []}
    costs: dict[str, Costs] = {}
    for task, n_peers, algorithm in _QUICK_CASES if quick else _CASES:
        if task not in costs:
            turns = 5 if quick else 30
            costs[task] = kept_or_made(
                kept,
                f"costs-{task}-{turns}",
                Costs,
                functools.partial(costs_of, task, turns=turns),
            )
        found = _case(task, n_peers, algorithm, costs[task], quick=quick, kept=kept)
        settings["cases"].append([task, n_peers, algorithm])
        _compare(samples, *found)
    settings["costs"] = {
        f"{name}, {importance}": [
            each.seconds_per_sample,
            each.seconds_per_point,
            each.other_seconds,
        ]
        for name, own in costs.items()
        for importance, each in own.items()
    }
    for name, part in _parts(costs["mnist"], quick=quick).items():
        made = kept_or_made(kept, f"{name}-quick" if quick else name, dict[str, float], part)
        for key, value in made.items():
            _add(samples, key, value)
    metrics = {key: fmean(values) for key, values in samples.items() if values}
    return Result(
        name="gossip",
        quick=quick,
        metrics=metrics,
        lines=tuple(f"{key:>44} = {value:.4g}" for key, value in metrics.items()),
        samples=samples,
        settings=settings,
    )


def _parts(costs: Costs, *, quick: bool) -> dict[str, Callable[[], dict[str, float]]]:
    """What is measured beside the cases, by name."""
    steps = 5 if quick else 60
    scales = {
        f"scale-{n}": functools.partial(_scale, n, costs["none"], steps=steps)
        for n in ((10,) if quick else (10, 100, 1000))
    }
    parts: dict[str, Callable[[], dict[str, float]]] = {
        "bit-equal": lambda: {"equal_speeds_bit_equal": _bit_equal(costs)},
        "churn": lambda: _churn(costs, quick=quick),
        **scales,
    }
    if not quick:
        parts["beside"] = lambda: beside(steps=_BESIDE_STEPS, seed=_SEED)
    return parts


def _case(
    task: str,
    n_peers: int,
    algorithm: Algorithm,
    costs: Costs,
    *,
    quick: bool,
    kept: Path | None,
) -> tuple[dict[str, Curve], dict[str, Curve]]:
    """The plain algorithm and ours, on four peers with D-PSGD the parts of it too; and longer runs
    of those that were not at the target in the end.
    """
    n_samples = _QUICK_SAMPLES if quick else None
    steps = steps_of(task, n_peers, n_samples)
    slowest = costs["none"].slowed(3.0)
    seconds = steps * (slowest.other_seconds + slowest.seconds_per_sample * TASKS[task].batch_size)
    parts_too = not quick and n_peers == 4 and algorithm == "d-psgd"

    def curve(variant: str, n_steps: int) -> Curve:
        def made() -> Curve:
            settings = settings_of(task, n_peers, algorithm, variant, seed=_SEED)
            each = world(task, settings, costs, steps=n_steps, n_samples=n_samples)
            whole = seconds if variant == "plain" else seconds / 3
            return curve_of(task, each, whole, points=12 if quick else 60)

        return kept_or_made(
            kept, f"{task}-{n_peers}-{algorithm}-{variant}-{n_steps}-steps", Curve, made
        )

    variants = VARIANTS if parts_too else ("plain", "balance_score")
    found = {variant: curve(variant, steps) for variant in variants}
    target = _target(found)
    late = [variant for variant, each in found.items() if each.seconds_to(target) is None]
    return found, {variant: curve(variant, round(_LONGER * steps)) for variant in late}


def _target(found: Mapping[str, Curve]) -> float:
    return found["plain"].final - _BELOW_PLAIN_POINTS


def _compare(samples: Samples, found: Mapping[str, Curve], longer: Mapping[str, Curve]) -> None:
    """Hold every variant against the plain algorithm."""
    plain, target = found["plain"], _target(found)
    before = plain.seconds_to(target) or plain.seconds[-1]
    for variant, curve in found.items():
        suffix = "" if variant == "balance_score" else f"_{variant}"
        _add(samples, f"iteration_time_cv{suffix}", curve.iteration_time_cv)
        if variant == "plain":
            continue
        reached = longer.get(variant, curve).seconds_to(target)
        # Where it is never reached, it takes longer than all of the run.
        _add(samples, f"time_to_accuracy_speedup{suffix}", before / (reached or before * 10))
        _add(samples, f"accuracy_loss_points{suffix}", plain.in_the_end - curve.in_the_end)
    ours = found["balance_score"]
    _add(samples, "own_accuracy_loss_points", plain.final - ours.own_in_the_end)
    _add(samples, "choosing_time_share", ours.choosing_share)
    _add(samples, "choosing_mb", ours.groups_bytes / 1e6)


def _bit_equal(costs: Costs) -> float:
    """1 if everything on gives the plain algorithm's bits where all devices are as fast."""
    ends = []
    for variant in ("balance_score", "plain"):
        settings = settings_of("mnist", 4, "d-psgd", variant, seed=_SEED)
        each = world("mnist", settings, costs, steps=25, slowness=(1.0,), n_samples=4000)
        each.run()
        ends.append(list(each.models().values()))
    return float(all(torch.equal(a, b) for a, b in zip(*ends, strict=True)))


def _churn(costs: Costs, *, quick: bool) -> dict[str, float]:
    """Eight peers on MNIST, undisturbed and with one after the other killed."""
    n_samples = _QUICK_SAMPLES if quick else None
    settings = settings_of("mnist", 8, "d-psgd", "balance_score", seed=_SEED)
    steps = steps_of("mnist", 8, n_samples)
    slowdown = _CHURN_SLOWDOWN * (10 if quick else 1)
    slow = {name: each.slowed(slowdown) for name, each in costs.items()}
    quiet, churned = (
        world("mnist", settings, slow, steps=steps, n_samples=n_samples) for _ in range(2)
    )
    quiet.run()
    for number in range(8 * 60):
        kill = _killing(churned, f"p{number % 8}")
        churned.at(_CHURN_SECONDS * (number + 1), kill)
    pause, still, last, moment = 0.0, 0.0, -1, 1.0
    while not churned.run(until=moment):
        moment += 1.0
        done = sum(peer.step for peer in churned.peers.values())
        still = still + 1.0 if done == last else 0.0
        pause, last = max(pause, still), done
    means = [torch.stack(list(each.models().values())).mean(dim=0) for each in (quiet, churned)]
    undisturbed, disturbed = (evaluated("mnist", quiet, mean, whole=True) for mean in means)
    return {
        "churn_accuracy_loss_points": undisturbed - disturbed,
        "churn_longest_pause_seconds": pause,
        "churn_time_ratio": churned.now / quiet.now,
        "churn_minutes": churned.now / 60,
    }


def _killing(run: VirtualGossip, name: str) -> Any:
    def kill() -> None:
        if run.peers[name].phase != "finished":
            run.kill(name)
            run.at(run.now + _AWAY_SECONDS, lambda: run.revive(name))

    return kill


def _scale(n_peers: int, costs: DeviceCosts, *, steps: int) -> dict[str, float]:
    """So many peers of a perceptron, four random neighbours each."""
    inputs, targets = TASKS["mnist"].train()
    torch.manual_seed(_SEED)
    captured = capture(
        mlp(784, 10, hidden=(32,)),
        functional.cross_entropy,
        inputs[:2],
        targets[:2],
        metrics={"accuracy": accuracy},
    )
    peers = [f"p{k}" for k in range(n_peers)]
    settings = GossipSettings(topology("regular(4)", peers, seed=_SEED), batch_size=32)
    settings = replace(settings, balance=replace(settings.balance, enabled=False))
    slowness: Sequence[float] = (1.0, 1.5, 2.0, 3.0)
    devices = {}
    for number, part in enumerate(deal(targets.numpy(), n_peers, Split(seed=_SEED))):
        chosen = torch.from_numpy(part)
        rows = TensorRows(flatten_inputs(inputs[chosen], targets[chosen]))
        optimizer = Optimizer("SGD", lr=0.05, momentum=0.9)
        learner = Learner(captured, optimizer, rows, settings, number=number, now=lambda: 0.0)
        devices[peers[number]] = (learner, costs.slowed(slowness[number % 4]))
    first = devices["p0"][0].layout.flat(captured.state)
    began = time.perf_counter()
    run = VirtualGossip(settings, devices, first, steps=steps)
    run.run()
    seconds = time.perf_counter() - began
    mean = torch.stack(list(run.models().values())).mean(dim=0)
    apart = torch.stack([(m - mean).norm() for m in run.models().values()]).mean() / mean.norm()
    return {
        f"scale_{n_peers}_accuracy": evaluated("mnist", run, mean),
        f"scale_{n_peers}_consensus_distance": float(apart),
        f"scale_{n_peers}_ms_per_peer_step": 1e3 * seconds / (steps * n_peers),
    }


def _add(samples: Samples, key: str, value: float) -> None:
    samples.setdefault(key, []).append(value)
