"""Small runs on a virtual clock: a model of digits, and devices with costs made up for tests."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional

from edgeweave.data import Split, deal, load_source
from edgeweave.device import Learner, Optimizer
from edgeweave.device.peers.rows import TensorRows
from edgeweave.gossip.virtual import DeviceCosts, VirtualGossip
from edgeweave.mixing import GossipSettings, topology
from edgeweave.program import Captured, capture, flatten_inputs
from edgeweave.train.metrics import accuracy
from edgeweave.train.models import mlp

PER_SAMPLE = DeviceCosts(0.001, 0.0003, 0.002)
SGD = Optimizer("SGD", lr=0.1, momentum=0.9)


@functools.cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The samples to train on."""
    data = load_source("digits", path=None).train
    return data.batch(torch.arange(len(data)))


@functools.cache
def held_out() -> dict[str, torch.Tensor]:
    data = load_source("digits", path=None).test
    return flatten_inputs(*data.batch(torch.arange(len(data))))


@functools.cache
def captured(seed: int = 0) -> Captured:
    """A small perceptron, as every test of a run uses it."""
    torch.manual_seed(seed)
    model = mlp(64, 10, hidden=(24,))
    inputs, targets = digits()
    return capture(
        model,
        functional.cross_entropy,
        inputs[:2],
        targets[:2],
        metrics={"accuracy": accuracy},
    )


def settings_of(name: str = "ring", n: int = 4, **options: Any) -> GossipSettings:
    graph = topology(name, [f"p{k}" for k in range(n)])
    return GossipSettings(graph, **{"batch_size": 32, **options})


def learners(
    settings: GossipSettings, *, split: Split | None = None, optimizer: Optimizer = SGD
) -> dict[str, Learner]:
    """One for each peer, on its share of digits."""
    inputs, targets = digits()
    parts = deal(targets.numpy(), len(settings.graph.peers), split or Split())
    found = {}
    for number, (name, part) in enumerate(zip(settings.graph.peers, parts, strict=True)):
        chosen = torch.from_numpy(part)
        rows = TensorRows(flatten_inputs(inputs[chosen], targets[chosen]))
        found[name] = Learner(captured(), optimizer, rows, settings, number=number, now=lambda: 0.0)
    return found


def run_of(
    settings: GossipSettings,
    *,
    steps: int,
    slowness: Mapping[str, float] | None = None,
    split: Split | None = None,
    optimizer: Optimizer = SGD,
    **options: Any,
) -> VirtualGossip:
    """A run whose devices differ by how slow they are."""
    slow = dict(slowness or {})
    devices = {
        name: (learner, PER_SAMPLE.slowed(slow.get(name, 1.0)))
        for name, learner in learners(settings, split=split, optimizer=optimizer).items()
    }
    first = next(iter(devices.values()))[0].layout.flat(captured().state)
    return VirtualGossip(settings, devices, first, steps=steps, **options)


def mean_model(world: VirtualGossip) -> torch.Tensor:
    return torch.stack(list(world.models().values())).mean(dim=0)


def accuracy_of(world: VirtualGossip, model: torch.Tensor) -> float:
    return next(iter_learner(world)).evaluate(model, held_out())["accuracy"]


def iter_learner(world: VirtualGossip) -> Any:
    return iter([world.learner(next(iter(world.peers)))])


def plain(settings: GossipSettings) -> GossipSettings:
    """The same without balance."""
    return replace(settings, balance=replace(settings.balance, enabled=False), importance="none")
