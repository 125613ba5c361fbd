"""What is learnt: a small MobileNetV2 on CIFAR-10 and a small GPT-2 on tiny-shakespeare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.coded_stages import Batch
from benchmarks.data import cifar10, shakespeare
from benchmarks.latency.blocks import Logits, Residual
from edgeweave.program import (
    LossFunction,
    Program,
    capture,
    cut,
    cut_bytes,
    without_outputs,
)

__all__ = ["TASKS", "Task", "captured"]

_CONTEXT = 64
_VALIDATION = 10
_MOBILENET = ((16, 1, 1), (24, 2, 2), (40, 2, 1), (64, 2, 2))
"""Channels, blocks, stride of the first block."""


@dataclass(frozen=True, slots=True)
class Task:
    """A model, its data, and how it learns. ``score`` is what is compared in the end."""

    name: str
    score: Literal["accuracy", "loss"]
    model: Callable[[], nn.Module]
    loss: LossFunction
    samples: Callable[[int], Iterator[Batch]]
    """Microbatches for ever, in an order that follows from a seed."""
    tests: Callable[[], Sequence[Batch]]
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    """With the highest learning rate."""
    steps: int
    bits: tuple[int, ...]
    """Of the codecs that are compared with none."""
    seeds: tuple[int, ...]
    microbatches: int = 2
    metrics: Mapping[str, LossFunction] = field(default_factory=dict)


@lru_cache(maxsize=2)
def captured(name: str, seed: int) -> tuple[tuple[Program, ...], dict[str, torch.Tensor]]:
    """The task's model, cut in three, and the weights that the seed gives."""
    task = TASKS[name]
    torch.manual_seed(seed)
    batch = next(task.samples(seed))
    found = capture(task.model(), task.loss, *batch, metrics=task.metrics)
    program = without_outputs(found.program)
    return cut(program, _cheapest(program, len(batch[1]))), found.state


def _cheapest(program: Program, batch: int) -> tuple[int, int]:
    """Two cuts, near a third and two thirds of the units, where the least crosses."""
    sizes = cut_bytes(program, batch)
    units = program.unit_numbers
    middle = len(units) // 2
    margin = len(units) // 6
    first, second = (
        min(part, key=lambda unit: sizes[unit].forward + sizes[unit].backward)
        for part in (units[margin:middle], units[middle : len(units) - margin])
    )
    return first, second


def _mobilenet() -> nn.Module:
    """MobileNetV2's blocks, narrow: 100 000 parameters for 32 x 32 pixels.

    Weights lie with channels last, which makes a core 1.5 times as fast here.
    """
    layers: list[nn.Module] = [_convolution(3, 16, 3, 2), nn.ReLU6()]
    n_in = 16
    for n_out, blocks, stride in _MOBILENET:
        layers.append(_inverted(n_in, n_out, stride))
        layers += [Residual(_inverted(n_out, n_out, 1)) for _ in range(blocks - 1)]
        n_in = n_out
    layers += [_convolution(n_in, 128, 1, 1), nn.ReLU6()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
    model = nn.Sequential(*layers)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _inverted(n_in: int, n_out: int, stride: int) -> nn.Module:
    wide = 4 * n_in
    return nn.Sequential(
        _convolution(n_in, wide, 1, 1),
        nn.ReLU6(),
        _convolution(wide, wide, 3, stride, groups=wide),
        nn.ReLU6(),
        _convolution(wide, n_out, 1, 1),
    )


def _convolution(n_in: int, n_out: int, side: int, stride: int, *, groups: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, side, stride, side // 2, groups=groups, bias=False),
        nn.BatchNorm2d(n_out),
    )


def _images(seed: int) -> Iterator[Batch]:
    """32 images at a time, half of them mirrored; each once before any comes again."""
    images, labels = cifar10("train")
    chance = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(images), generator=chance)
        for chosen in torch.split(order, 32):
            mirrored = torch.rand(len(chosen), 1, 1, 1, generator=chance) < 0.5
            taken = images[chosen]
            yield torch.where(mirrored, taken.flip(3), taken), labels[chosen]


def _test_images() -> Sequence[Batch]:
    images, labels = cifar10("test")
    return list(zip(torch.split(images, 500), torch.split(labels, 500), strict=True))


def _accuracy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output.argmax(1) == target).float().mean()


def _gpt2() -> nn.Module:
    """Three layers of 96, 4 heads, characters as tokens: 0.35 million parameters, none tied."""
    config = GPT2Config(
        n_embd=96,
        n_layer=3,
        n_head=4,
        vocab_size=65,
        bos_token_id=None,
        eos_token_id=None,
        n_positions=_CONTEXT,
        use_cache=False,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
    )
    return Logits(GPT2LMHeadModel(config))


def _windows(seed: int) -> Iterator[Batch]:
    """Eight windows of 64 characters at a time, from anywhere in the first nine tenths."""
    text = shakespeare()
    n_train = len(text) * (_VALIDATION - 1) // _VALIDATION
    chance = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(n_train - _CONTEXT, (8, 1), generator=chance)
        places = starts + torch.arange(_CONTEXT + 1)
        yield text[places[:, :-1]], text[places[:, 1:]]


def _validation_windows() -> Sequence[Batch]:
    """The last tenth, end to end."""
    text = shakespeare()
    kept = text[len(text) * (_VALIDATION - 1) // _VALIDATION :]
    n_windows = (len(kept) - 1) // _CONTEXT
    inputs = kept[: n_windows * _CONTEXT].view(n_windows, _CONTEXT)
    targets = kept[1 : n_windows * _CONTEXT + 1].view(n_windows, _CONTEXT)
    return list(zip(torch.split(inputs, 64), torch.split(targets, 64), strict=True))


def _next_character(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="cifar10",
            score="accuracy",
            model=_mobilenet,
            loss=F.cross_entropy,
            samples=_images,
            tests=_test_images,
            optimizer=lambda parameters: torch.optim.SGD(
                parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
            ),
            steps=1560,
            bits=(16, 8, 6, 4),
            seeds=(0, 1, 2),
            metrics={"accuracy": _accuracy},
        ),
        Task(
            name="shakespeare",
            score="loss",
            model=_gpt2,
            loss=_next_character,
            samples=_windows,
            tests=_validation_windows,
            optimizer=lambda parameters: torch.optim.AdamW(
                parameters, lr=2e-3, betas=(0.9, 0.99), weight_decay=0.1
            ),
            steps=900,
            bits=(8, 6, 4),
            seeds=(0, 1),
        ),
    )
}
