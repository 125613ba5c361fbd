"""Random networks that cover what people train.

They are made of the blocks of known architectures, with shapes drawn evenly on logarithmic scales:
many channels on few positions and few on many, small batches and large. No convolution or product
has more than ``_MOST_MACS`` multiply-adds, so that a pass takes milliseconds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from benchmarks.latency.blocks import (
    Attention,
    ChannelNorm,
    Concatenated,
    ConvNextBlock,
    LastStep,
    Padded,
    Residual,
    SqueezeExcite,
    Tokens,
    Upsampled,
)

__all__ = ["SORTS", "Example", "next_token_loss", "random_examples"]

_MOST_MACS = 6e7
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


def _log_uniform(chance: random.Random, least: float, most: float) -> int:
    return round(math.exp(chance.uniform(math.log(least), math.log(most + 0.49))))


def _width(chance: random.Random, least: int, most: int) -> int:
    """Mostly a multiple of eight, as people choose them."""
    width = _log_uniform(chance, least, most)
    return width if chance.random() < 0.25 else max(4, width // 8 * 8)


def _activation(chance: random.Random) -> nn.Module:
    return chance.choice(_ACTIVATIONS)()


class _Images:
    """A convolutional network in the making: what comes out so far, and the layers that do it."""

    def __init__(self, chance: random.Random, batch: int, channels: int, size: int) -> None:
        self.chance, self.batch, self.channels, self.size = chance, batch, channels, size
        self.layers: list[nn.Module] = []
        self.widest = chance.choice([64, 128, 256, 512, 1024, 2048])

    def fits(self, macs_per_position: float, size: int | None = None) -> bool:
        """Whether a convolution with so many multiply-adds at each position is small enough."""
        return self.batch * (size or self.size) ** 2 * macs_per_position <= _MOST_MACS

    def wide(self, kernel: int, stride: int = 1) -> int:
        """A number of output channels that keeps a convolution small enough."""
        width, size = _width(self.chance, 8, self.widest), -(-self.size // stride)
        while width > 8 and not self.fits(width * self.channels * kernel, size):
            width = max(8, width // 2)
        return width

    def conv(self, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> None:
        bias = self.chance.random() < 0.5
        self.layers.append(
            nn.Conv2d(self.channels, out, kernel, stride, kernel // 2, groups=groups, bias=bias)
        )
        self.channels, self.size = out, -(-self.size // stride)
        if self.chance.random() < 0.65:
            self.layers.append(self._norm())
        if self.chance.random() < 0.75:
            self.layers.append(_activation(self.chance))

    def _norm(self) -> nn.Module:
        drawn = self.chance.random()
        if drawn < 0.75:
            return nn.BatchNorm2d(self.channels)
        if drawn < 0.9:
            groups = next(g for g in (8, 4, 2, 1) if self.channels % g == 0)
            return nn.GroupNorm(groups, self.channels)
        return ChannelNorm(self.channels)

    def stride(self) -> int:
        return 2 if self.size > 3 and self.chance.random() < 0.3 else 1


def _plain(net: _Images) -> None:
    kernel = net.chance.choice([3, 3, 3, 5, 7] if net.size >= 7 else [1, 3, 3])
    stride = net.stride()
    net.conv(net.wide(kernel**2, stride), kernel, stride)


def _pointwise(net: _Images) -> None:
    net.conv(net.wide(1), 1)


def _depthwise(net: _Images) -> None:
    net.conv(net.channels, net.chance.choice([3, 3, 5, 7]), net.stride(), groups=net.channels)


def _grouped(net: _Images) -> None:
    possible = [g for g in (2, 4, 8, 16, 32) if net.channels % g == 0 and net.channels > g]
    if possible:
        groups = net.chance.choice(possible)
        net.conv(max(groups, net.wide(9) // groups * groups), 3, net.stride(), groups)


def _pool(net: _Images) -> None:
    if net.size >= 4:
        halves = net.chance.random() < 0.6
        kernel, stride = (2, 2) if halves else (3, 1)
        kind = net.chance.choice([nn.MaxPool2d, nn.AvgPool2d])
        net.layers.append(kind(kernel, stride, 0 if halves else 1))
        net.size = net.size // 2 if halves else net.size


def _residual(net: _Images) -> None:
    channels = net.channels
    if net.fits(9 * channels**2):
        body = [*_conv_norm(channels, channels, 3), nn.ReLU(), *_conv_norm(channels, channels, 3)]
        net.layers += [Residual(nn.Sequential(*body)), _activation(net.chance)]


def _bottleneck(net: _Images) -> None:
    channels, inner = net.channels, max(8, net.channels // 4)
    if net.fits(max(9 * inner**2, channels * inner)):
        body = [*_conv_norm(channels, inner, 1), nn.ReLU(), *_conv_norm(inner, inner, 3), nn.ReLU()]
        net.layers += [Residual(nn.Sequential(*body, *_conv_norm(inner, channels, 1))), nn.ReLU()]


def _inverted(net: _Images) -> None:
    channels, wide = net.channels, net.channels * net.chance.choice([3, 4, 6])
    if wide <= 2048 and net.fits(channels * wide):
        kernel = net.chance.choice([3, 5])
        body = [
            *_conv_norm(channels, wide, 1),
            _activation(net.chance),
            *_conv_norm(wide, wide, kernel, groups=wide),
            _activation(net.chance),
        ]
        if net.chance.random() < 0.4:
            body.append(SqueezeExcite(wide, max(4, channels // 4), _activation(net.chance)))
        net.layers.append(Residual(nn.Sequential(*body, *_conv_norm(wide, channels, 1))))


def _squeeze(net: _Images) -> None:
    inner = max(4, net.channels // net.chance.choice([4, 8, 16]))
    net.layers.append(SqueezeExcite(net.channels, inner, _activation(net.chance)))


def _branches(net: _Images) -> None:
    width = max(8, net.wide(9) // 2)
    net.layers.append(
        Concatenated(
            nn.Conv2d(net.channels, width, 1), nn.Conv2d(net.channels, width, 3, padding=1)
        )
    )
    net.channels = 2 * width


def _asymmetric(net: _Images) -> None:
    width = net.wide(5)
    net.layers.append(nn.Conv2d(net.channels, width, (1, 5), padding=(0, 2)))
    net.channels = width
    if net.fits(5 * width**2):
        net.layers.append(nn.Conv2d(width, width, (5, 1), padding=(2, 0)))


def _next(net: _Images) -> None:
    if 8 <= net.channels <= 512 and net.fits(4 * net.channels**2):
        net.layers.append(ConvNextBlock(net.channels, net.chance.choice([2, 4])))


def _patches(net: _Images) -> None:
    if net.size >= 16:
        edge, width = net.chance.choice([2, 4, 8]), _width(net.chance, 16, 384)
        net.layers.append(nn.Conv2d(net.channels, width, edge, edge))
        net.channels, net.size = width, net.size // edge


def _upsampled(net: _Images) -> None:
    if net.size <= 16 and net.batch * net.channels * net.size**2 < 5e5:
        net.layers.append(Upsampled())
        net.size *= 2


def _padded(net: _Images) -> None:
    if net.size > 3:
        net.layers += [
            Padded(),
            nn.Conv2d(net.channels, net.channels, 3, groups=net.channels),
        ]
        net.size -= 1


def _conv_norm(inputs: int, outputs: int, kernel: int, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]


_BLOCKS: Mapping[Callable[[_Images], None], int] = {
    _plain: 22,
    _pointwise: 14,
    _depthwise: 12,
    _residual: 8,
    _inverted: 8,
    _pool: 7,
    _grouped: 5,
    _bottleneck: 5,
    _squeeze: 5,
    _branches: 4,
    _next: 4,
    _asymmetric: 3,
    _patches: 3,
    _upsampled: 2,
    _padded: 2,
}


def _images(name: str, chance: random.Random) -> Example:
    """Any resolution, and few channels at first."""
    size, batch = _log_uniform(chance, 8, 128), _log_uniform(chance, 2, 32)
    while batch * size**2 > 32 * 56**2:
        batch, size = max(2, batch // 2), max(8, size * 3 // 4)
    net = _Images(chance, batch, chance.choice([1, 3, 3, 3, 16, 32, 64]), size)
    return _convolutional(name, net, chance.randint(5, 12))


def _late(name: str, chance: random.Random) -> Example:
    """As the last stages of large networks: many channels, few positions."""
    size, batch = chance.choice([1, 2, 2, 3, 4, 4, 6, 8]), _log_uniform(chance, 2, 16)
    net = _Images(chance, batch, _width(chance, 96, 1024), size)
    net.widest = 2048
    return _convolutional(name, net, chance.randint(4, 9))


def _deep(name: str, chance: random.Random) -> Example:
    """Many equal blocks, many buffers to update."""
    size = chance.choice([16, 32])
    net = _Images(chance, _log_uniform(chance, 2, 8), 3, size)
    net.conv(chance.choice([16, 24, 32, 48]))
    blocks = [_residual, _inverted, _bottleneck]
    for number in range(chance.randint(8, 16)):
        if number % 4 == 3:
            net.conv(min(2 * net.channels, 512), 3, 2 if net.size > 3 else 1)
        chance.choice(blocks)(net)
    return _headed(name, net, net.batch, 3, size)


def _convolutional(name: str, net: _Images, n_blocks: int) -> Example:
    channels, size = net.channels, net.size
    for _ in range(n_blocks):
        (block,) = net.chance.choices(list(_BLOCKS), list(_BLOCKS.values()))
        block(net)
    return _headed(name, net, net.batch, channels, size)


def _headed(name: str, net: _Images, batch: int, channels: int, size: int) -> Example:
    chance, width = net.chance, net.channels
    head: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if chance.random() < 0.35:
        hidden = _width(chance, 16, 1280)
        head += [nn.Linear(width, hidden), _activation(chance)]
        width = hidden
    outputs = chance.choice([2, 10, 10, 100, 1000])
    model = nn.Sequential(*net.layers, *head, nn.Linear(width, outputs))
    return _example(name, model, torch.randn(batch, channels, size, size), outputs, chance)


def _example(
    name: str, model: nn.Module, inputs: torch.Tensor, outputs: int, chance: random.Random
) -> Example:
    """With labels, or now and then with numbers to be met."""
    n_samples = len(inputs)
    if chance.random() < 0.2:
        return Example(name, model, inputs, torch.randn(n_samples, outputs), functional.mse_loss)
    labels = torch.zeros(n_samples, dtype=torch.long)
    return Example(name, model, inputs, labels, functional.cross_entropy)


def _perceptron(name: str, chance: random.Random) -> Example:
    batch, inputs = _log_uniform(chance, 2, 128), _width(chance, 8, 2048)
    layers: list[nn.Module] = []
    width = inputs
    for _ in range(chance.randint(4, 10)):
        out = _width(chance, 8, 2048)
        layers.append(nn.Linear(width, out, bias=chance.random() < 0.8))
        width = out
        if chance.random() < 0.35:
            layers.append(chance.choice([nn.LayerNorm, nn.BatchNorm1d])(width))
        if chance.random() < 0.8:
            layers.append(_activation(chance))
        if chance.random() < 0.15:
            layers.append(nn.Dropout(0.1))
    outputs = _width(chance, 2, 1024)
    model = nn.Sequential(*layers, nn.Linear(width, outputs))
    return _example(name, model, torch.randn(batch, inputs), outputs, chance)


def _tokens(name: str, chance: random.Random) -> Example:
    heads = chance.choice([1, 2, 3, 4, 6, 8])
    width = heads * chance.choice([16, 32, 64])
    batch, length = _log_uniform(chance, 2, 16), _log_uniform(chance, 8, 160)
    while batch * length > 1500:
        batch, length = max(2, batch // 2), length * 3 // 4
    vocabulary = _log_uniform(chance, 32, 8000)
    while batch * length * vocabulary * width > 2 * _MOST_MACS:
        vocabulary = vocabulary // 2 + 16
    causal, dropout = chance.random() < 0.5, chance.choice([0.0, 0.0, 0.1])
    blocks: list[nn.Module] = []
    for _ in range(chance.randint(1, 3)):
        inner = int(width * chance.choice([1, 2, 3, 4]))
        attention = [nn.LayerNorm(width), Attention(width, heads, causal=causal)]
        perceptron = [nn.LayerNorm(width), nn.Linear(width, inner), _activation(chance)]
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
    batch, length = _log_uniform(chance, 2, 32), _log_uniform(chance, 16, 128)
    channels = _log_uniform(chance, 1, 64)
    inputs, classes = torch.randn(batch, channels, length), 6
    if chance.random() < 0.4:
        hidden = _width(chance, 16, 256)
        kind = nn.LSTM if chance.random() < 0.6 else nn.GRU
        layers = kind(channels, hidden, num_layers=chance.choice([1, 1, 2]), batch_first=True)
        return _example(name, LastStep(layers, hidden, classes), inputs, classes, chance)
    width, convolutions = channels, list[nn.Module]()
    for _ in range(chance.randint(3, 7)):
        out, kernel = _width(chance, 8, 256), chance.choice([3, 5, 7, 9])
        stride = chance.choice([1, 1, 2])
        convolutions.append(nn.Conv1d(width, out, kernel, stride, kernel // 2))
        width = out
        if chance.random() < 0.6:
            convolutions.append(nn.BatchNorm1d(width))
        convolutions.append(_activation(chance))
    model = nn.Sequential(
        *convolutions, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, classes)
    )
    return _example(name, model, inputs, classes, chance)


def next_token_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


SORTS: Mapping[str, Callable[[str, random.Random], Example]] = {
    "images": _images,
    "late": _late,
    "deep": _deep,
    "perceptron": _perceptron,
    "tokens": _tokens,
    "series": _series,
}
