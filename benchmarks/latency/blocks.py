"""Blocks of known architectures, as modules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

__all__ = [
    "Attention",
    "ChannelNorm",
    "Concatenated",
    "ConvNextBlock",
    "HandWrittenGelu",
    "LastStep",
    "Logits",
    "Padded",
    "Patches",
    "Residual",
    "SamePadded",
    "SeparateAttention",
    "SqueezeExcite",
    "Tokens",
    "Upsampled",
]


class Residual(nn.Module):
    """``x + body(x)``, or ``beside(x) + body(x)``."""

    def __init__(self, body: nn.Module, beside: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.beside = body, beside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = x if self.beside is None else self.beside(x)
        return torch.as_tensor(kept + self.body(x))


class SqueezeExcite(nn.Module):
    """Channels weighted by what all positions together say."""

    def __init__(self, channels: int, inner: int, activation: nn.Module) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze = nn.Conv2d(channels, inner, 1)
        self.activation = activation
        self.excite = nn.Conv2d(inner, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.excite(self.activation(self.squeeze(self.pool(x))))
        return torch.as_tensor(x * torch.sigmoid(weights))


class ChannelNorm(nn.Module):
    """A layer norm over the channels of images."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class ConvNextBlock(nn.Module):
    """A wide depthwise convolution, then a perceptron at every position."""

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.wider = nn.Linear(channels, expansion * channels)
        self.narrower = nn.Linear(expansion * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrower(functional.gelu(self.wider(y)))
        return torch.as_tensor(x + y.permute(0, 3, 1, 2))


class Concatenated(nn.Module):
    """Branches side by side."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Padded(nn.Module):
    """A row and a column of zeros more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.pad(x, (0, 1, 0, 1))


class SamePadded(nn.Module):
    """Zeros around, as many as a convolution needs to make one position of ``stride`` positions."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        around = []
        for size in (x.shape[-1], x.shape[-2]):
            missing = max(self.kernel - (size % self.stride or self.stride), 0)
            around += [missing // 2, missing - missing // 2]
        return functional.pad(x, around)


class Upsampled(nn.Module):
    """Twice the resolution."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(x, scale_factor=2, mode="nearest")


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return torch.as_tensor(self.out(found.transpose(1, 2).reshape(batch, length, width)))


class SeparateAttention(nn.Module):
    """Multi-head self-attention with a matrix each for queries, keys and values."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        size = batch, length, self.heads, width // self.heads
        parts = [part(x).view(size).transpose(1, 2) for part in (self.query, self.key, self.value)]
        query, key, value = parts
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return torch.as_tensor(self.out(found.transpose(1, 2).reshape(batch, length, width)))


class HandWrittenGelu(nn.Module):
    """GELU by its approximation, operator by operator, as many models spell it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))
        return torch.as_tensor(0.5 * x * (1.0 + torch.tanh(inner)))


class Patches(nn.Module):
    """Images as tokens: patches, a token for the class, positions; blocks; the class token's
    outputs.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        blocks: Sequence[nn.Module],
        outputs: int,
        *,
        edge: int,
        n_patches: int,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, edge, edge)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + n_patches, width))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        first = self.first.expand(x.shape[0], -1, -1)
        y = torch.cat([first, tokens], 1) + self.positions
        return torch.as_tensor(self.out(self.norm(self.blocks(y))[:, 0]))


class Tokens(nn.Module):
    """Embeddings, blocks, and outputs for each token or for all together."""

    def __init__(
        self,
        vocabulary: int,
        width: int,
        blocks: Sequence[nn.Module],
        outputs: int,
        *,
        positions: int,
        pools: bool,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(positions, width) if positions else None
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, outputs, bias=pools)
        self.pools = pools

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.embedding(x)
        if self.positions is not None:
            y = y + self.positions(torch.arange(x.shape[1]))
        y = self.norm(self.blocks(y))
        return torch.as_tensor(self.out(y.mean(1) if self.pools else y))


class LastStep(nn.Module):
    """A recurrent layer over ``[batch, channels, time]``, and outputs from its last step."""

    def __init__(self, layers: nn.Module, hidden: int, outputs: int) -> None:
        super().__init__()
        self.layers = layers
        self.out = nn.Linear(hidden, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found, _ = self.layers(x.transpose(1, 2))
        return torch.as_tensor(self.out(found[:, -1]))


class Logits(nn.Module):
    """The logits of a model of ``transformers``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.model(x).logits)
