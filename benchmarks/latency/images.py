"""Random convolutional networks, made of the blocks of known architectures."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import torch
from torch import nn

from benchmarks.latency.blocks import (
    ChannelNorm,
    Concatenated,
    ConvNextBlock,
    Padded,
    Residual,
    SamePadded,
    SqueezeExcite,
    Upsampled,
)
from benchmarks.latency.drawing import (
    MOST_MACS,
    Example,
    activation,
    example_of,
    log_uniform,
    width_of,
)

__all__ = ["deep", "heavy", "images", "late", "tiny"]


class _Images:
    """A convolutional network in the making: what comes out so far, and the layers that do it."""

    def __init__(self, chance: random.Random, batch: int, channels: int, size: int) -> None:
        self.chance, self.batch, self.channels, self.size = chance, batch, channels, size
        self.layers: list[nn.Module] = []
        self.widest = chance.choice([64, 128, 256, 512, 1024, 2048])

    def fits(self, macs_per_position: float, size: int | None = None) -> bool:
        """Whether a convolution with so many multiply-adds at each position is small enough."""
        return self.batch * (size or self.size) ** 2 * macs_per_position <= MOST_MACS

    def wide(self, kernel: int, stride: int = 1) -> int:
        """A number of output channels that keeps a convolution small enough."""
        width, size = width_of(self.chance, 8, self.widest), -(-self.size // stride)
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
            self.layers.append(activation(self.chance))

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


def _same(net: _Images) -> None:
    if net.fits(9 * net.channels**2):
        net.conv(net.channels)


def _pointwise(net: _Images) -> None:
    net.conv(net.wide(1), 1)


def _depthwise(net: _Images) -> None:
    net.conv(net.channels, net.chance.choice([3, 3, 5, 7]), net.stride(), groups=net.channels)


def _padded_depthwise(net: _Images) -> None:
    """Padded beforehand, as TensorFlow's layers are: nine positions are read to make one."""
    kernel, stride, channels = net.chance.choice([3, 3, 3, 5]), net.stride(), net.channels
    net.layers.append(SamePadded(kernel, stride))
    bias = net.chance.random() < 0.2
    net.layers.append(nn.Conv2d(channels, channels, kernel, stride, groups=channels, bias=bias))
    net.size = -(-net.size // stride)
    if net.chance.random() < 0.8:
        net.layers += [nn.BatchNorm2d(channels), activation(net.chance)]


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
        net.layers += [Residual(nn.Sequential(*body)), activation(net.chance)]


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
            activation(net.chance),
            *_conv_norm(wide, wide, kernel, groups=wide),
            activation(net.chance),
        ]
        if net.chance.random() < 0.4:
            body.append(SqueezeExcite(wide, max(4, channels // 4), activation(net.chance)))
        net.layers.append(Residual(nn.Sequential(*body, *_conv_norm(wide, channels, 1))))


def _squeeze(net: _Images) -> None:
    inner = max(4, net.channels // net.chance.choice([4, 8, 16]))
    net.layers.append(SqueezeExcite(net.channels, inner, activation(net.chance)))


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
        edge, width = net.chance.choice([2, 4, 8]), width_of(net.chance, 16, 384)
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


def images(name: str, chance: random.Random) -> Example:
    """Any resolution, and few channels at first."""
    size, batch = log_uniform(chance, 8, 128), log_uniform(chance, 2, 32)
    while batch * size**2 > 32 * 56**2:
        batch, size = max(2, batch // 2), max(8, size * 3 // 4)
    net = _Images(chance, batch, chance.choice([1, 3, 3, 3, 16, 32, 64]), size)
    return _convolutional(name, net, chance.randint(5, 12))


def late(name: str, chance: random.Random) -> Example:
    """As the last stages of large networks: many channels, few positions."""
    size, batch = chance.choice([1, 2, 2, 3, 4, 4, 6, 8]), log_uniform(chance, 2, 16)
    net = _Images(chance, batch, width_of(chance, 96, 1024), size)
    net.widest = 2048
    return _convolutional(name, net, chance.randint(4, 9))


def heavy(name: str, chance: random.Random) -> Example:
    """As the very last stages: more weights than data."""
    size, batch = chance.choice([1, 1, 2, 2, 3, 4]), log_uniform(chance, 2, 8)
    net = _Images(chance, batch, width_of(chance, 192, 1024), size)
    net.widest, channels = 1024, net.channels
    net.conv(channels, 1)
    blocks = [_same, _same, _residual, _bottleneck, _pointwise, _inverted, _grouped]
    for _ in range(chance.randint(4, 8)):
        chance.choice(blocks)(net)
    return _headed(name, net, batch, channels, size)


def tiny(name: str, chance: random.Random) -> Example:
    """Depthwise convolutions, and what stands around them, on a handful of positions."""
    size, batch = chance.choice([1, 1, 2, 2, 2, 3, 4, 5]), log_uniform(chance, 2, 16)
    net = _Images(chance, batch, width_of(chance, 32, 320), size)
    channels = net.channels
    for _ in range(chance.randint(4, 7)):
        wide = width_of(chance, 64, 1280)
        while not net.fits(wide * net.channels):
            wide //= 2
        net.conv(wide, 1)
        chance.choice([_depthwise, _padded_depthwise, _padded_depthwise])(net)
        if chance.random() < 0.2:
            _squeeze(net)
    return _headed(name, net, batch, channels, size)


def deep(name: str, chance: random.Random) -> Example:
    """Many equal blocks, many buffers to update."""
    size = chance.choice([16, 32])
    net = _Images(chance, log_uniform(chance, 2, 8), 3, size)
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
        hidden = width_of(chance, 16, 1280)
        head += [nn.Linear(width, hidden), activation(chance)]
        width = hidden
    outputs = chance.choice([2, 10, 10, 100, 1000])
    model = nn.Sequential(*net.layers, *head, nn.Linear(width, outputs))
    return example_of(name, model, torch.randn(batch, channels, size, size), outputs, chance)
