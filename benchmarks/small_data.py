"""Digits, clothes and movements as tensors: data that small networks learn in seconds."""

from __future__ import annotations

import gzip
from functools import cache
from typing import Literal

import numpy as np
import torch

from benchmarks.data import DATA

__all__ = ["Part", "fashion_mnist", "mnist", "movements"]

Part = Literal["train", "test"]
_FILES = {"train": "train", "test": "t10k"}


def mnist(part: Part) -> tuple[torch.Tensor, torch.Tensor]:
    """Digits, 1 x 28 x 28, and labels."""
    return _images("mnist", part)


def fashion_mnist(part: Part) -> tuple[torch.Tensor, torch.Tensor]:
    """Clothes, 1 x 28 x 28, and labels."""
    return _images("fashion_mnist", part)


@cache
def _images(folder: str, part: Part) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = _idx(folder, f"{_FILES[part]}-images-idx3-ubyte.gz")
    labels = _idx(folder, f"{_FILES[part]}-labels-idx1-ubyte.gz")
    images = torch.from_numpy(pixels).float().div(255).sub(0.2).div(0.35)
    return images[:, None], torch.from_numpy(labels).long()


@cache
def movements(part: Part) -> tuple[torch.Tensor, torch.Tensor]:
    """UCI-HAR: windows of 9 channels x 128 samples, one of six activities; people differ."""
    with np.load(DATA / "uci_har" / "uci_har_f16.npz") as stored:
        chosen = stored["is_test"] == (part == "test")
        windows, labels = stored["X"][chosen].astype(np.float32), stored["y"][chosen]
    return torch.from_numpy(windows), torch.from_numpy(labels).long()


def _idx(folder: str, name: str) -> np.ndarray:
    """Bytes in the format of MNIST: a magic number with the rank, sizes, contents."""
    content = gzip.decompress((DATA / folder / name).read_bytes())
    rank = content[3]
    sizes = np.frombuffer(content, ">i4", rank, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(sizes).copy()
