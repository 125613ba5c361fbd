"""Where data lie that are no part of the checkout, and two of them as tensors."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch

__all__ = ["DATA", "cifar10", "shakespeare"]

DATA = Path(
    os.environ.get("EDGEWEAVE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)
"""Beside the project, or where EDGEWEAVE_DATA says."""


@cache
def cifar10(
    part: Literal["train", "test"], n_images: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images as the data's README decodes them, from -2 to 2, and labels; all or the first ones."""
    with np.load(DATA / "cifar10" / f"cifar10_{part}.npz") as stored:
        rows = np.cumsum(stored["residual"][:n_images], 3, dtype=np.uint8)
        pixels = np.cumsum(rows, 2, dtype=np.uint8)
        labels = stored["labels"][:n_images]
    pixels[:, 0] += pixels[:, 1]
    pixels[:, 2] += pixels[:, 1]
    images = torch.from_numpy(pixels).float() / 64 - 2
    return images, torch.from_numpy(labels).long()


@cache
def shakespeare() -> torch.Tensor:
    """The whole text, each character as its place among those that occur (65)."""
    text = (DATA / "tinyshakespeare" / "input.txt").read_bytes()
    _, places = np.unique(np.frombuffer(text, np.uint8), return_inverse=True)
    return torch.from_numpy(places).long()
