"""Random deep networks of one style each: convolutional trunks in stages, transformer encoders.

What an operator takes depends on how much runs around it; here that is as in networks people train.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.latency.blocks import (
    Attention,
    ConvNextBlock,
    HandWrittenGelu,
    Patches,
    Residual,
    SamePadded,
    SeparateAttention,
    SqueezeExcite,
    Tokens,
)
from benchmarks.latency.drawing import (
    MOST_MACS,
    Example,
    example_of,
    log_uniform,
    next_token_loss,
    width_of,
)

__all__ = ["encoder", "padded", "trunk", "wide"]

Activation = Callable[[], nn.Module]
Block = Callable[["_Style", int, int, int], nn.Module]

_N_BLOCKS = 12
_MOST_BYTES = 6e6
"""Of all activations of an image in a stage, in a layer."""


@dataclass(frozen=True, slots=True)
class _Stem:
    """What a trunk begins with: so wide, and of so many positions along each side."""

    layers: list[nn.Module]
    shape: tuple[int, int, int, int]
    width: int
    positions: int


class _Style:
    """What the blocks of one trunk have in common."""

    pads: int | None = None
    """The least stride that has its padding as an operator of its own, as TensorFlow's layers have
    it: a convolution then sees more positions than it makes.
    """

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.activation: Activation = chance.choice(
            [nn.ReLU, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU, nn.LeakyReLU]
        )
        self.expansion = chance.choice([2, 3, 4, 6])
        self.kernel = chance.choice([3, 3, 3, 5])
        self.excites = chance.random() < 0.5
        self.normalises = chance.random() < 0.85
        self.group_width = chance.choice([0, 0, 0, 8, 16])

    def conv(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> list[nn.Module]:
        bias = not self.normalises
        before: list[nn.Module] = []
        padding = kernel // 2
        if self.pads is not None and stride >= self.pads:
            before, padding = [SamePadded(kernel, stride)], 0
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=bias)
        return [*before, conv, *([nn.BatchNorm2d(outputs)] if self.normalises else [])]

    def added(self, body: list[nn.Module], inputs: int, outputs: int, stride: int) -> nn.Module:
        """With what came in, brought to the size of what comes out."""
        alike = inputs == outputs and stride == 1
        beside = None if alike else nn.Sequential(*self.conv(inputs, outputs, 1, stride))
        return Residual(nn.Sequential(*body), beside)


def _plain(style: _Style, inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(*style.conv(inputs, outputs, style.kernel, stride), style.activation())


def _basic(style: _Style, inputs: int, outputs: int, stride: int) -> nn.Module:
    body = [*style.conv(inputs, outputs, 3, stride), style.activation()]
    body += style.conv(outputs, outputs, 3)
    return nn.Sequential(style.added(body, inputs, outputs, stride), style.activation())


def _bottleneck(style: _Style, inputs: int, outputs: int, stride: int) -> nn.Module:
    inner = max(8, outputs // 4)
    groups = inner // style.group_width if style.group_width and inner % 16 == 0 else 1
    body = [
        *style.conv(inputs, inner, 1),
        style.activation(),
        *style.conv(inner, inner, 3, stride, groups),
        style.activation(),
        *style.conv(inner, outputs, 1),
    ]
    return nn.Sequential(style.added(body, inputs, outputs, stride), style.activation())


def _inverted(style: _Style, inputs: int, outputs: int, stride: int) -> nn.Module:
    wide = inputs * style.expansion
    body = [*style.conv(inputs, wide, 1), style.activation()]
    body += [*style.conv(wide, wide, style.kernel, stride, wide), style.activation()]
    if style.excites:
        body.append(SqueezeExcite(wide, max(4, inputs // 4), style.activation()))
    body += style.conv(wide, outputs, 1)
    return Residual(nn.Sequential(*body)) if inputs == outputs and stride == 1 else _run(body)


def _separable(style: _Style, inputs: int, outputs: int, stride: int) -> nn.Module:
    body = [*style.conv(inputs, inputs, 3, stride, inputs), style.activation()]
    return _run([*body, *style.conv(inputs, outputs, 1), style.activation()])


def _next(style: _Style, inputs: int, outputs: int, stride: int) -> nn.Module:
    block = ConvNextBlock(outputs, min(style.expansion, 4))
    if inputs == outputs and stride == 1:
        return block
    return _run([nn.Conv2d(inputs, outputs, stride, stride), block])


def _run(layers: list[nn.Module]) -> nn.Module:
    return nn.Sequential(*layers)


_BLOCKS: Sequence[Block] = (_plain, _basic, _bottleneck, _inverted, _inverted, _separable, _next)
_PADDED_BLOCKS: Sequence[Block] = (_inverted, _inverted, _inverted, _separable, _separable, _plain)
_WIDE_BLOCKS: Sequence[Block] = (_bottleneck, _bottleneck, _basic, _inverted, _separable, _next)


def trunk(name: str, chance: random.Random) -> Example:
    """A stem, stages that halve the resolution and widen, a head."""
    return _trunk(name, _Style(chance), chance.choice(_BLOCKS))


def padded(name: str, chance: random.Random) -> Example:
    """A trunk as ported from TensorFlow: all of it or strided convolutions pad beforehand."""
    style = _Style(chance)
    style.pads = chance.choice([1, 1, 2])
    return _trunk(name, style, chance.choice(_PADDED_BLOCKS))


def wide(name: str, chance: random.Random) -> Example:
    """The last stages of a wide trunk: up to 2048 channels on few positions."""
    style, block = _Style(chance), chance.choice(_WIDE_BLOCKS)
    size, batch = chance.choice([1, 2, 3, 4, 6, 8]), log_uniform(chance, 2, 8)
    width = width_of(chance, 128, 1024)
    while not _fits(block, style, batch, size, width, 2 * width):
        width, batch = max(128, width * 3 // 4), max(2, batch // 2)
        size = max(1, size * 3 // 4)
    stem = _Stem([nn.Conv2d(width, width, 1)], (batch, width, size, size), width, size)
    return _finished(name, style, block, stem, 2048)


def _trunk(name: str, style: _Style, block: Block) -> Example:
    chance = style.chance
    size, batch = chance.choice([24, 28, 32, 32, 48, 64, 64, 96]), log_uniform(chance, 2, 8)
    width, edge = width_of(chance, 16, 64), chance.choice([1, 1, 2, 2, 4])
    while batch * (size // edge) ** 2 * width * 4 > _MOST_BYTES / 6:
        edge *= 2
    channels = chance.choice([1, 3, 3, 3])
    kernel = edge if edge > 1 and block is _next else chance.choice([3, 3, 5, 7])
    padding = 0 if kernel == edge else kernel // 2
    layers: list[nn.Module] = [nn.Conv2d(channels, width, kernel, edge, padding)]
    if style.pads is not None:
        layers = [SamePadded(kernel, edge), nn.Conv2d(channels, width, kernel, edge)]
    layers += [nn.BatchNorm2d(width), style.activation()] if style.normalises else []
    most = chance.choice([256, 512, 1024])
    stem = _Stem(layers, (batch, channels, size, size), width, max(size // edge, 1))
    return _finished(name, style, block, stem, most)


def _finished(name: str, style: _Style, block: Block, stem: _Stem, most: int) -> Example:
    """Behind a stem, stages of at most ``most`` channels, and a head."""
    chance, layers, left = style.chance, stem.layers, _N_BLOCKS
    batch, width, positions = stem.shape[0], stem.width, stem.positions
    while left > 0 and positions >= 1:
        out = min(most, max(8, int(width * chance.choice([1.0, 1.5, 2.0])) // 8 * 8))
        stride = 2 if positions > 2 and chance.random() < 0.8 else 1
        for number in range(min(left, chance.randint(1, 4))):
            into, by = (width, stride) if number == 0 else (out, 1)
            if not _fits(block, style, batch, positions, into, out):
                left = 0
                break
            layers.append(block(style, into, out, by))
            width, positions, left = out, max(positions // by, 1), left - 1
    head: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    head += [nn.Dropout(0.2)] if chance.random() < 0.3 else []
    outputs = chance.choice([2, 10, 10, 100, 1000])
    model = nn.Sequential(*layers, *head, nn.Linear(width, outputs))
    return example_of(name, model, torch.randn(*stem.shape), outputs, chance)


def _fits(
    block: Block, style: _Style, batch: int, positions: int, inputs: int, outputs: int
) -> bool:
    """Whether the dearest convolution of a block is small enough."""
    macs_per_position: dict[Block, int] = {
        _plain: style.kernel**2 * inputs * outputs,
        _basic: 9 * outputs**2,
        _bottleneck: max(inputs * outputs, 9 * (outputs // 4) ** 2),
        _inverted: style.expansion * inputs * max(inputs, outputs),
        _separable: inputs * outputs,
        _next: 4 * outputs**2,
    }
    return batch * positions**2 * macs_per_position[block] <= MOST_MACS


def encoder(name: str, chance: random.Random) -> Example:
    """A transformer on words or on patches of images."""
    heads, size = chance.choice([1, 2, 3, 4, 6, 8]), chance.choice([16, 32, 64])
    while heads * size > 320:
        heads = heads // 2
    width, batch = heads * size, log_uniform(chance, 2, 8)
    attention = chance.choice([Attention, SeparateAttention])
    gelu: Activation = chance.choice([nn.GELU, HandWrittenGelu, nn.ReLU, nn.SiLU])
    inner, causal = width * chance.choice([2, 4, 4]), chance.random() < 0.4
    dropout: list[nn.Module] = [nn.Dropout(0.1)] if chance.random() < 0.4 else []
    blocks: list[nn.Module] = []
    for _ in range(chance.randint(2, 5)):
        mixing = [nn.LayerNorm(width), attention(width, heads, causal=causal), *dropout]
        wide = [nn.LayerNorm(width), nn.Linear(width, inner), gelu(), nn.Linear(inner, width)]
        blocks += [Residual(_run(mixing)), Residual(_run([*wide, *dropout]))]
    if chance.random() < 0.5:
        edge, side = chance.choice([4, 8]), chance.choice([4, 6, 8, 10])
        patches = Patches(3, width, blocks, 10, edge=edge, n_patches=side**2)
        inputs = torch.randn(batch, 3, edge * side, edge * side)
        return example_of(name, patches, inputs, 10, chance)
    length, vocabulary = log_uniform(chance, 8, 96), log_uniform(chance, 64, 2000)
    tokens = Tokens(vocabulary, width, blocks, vocabulary, positions=128, pools=False)
    words = torch.zeros(batch, length, dtype=torch.long)
    return Example(name, tokens, words, words.clone(), next_token_loss)
