"""One training of `benchmarks/edgepipe.py`: a task, an arm, links, deaths, a seed -> accuracies.

Devices are rehearsed (``edgeweave.train.slices.rehearsal``): segments and weights are real,
links and time are not. The data owner hands inputs and targets to members without loss in every
arm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from random import Random
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.coded_stages import Batch
from benchmarks.data import DATA, cifar10
from benchmarks.small_data import fashion_mnist, mnist, movements
from edgeweave.net import GilbertElliott
from edgeweave.plan import map_members, super_neurons, traffic
from edgeweave.program import Captured, Group, Sliced, capture, slice_program, without_outputs
from edgeweave.train.slices.link_fates import Fates, LossSource, RecordedLosses, losses_on_all_links
from edgeweave.train.slices.rehearsal import Delivery, Rehearsal, RehearsalSetup

__all__ = [
    "ARMS",
    "BURSTS",
    "TASKS",
    "Arm",
    "Found",
    "Job",
    "Links",
    "drawn_reception",
    "sliced",
    "train",
]

_BATCH = 64
_TEST_BATCH = 500
BURSTS = GilbertElliott(to_bad=0.05, to_good=0.2, loss_good=0.0, loss_bad=1.0)
"""A fifth of all packets is lost, five in a row on average."""


@dataclass(frozen=True, slots=True)
class Task:
    """A network, its data and its learning rate."""

    model: Callable[[], nn.Module]
    data: Callable[[Literal["train", "test"]], tuple[torch.Tensor, torch.Tensor]]
    rate: float


@dataclass(frozen=True, slots=True)
class Arm:
    """Who has which layers, and what becomes of lost messages."""

    shares: Callable[[int, int], tuple[super_neurons.Share, ...]]
    delivery: Delivery = "tolerant"
    is_pipelined: bool = True
    is_mapped: bool = True


@dataclass(frozen=True, slots=True)
class Links:
    """What links lose: a share of all, a share of each, in bursts, or as it was recorded."""

    loss: float | GilbertElliott | Mapping[tuple[str, str], float] | Literal["recorded"]
    per: Literal["message", "datagram"] = "message"


@dataclass(frozen=True, slots=True)
class Found:
    """Accuracies in percent: after so many batches, and after so many slots."""

    of_samples: float
    of_slots: float
    broken_share: float
    slots: float


def _hybrid(n_layers: int, n_devices: int) -> tuple[super_neurons.Share, ...]:
    """EdgePipe's, which counts the inputs as a layer; that one costs nothing, and nobody has it."""
    first, *others = super_neurons.paper_hybrid(n_layers + 1, n_devices)
    if first.n_layers > 1:
        return (super_neurons.Share(first.n_layers - 1, first.n_devices), *others)
    # The devices of the inputs help the next group.
    following = super_neurons.Share(others[0].n_layers, others[0].n_devices + first.n_devices)
    return (following, *others[1:])


ARMS: Mapping[str, Arm] = {
    "hybrid": Arm(_hybrid),
    "vertical": Arm(super_neurons.vertical, "dropping"),
    "retransmitting": Arm(super_neurons.vertical, "retransmitting"),
    "horizontal": Arm(super_neurons.horizontal, "dropping"),
    "masked_horizontal": Arm(super_neurons.horizontal),
    "random_mapping": Arm(_hybrid, is_mapped=False),
    "sequential": Arm(_hybrid, is_pipelined=False),
}


def _mlp() -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in in (784, 128, 128, 128):
        layers += [nn.Linear(n_in, 128), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 10))


def _lenet() -> nn.Module:
    convolutions = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    convolutions += [nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    dense = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*convolutions, *dense)


def _cnn() -> nn.Module:
    layers: list[nn.Module] = []
    for n_in, n_out in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10))


def _sensor_cnn() -> nn.Module:
    layers: list[nn.Module] = []
    for n_in, n_out in ((9, 24), (24, 24), (24, 24)):
        layers += [nn.Conv1d(n_in, n_out, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(384, 64), nn.ReLU(), nn.Linear(64, 6))


TASKS: Mapping[str, Task] = {
    "mlp_mnist": Task(_mlp, mnist, 0.1),
    "lenet_mnist": Task(_lenet, mnist, 0.05),
    "mlp_fashion": Task(_mlp, fashion_mnist, 0.1),
    "lenet_fashion": Task(_lenet, fashion_mnist, 0.05),
    "cnn_cifar10": Task(_cnn, cifar10, 0.05),
    "cnn_har": Task(_sensor_cnn, movements, 0.05),
}


def _accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output.argmax(1) == target).float().mean()


@lru_cache(maxsize=8)
def _captured(task: str, seed: int) -> Captured:
    torch.manual_seed(seed)
    inputs, labels = TASKS[task].data("train")
    model = TASKS[task].model()
    example = inputs[:4], labels[:4]
    return capture(model, F.cross_entropy, *example, metrics={"accuracy": _accuracy})


@lru_cache(maxsize=8)
def sliced(task: str, arm: str, n_devices: int, seed: int) -> Sliced:
    """The task's network for so many devices. The last unit is the loss."""
    program = without_outputs(_captured(task, seed).program)
    n_layers = program.unit_numbers[-1]
    shares = ARMS[arm].shares(n_layers, n_devices)
    edges = [0, *accumulate(share.n_layers for share in shares)]
    edges[-1] = n_layers + 1
    groups = [Group(edges[i], edges[i + 1], share.n_devices) for i, share in enumerate(shares)]
    return slice_program(program, groups)


def drawn_reception(names: Sequence[str], seed: int) -> dict[tuple[str, str], float]:
    """As in EdgePipe's example, each direction of each pair between 0.6 and 1."""
    rng = Random(seed)
    return {(a, b): rng.uniform(0.6, 1.0) for a in names for b in names if a != b}


def _samples(task: str, seed: int) -> Iterator[Batch]:
    inputs, labels = TASKS[task].data("train")
    chance = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.split(torch.randperm(len(inputs), generator=chance), _BATCH):
            if len(chosen) == _BATCH:
                yield inputs[chosen], labels[chosen]


@dataclass(frozen=True, slots=True)
class Job:
    """One training."""

    task: str
    arm: str
    links: Links
    n_batches: int
    n_slots: float
    """The second accuracy is that of the weights after so many slots."""
    n_devices: int = 4
    seed: int = 0
    n_tests: int = 10_000
    repeat_slots: float = 1.0
    deaths: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def train(job: Job) -> Found:
    """Train, and look at the test data when the batches and when the slots are over."""
    arm, cut_up = ARMS[job.arm], sliced(job.task, job.arm, job.n_devices, job.seed)
    names = [f"pi-{index}" for index in range(job.n_devices)]
    placement: Sequence[str] = names[: len(cut_up.members)]
    if isinstance(job.links.loss, Mapping) and arm.is_mapped:
        reception = {ends: 1 - loss for ends, loss in job.links.loss.items()}
        placement = map_members(traffic(cut_up, _BATCH), names, reception, Random(job.seed))
    fates = Fates(_losses(job.links, job.seed), per=job.links.per)
    setup = RehearsalSetup(
        placement,
        delivery=arm.delivery,
        is_pipelined=arm.is_pipelined,
        repeat_slots=job.repeat_slots,
        seed=job.seed,
        deaths=job.deaths,
    )
    rate = TASKS[job.task].rate
    rehearsal = Rehearsal(
        cut_up,
        _captured(job.task, job.seed).state,
        lambda parameters: torch.optim.SGD(parameters, lr=rate),
        fates,
        setup,
    )
    return _watched(rehearsal, job)


def _watched(rehearsal: Rehearsal, job: Job) -> Found:
    batches = _samples(job.task, job.seed)
    first = (next(batches) for _ in range(job.n_batches))
    begun = rehearsal.train(first, slots=job.n_slots)
    found = _tested(rehearsal, job)
    of_samples = of_slots = found
    if begun < job.n_batches:
        begun += rehearsal.train(next(batches) for _ in range(job.n_batches - begun))
        of_samples = _tested(rehearsal, job)
    elif rehearsal.slots < job.n_slots:
        begun += rehearsal.train(batches, slots=job.n_slots)
        of_slots = _tested(rehearsal, job)
    return Found(of_samples, of_slots, rehearsal.n_broken / begun, rehearsal.slots)


def _tested(rehearsal: Rehearsal, job: Job) -> float:
    """What the living devices answer when nothing is lost, in percent right. No answer is wrong."""
    inputs, labels = (each[: job.n_tests] for each in TASKS[job.task].data("test"))
    right = 0.0
    for batch in zip(
        torch.split(inputs, _TEST_BATCH), torch.split(labels, _TEST_BATCH), strict=True
    ):
        right += rehearsal.evaluate(batch).get("accuracy", 0.0) * len(batch[1])
    return 100 * right / len(labels)


def _losses(links: Links, seed: int) -> Callable[[str, str], LossSource]:
    if links.loss != "recorded":
        return losses_on_all_links(links.loss, seed)
    recorded = _recorded_links()

    def make(source: str, target: str) -> LossSource:
        rng = np.random.default_rng([seed, *map(ord, source + target)])
        return RecordedLosses(recorded[int(rng.integers(len(recorded)))], rng)

    return make


@lru_cache(maxsize=1)
def _recorded_links() -> tuple[np.ndarray, ...]:
    """Of the ORBIT test bed's Wi-Fi links (``net_traces``) those that lose a tenth to a half."""
    with np.load(DATA / "net_traces" / "rutgers_wifi.npz") as stored:
        lost = stored["rssi"] == 255
    shares = lost.mean(1)
    return tuple(lost[(shares >= 0.1) & (shares <= 0.5)])
