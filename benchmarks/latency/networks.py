"""Random networks that cover what people train.

Shapes are drawn evenly on logarithmic scales: many channels on few positions and few on many, small
batches and large.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import nn

from benchmarks.latency.blocks import Attention, LastStep, Residual, Tokens
from benchmarks.latency.drawing import (
    MOST_MACS,
    Example,
    activation,
    example_of,
    log_uniform,
    next_token_loss,
    width_of,
)
from benchmarks.latency.images import deep, heavy, images, late, tiny
from benchmarks.latency.trunks import encoder, padded, trunk, wide

__all__ = ["SORTS", "random_examples"]


def random_examples(n_each: Mapping[str, int]) -> Sequence[Callable[[], Example]]:
    """So many of each sort in ``SORTS``, made when called; each depends on its name alone."""
    return [
        partial(_random_example, sort, number)
        for sort, count in n_each.items()
        for number in range(count)
    ]


def _random_example(sort: str, number: int) -> Example:
    torch.manual_seed(number)
    return SORTS[sort](f"{sort}-{number}", random.Random(f"{sort}-{number}"))


def _perceptron(name: str, chance: random.Random) -> Example:
    batch, inputs = log_uniform(chance, 2, 128), width_of(chance, 8, 2048)
    layers: list[nn.Module] = []
    width = inputs
    for _ in range(chance.randint(4, 10)):
        out = width_of(chance, 8, 2048)
        layers.append(nn.Linear(width, out, bias=chance.random() < 0.8))
        width = out
        if chance.random() < 0.35:
            layers.append(chance.choice([nn.LayerNorm, nn.BatchNorm1d])(width))
        if chance.random() < 0.8:
            layers.append(activation(chance))
        if chance.random() < 0.15:
            layers.append(nn.Dropout(0.1))
    outputs = width_of(chance, 2, 1024)
    model = nn.Sequential(*layers, nn.Linear(width, outputs))
    return example_of(name, model, torch.randn(batch, inputs), outputs, chance)


def _tokens(name: str, chance: random.Random) -> Example:
    heads = chance.choice([1, 2, 3, 4, 6, 8])
    width = heads * chance.choice([16, 32, 64])
    batch, length = log_uniform(chance, 2, 16), log_uniform(chance, 8, 160)
    while batch * length > 1500:
        batch, length = max(2, batch // 2), length * 3 // 4
    vocabulary = log_uniform(chance, 32, 8000)
    while batch * length * vocabulary * width > 2 * MOST_MACS:
        vocabulary = vocabulary // 2 + 16
    causal, dropout = chance.random() < 0.5, chance.choice([0.0, 0.0, 0.1])
    blocks: list[nn.Module] = []
    for _ in range(chance.randint(1, 3)):
        inner = int(width * chance.choice([1, 2, 3, 4]))
        attention = [nn.LayerNorm(width), Attention(width, heads, causal=causal)]
        perceptron = [nn.LayerNorm(width), nn.Linear(width, inner), activation(chance)]
        after: list[nn.Module] = [nn.Dropout(dropout)] if dropout else []
        blocks += [
            Residual(nn.Sequential(*attention, *after)),
            Residual(nn.Sequential(*perceptron, nn.Linear(inner, width), *after)),
        ]
    classifies = chance.random() < 0.4
    positions = 512 if chance.random() < 0.5 else 0
    outputs = 10 if classifies else vocabulary
    model = Tokens(vocabulary, width, blocks, outputs, positions=positions, pools=classifies)
    inputs = torch.zeros(batch, length, dtype=torch.long)
    labels = torch.zeros(batch if classifies else (batch, length), dtype=torch.long)
    return Example(name, model, inputs, labels, next_token_loss)


def _series(name: str, chance: random.Random) -> Example:
    """Signals over time: recurrent layers or convolutions."""
    batch, length = log_uniform(chance, 2, 32), log_uniform(chance, 16, 128)
    channels = log_uniform(chance, 1, 64)
    inputs, classes = torch.randn(batch, channels, length), 6
    if chance.random() < 0.4:
        hidden = width_of(chance, 16, 256)
        kind = nn.LSTM if chance.random() < 0.6 else nn.GRU
        layers = kind(channels, hidden, num_layers=chance.choice([1, 1, 2]), batch_first=True)
        return example_of(name, LastStep(layers, hidden, classes), inputs, classes, chance)
    width, convolutions = channels, list[nn.Module]()
    for _ in range(chance.randint(3, 7)):
        out, kernel = width_of(chance, 8, 256), chance.choice([3, 5, 7, 9])
        stride = chance.choice([1, 1, 2])
        convolutions.append(nn.Conv1d(width, out, kernel, stride, kernel // 2))
        width = out
        if chance.random() < 0.6:
            convolutions.append(nn.BatchNorm1d(width))
        convolutions.append(activation(chance))
    model = nn.Sequential(
        *convolutions, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, classes)
    )
    return example_of(name, model, inputs, classes, chance)


SORTS: Mapping[str, Callable[[str, random.Random], Example]] = {
    "images": images,
    "late": late,
    "deep": deep,
    "perceptron": _perceptron,
    "tokens": _tokens,
    "series": _series,
    "heavy": heavy,
    "trunk": trunk,
    "encoder": encoder,
    "padded": padded,
    "tiny": tiny,
    "wide": wide,
}
