"""Activations and gradients as a cut sends them, from a small network trained on CIFAR-10."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.data import DATA, cifar10

__all__ = ["trained"]

_BATCH = 64
_N_IMAGES = 10_000
_LEARNING_RATE = 0.05


def trained(*, n_steps: int, seed: int) -> dict[str, torch.Tensor]:
    """What crosses two cuts of the network, there and back, in its last step; no images, nothing.

    One cut lies behind a ReLU, the other before one: there the gradient has the zeros.
    """
    if not DATA.exists():
        return {}
    torch.manual_seed(seed)
    images, labels = cifar10("train", _N_IMAGES)
    first, middle, last = _network()
    optimizer = torch.optim.SGD(
        nn.ModuleList([first, middle, last]).parameters(), lr=_LEARNING_RATE, momentum=0.9
    )
    for _ in range(n_steps):
        chosen = torch.randint(len(images), (_BATCH,))
        after = first(images[chosen])
        before = middle(after)
        after.retain_grad()
        before.retain_grad()
        loss = F.cross_entropy(last(before), labels[chosen])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    assert after.grad is not None
    assert before.grad is not None
    return {
        "activation behind ReLU": after.detach(),
        "its gradient": after.grad,
        "activation before ReLU": before.detach(),
        "its gradient, half zero": before.grad,
    }


def _network() -> tuple[nn.Sequential, nn.Sequential, nn.Sequential]:
    first = nn.Sequential(_block(3, 32, 1), nn.ReLU(), _block(32, 32, 2), nn.ReLU())
    middle = _block(32, 32, 1)
    last = nn.Sequential(
        nn.ReLU(),
        _block(32, 64, 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    return first, middle, last


def _block(n_in: int, n_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out))
