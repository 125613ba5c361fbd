"""Slices with nothing lost compute what the unsplit model computes, and their parts make a whole.

Sums over slices add up in another order: losses agree to 1e-5, gradients to 1e-4 of their scale.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.models import ZOO, cross_entropy
from tests.program.sliced import captured_of, compare

BATCH = 6


def zoo(name: str):  # type: ignore[no-untyped-def]
    example = ZOO[name]
    batch = example.batch(BATCH)
    return captured_of(example.model(), example.loss, batch), batch


class ResNetBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.classify = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.classify(F.relu(x + y).mean((2, 3)))


class MobileBlock(nn.Module):
    """An inverted residual: pointwise, depthwise, pointwise; then a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 12, 1, bias=False),
            nn.BatchNorm2d(12),
            nn.Conv2d(12, 12, 3, padding=1, groups=4),
            nn.Hardswish(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 5),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class SmallTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.places = nn.Parameter(torch.randn(1, 7, 16) * 0.1)
        self.norm = nn.LayerNorm(16)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.out = nn.Linear(16, 16)
        self.norm2 = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.classify = nn.Linear(16, 5)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(x.shape[0], 7, 4, 4).transpose(1, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens) + self.places
        y = self.norm(x)
        parts = (self.heads(layer(y)) for layer in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(*parts)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape[0], 7, 16))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.classify(x.mean(1))


IMAGES = (torch.randn(BATCH, 3, 8, 8), torch.randint(5, (BATCH,)))
TOKENS = (torch.randint(50, (BATCH, 7)), torch.randint(5, (BATCH,)))


@pytest.mark.parametrize("mode", ["exchange", "grouped"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (3,), (2, 1), (2, 3)])
def test_a_sliced_mlp_computes_what_the_whole_does(sizes, mode) -> None:  # type: ignore[no-untyped-def]
    captured, batch = zoo("mlp")
    compare(captured, batch, sizes, mode)


@pytest.mark.parametrize("mode", ["exchange", "grouped"])
@pytest.mark.parametrize("sizes", [(3,), (2, 2), (2, 1, 3)])
def test_a_sliced_lenet_computes_what_the_whole_does(sizes, mode) -> None:  # type: ignore[no-untyped-def]
    captured, batch = zoo("lenet")
    compare(captured, batch, sizes, mode)


def test_more_devices_than_filters_leave_some_without() -> None:
    captured, batch = zoo("lenet")
    sliced = compare(captured, batch, (8,), "exchange")
    assert sliced.segments[0].programs[0] is None


@pytest.mark.parametrize(
    ("build", "batch", "sizes"),
    [
        (ResNetBlock, IMAGES, (3,)),
        (ResNetBlock, IMAGES, (2, 3)),
        (MobileBlock, IMAGES, (2,)),
        (MobileBlock, IMAGES, (3, 2)),
        (SmallTransformer, TOKENS, (3,)),
        (SmallTransformer, TOKENS, (2, 2)),
    ],
)
def test_blocks_of_known_networks_compute_what_the_whole_does(build, batch, sizes) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(1)
    compare(captured_of(build(), cross_entropy, batch), batch, sizes, "exchange")


@pytest.mark.parametrize("sizes", [(3,), (2, 3)])
def test_concatenated_skip_connections_compute_what_the_whole_does(sizes) -> None:  # type: ignore[no-untyped-def]
    captured, batch = zoo("unet")
    compare(captured, batch, sizes, "exchange")
