"""What all random networks are drawn with."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

__all__ = [
    "MOST_MACS",
    "Example",
    "activation",
    "example_of",
    "log_uniform",
    "next_token_loss",
    "width_of",
]

MOST_MACS = 6e7
"""Of a convolution or product, so that a pass takes milliseconds."""

_ACTIVATIONS: Sequence[Callable[[], nn.Module]] = (
    nn.ReLU,
    nn.ReLU,
    nn.ReLU6,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Sigmoid,
    nn.Tanh,
    nn.LeakyReLU,
    nn.ELU,
    nn.Hardsigmoid,
)


@dataclass(frozen=True, slots=True)
class Example:
    """A network with a batch for it and its loss."""

    name: str
    model: nn.Module
    inputs: torch.Tensor
    targets: torch.Tensor
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def log_uniform(chance: random.Random, least: float, most: float) -> int:
    return round(math.exp(chance.uniform(math.log(least), math.log(most + 0.49))))


def width_of(chance: random.Random, least: int, most: int) -> int:
    """Mostly a multiple of eight, as people choose them."""
    width = log_uniform(chance, least, most)
    return width if chance.random() < 0.25 else max(4, width // 8 * 8)


def activation(chance: random.Random) -> nn.Module:
    return chance.choice(_ACTIVATIONS)()


def example_of(
    name: str, model: nn.Module, inputs: torch.Tensor, outputs: int, chance: random.Random
) -> Example:
    """With labels, or now and then with numbers to be met."""
    n_samples = len(inputs)
    if chance.random() < 0.2:
        return Example(name, model, inputs, torch.randn(n_samples, outputs), functional.mse_loss)
    labels = torch.zeros(n_samples, dtype=torch.long)
    return Example(name, model, inputs, labels, functional.cross_entropy)


def next_token_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())
