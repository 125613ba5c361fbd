"""Models beside the zoo that training tests need, and how many units each is cut into."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import nn

from edgeweave.program import capture
from tests.models import ZOO, Example, accuracy, cross_entropy, mlp


class SmallCNN(nn.Module):
    """Convolutions, BatchNorm with running statistics, a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(6)
        self.classify = nn.Linear(6 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(x + self.norm2(self.conv2(x)))
        return self.classify(F.max_pool2d(x, 2).flatten(1))


class TiedLM(nn.Module):
    """A small language model whose embedding is its last layer too; ``tie=False`` parts them."""

    def __init__(self, *, tie: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 12)
        self.block1 = nn.Linear(12, 12)
        self.norm = nn.LayerNorm(12)
        self.block2 = nn.Linear(12, 12)
        self.head = nn.Linear(12, 40, bias=False)
        if tie:
            self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        x = x + F.gelu(self.block1(x))
        x = x + F.gelu(self.block2(self.norm(x)))
        return self.head(x)


def token_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def _labelled(*shape: int) -> object:
    return lambda n: (torch.randn(n, *shape), torch.randint(5, (n,)))


MLP = ZOO["mlp"]
UNET = ZOO["unet"]
CNN = Example("cnn", SmallCNN, cross_entropy, _labelled(1, 8, 8))
DROPOUT_MLP = Example("dropout", lambda: mlp(dropout=0.3), cross_entropy, MLP.sample)
TIED = Example(
    "tied",
    TiedLM,
    token_loss,
    lambda n: (torch.randint(40, (n, 6)), torch.randint(40, (n, 6))),
    tied={"head.weight": "embed.weight"},
)

__all__ = ["CNN", "DROPOUT_MLP", "MLP", "TIED", "UNET", "TiedLM", "accuracy", "n_units"]


def n_units(example: Example) -> int:
    """How many units a model has: boundaries of plans made by hand lie between them."""
    return _n_units(example.name)


@functools.cache
def _n_units(name: str) -> int:
    example = {**ZOO, **{own.name: own for own in (CNN, DROPOUT_MLP, TIED)}}[name]
    return len(capture(example.model(), example.loss, *example.batch(4)).program.unit_numbers)
