"""Activations and gradients as a cut sends them, from a small network trained on CIFAR-10."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.data import DATA

__all__ = ["trained"]

_IMAGES = DATA / "cifar10" / "cifar10_train.npz"
_BATCH = 64
_N_IMAGES = 10_000
_LEARNING_RATE = 0.05


def trained(*, n_steps: int, seed: int) -> dict[str, torch.Tensor]:
    """What crosses two cuts of the network, there and back, in its last step; no images, nothing.

    One cut lies behind a ReLU, the other before one: there the gradient has the zeros.
    """
    if not _IMAGES.exists():
        return {}
    torch.manual_seed(seed)
    images, labels = _cifar10()
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


def _cifar10() -> tuple[torch.Tensor, torch.Tensor]:
    """Images as the data's README decodes them, from -2 to 2, and labels."""
    with np.load(_IMAGES) as stored:
        rows = np.cumsum(stored["residual"][:_N_IMAGES], 3, dtype=np.uint8)
        pixels = np.cumsum(rows, 2, dtype=np.uint8)
        labels = stored["labels"][:_N_IMAGES]
    pixels[:, 0] += pixels[:, 1]
    pixels[:, 2] += pixels[:, 1]
    images = torch.from_numpy(pixels).float() / 64 - 2
    return images, torch.from_numpy(labels).long()
