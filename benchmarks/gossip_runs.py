"""Gossip on a virtual clock with this machine's costs: tasks, devices, and accuracy over time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean, median, pstdev

import torch
from torch import nn
from torch.nn import functional

from benchmarks.data import DATA, cifar10
from edgeweave.data import Split, deal, load_source
from edgeweave.device import Learner, Optimizer
from edgeweave.device.peers.rows import TensorRows
from edgeweave.gossip import DeviceCosts, VirtualGossip
from edgeweave.mixing import (
    Algorithm,
    BalanceSettings,
    Choosing,
    GossipSettings,
    Importance,
    topology,
)
from edgeweave.program import Captured, capture, flatten_inputs
from edgeweave.train.metrics import accuracy
from edgeweave.train.models import lenet

__all__ = ["SLOWNESS", "TASKS", "VARIANTS", "Costs", "Curve", "GossipTask", "costs_of"]
__all__ += ["curve_of", "evaluated", "settings_of", "steps_of", "world"]

SLOWNESS = (1.0, 1.5, 2.0, 3.0)
"""Of the devices, in turn."""

_TESTED = 2000
_ROUNDS = 3
_MEANS_OF = 3
"""Neighbouring evaluations that are averaged."""

Samples = tuple[torch.Tensor, torch.Tensor]
Costs = Mapping[Importance, DeviceCosts]
"""What a task takes, by how samples are scored."""


@dataclass(frozen=True, slots=True)
class GossipTask:
    """What is learnt: a model and its data."""

    model: Callable[[], nn.Module]
    train: Callable[[], Samples]
    test: Callable[[], Samples]
    optimizer: Optimizer
    epochs: int
    batch_size: int = 256


def _images(name: str, folder: str, part: str) -> Samples:
    pair = load_source(name, path=DATA / folder, normalise=True)
    data = pair.train if part == "train" else pair.test
    return data.batch(torch.arange(len(data)))


def _cnn() -> nn.Module:
    """Three convolutions for pictures of 32x32."""
    layers: list[nn.Module] = []
    for n_in, n_out in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 10))


_SGD = Optimizer("SGD", lr=0.02, momentum=0.9)

TASKS: Mapping[str, GossipTask] = {
    "mnist": GossipTask(
        lenet,
        cache(lambda: _images("mnist", "mnist", "train")),
        cache(lambda: _images("mnist", "mnist", "test")),
        _SGD,
        epochs=4,
    ),
    "fashion": GossipTask(
        lenet,
        cache(lambda: _images("fashion-mnist", "fashion_mnist", "train")),
        cache(lambda: _images("fashion-mnist", "fashion_mnist", "test")),
        _SGD,
        epochs=6,
    ),
    "cifar10": GossipTask(_cnn, lambda: cifar10("train"), lambda: cifar10("test"), _SGD, epochs=12),
}


@dataclass(frozen=True, slots=True)
class Variant:
    """What is done about devices being unequal."""

    balance: BalanceSettings
    importance: Importance = "last-layer"
    choosing: Choosing = "weighted"
    group_size: int = 8


VARIANTS: Mapping[str, Variant] = {
    "plain": Variant(BalanceSettings(enabled=False), "none"),
    "balance_random": Variant(BalanceSettings(), "none"),
    "balance_score": Variant(BalanceSettings()),
    "published": Variant(BalanceSettings(), "first-layer", "groups", 20),
    "fixed_share": Variant(BalanceSettings(enabled=False, share=0.5)),
}
"""The plain algorithm, balance alone, ours, EdgeGossip as published, and the same share everywhere.
"""


@dataclass(frozen=True, slots=True)
class Curve:
    """How accurate the mean model was, and when, in seconds of the devices; and what it took."""

    seconds: tuple[float, ...]
    accuracies: tuple[float, ...]
    iteration_time_cv: float
    choosing_share: float
    """Of all busy time, what scoring took."""
    groups_bytes: int
    """Largest memory of aggregated points on a device."""
    bytes_sent: int
    in_the_end: float
    """Of the mean model, of all samples held out: mean of the last evaluations."""
    own_in_the_end: float
    """Mean over the peers, each of its own model."""

    @property
    def final(self) -> float:
        """Mean of the last accuracies of the curve."""
        return fmean(self.accuracies[-_MEANS_OF:])

    def seconds_to(self, target: float) -> float | None:
        """When the accuracy first was ``target``, as a mean of neighbours; None if it never was."""
        for end in range(_MEANS_OF, len(self.seconds) + 1):
            if fmean(self.accuracies[end - _MEANS_OF : end]) >= target:
                return self.seconds[end - 1]
        return None


@cache
def _captured(name: str, seed: int) -> Captured:
    task = TASKS[name]
    torch.manual_seed(seed)
    inputs, targets = task.train()
    return capture(
        task.model(),
        functional.cross_entropy,
        inputs[:2],
        targets[:2],
        metrics={"accuracy": accuracy},
    )


def world(
    name: str,
    settings: GossipSettings,
    costs: Costs,
    *,
    steps: int,
    slowness: Sequence[float] = SLOWNESS,
    n_samples: int | None = None,
    patience_seconds: float = 30.0,
) -> VirtualGossip:
    """A run of a task whose devices are so many times slower than this machine, in turn."""
    task, captured = TASKS[name], _captured(name, settings.seed)
    inputs, targets = (each[:n_samples] for each in task.train())
    peers, own = settings.graph.peers, costs[settings.importance]
    devices = {}
    for number, part in enumerate(deal(targets.numpy(), len(peers), Split(seed=settings.seed))):
        chosen = torch.from_numpy(part)
        rows = TensorRows(flatten_inputs(inputs[chosen], targets[chosen]))
        learner = Learner(captured, task.optimizer, rows, settings, number=number, now=lambda: 0.0)
        devices[peers[number]] = (learner, own.slowed(slowness[number % len(slowness)]))
    first = devices[peers[0]][0].layout.flat(captured.state)
    return VirtualGossip(settings, devices, first, steps=steps, patience_seconds=patience_seconds)


def settings_of(
    name: str, n_peers: int, algorithm: Algorithm, variant: str, *, seed: int = 0
) -> GossipSettings:
    """A ring of so many peers."""
    each = VARIANTS[variant]
    return GossipSettings(
        topology("ring", [f"p{k}" for k in range(n_peers)]),
        batch_size=TASKS[name].batch_size,
        algorithm=algorithm,
        balance=each.balance,
        importance=each.importance,
        choosing=each.choosing,
        group_size=each.group_size,
        seed=seed,
    )


def steps_of(name: str, n_peers: int, n_samples: int | None = None) -> int:
    """Steps of all epochs of a task."""
    task = TASKS[name]
    n = n_samples or len(task.train()[1])
    return -(-n * task.epochs // (n_peers * task.batch_size))


def curve_of(name: str, run: VirtualGossip, seconds: float, *, points: int = 60) -> Curve:
    """Let it run, and evaluate the mean model at equal distances of ``seconds`` in all."""
    moments: list[float] = []
    accuracies: list[float] = []
    last: deque[torch.Tensor] = deque(maxlen=_MEANS_OF)
    done = False
    while not done:
        done = run.run(until=seconds / points * (len(moments) + 1))
        moments.append(run.now)
        last.append(torch.stack(list(run.models().values())).mean(dim=0))
        accuracies.append(evaluated(name, run, last[-1]))
    told = [peer.statistics for peer in run.peers.values()]
    means = [fmean(each.busy_seconds[20:] or each.busy_seconds) for each in told]
    busy = sum(sum(each.busy_seconds) for each in told)
    return Curve(
        tuple(moments),
        tuple(accuracies),
        pstdev(means) / fmean(means),
        sum(each.scoring_seconds for each in told) / busy,
        max(run.learner(peer).selection.n_bytes for peer in run.peers),
        run.bytes_carried,
        fmean(evaluated(name, run, mean, whole=True) for mean in last),
        fmean(evaluated(name, run, model) for model in run.models().values()),
    )


def evaluated(name: str, run: VirtualGossip, model: torch.Tensor, *, whole: bool = False) -> float:
    """Accuracy of a model on the first samples held out, or on all of them, in percent."""
    inputs, targets = TASKS[name].test()
    learner = run.learner(next(iter(run.peers)))
    n = len(targets) if whole else _TESTED
    found = 0.0
    for start in range(0, n, _TESTED):
        part = slice(start, min(start + _TESTED, n))
        batch = flatten_inputs(inputs[part], targets[part])
        found += learner.evaluate(model, batch)["accuracy"] * len(targets[part])
    return 100 * found / n


def costs_of(name: str, *, turns: int) -> dict[Importance, DeviceCosts]:
    """What this machine takes for a task, by what is scored: CPU seconds of one thread.

    They differ by the seconds of a point alone. Other work on the machine makes CPU seconds longer,
    never shorter: of three rounds the one with the quickest iteration counts.
    """

    def quickest(variant: str) -> DeviceCosts:
        n = TASKS[name].batch_size
        rounds = [_measured(name, variant, turns) for _ in range(_ROUNDS)]
        return min(rounds, key=lambda each: each.seconds_per_sample * n + each.other_seconds)

    cheap, dear = quickest("balance_score"), quickest("published")
    return {
        "none": cheap,
        "last-layer": cheap,
        "first-layer": replace(cheap, seconds_per_point=dear.seconds_per_point),
    }


def _measured(name: str, variant: str, turns: int) -> DeviceCosts:
    settings = replace(settings_of(name, 2, "d-psgd", variant), warm_up_epochs=0)
    inputs, targets = (each[:1024] for each in TASKS[name].train())
    rows = TensorRows(flatten_inputs(inputs, targets))
    captured, batch = _captured(name, 0), settings.batch_size
    learner = Learner(
        captured, TASKS[name].optimizer, rows, settings, number=0, now=time.thread_time
    )
    model = learner.layout.flat(captured.state)
    per_sample, per_point, other = [], [], []
    for turn in range(0, (turns + 2) * settings.scoring.every, settings.scoring.every):
        whole = learner.train(model, batch, turn)
        began = time.thread_time()
        mixed = torch.add(model, model - model, alpha=0.3)
        learner.apply(torch.add(mixed, model - model, alpha=0.3), turn)
        other.append(time.thread_time() - began)
        part = learner.train(model, batch // 4, turn)
        learner.apply(model, turn)
        slope = (whole.seconds - part.seconds) / (whole.n_samples - part.n_samples)
        per_sample.append(slope)
        # What a pass takes however small it is belongs to every iteration.
        other[-1] += max(0.0, whole.seconds - slope * whole.n_samples)
        per_point.append(part.scoring_seconds / part.n_scored)
    return DeviceCosts(median(per_sample[2:]), median(per_point[2:]), median(other[2:]))
