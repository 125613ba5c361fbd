"""Data sets that do something in the middle of a run, on the thread that reads ahead of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import TensorDataset


class Interrupted:
    """The same samples; ``act`` is called when batch ``at`` is read, the one that shows included.

    Reading is at most three batches ahead of training.
    """

    def __init__(self, data: TensorDataset, *, at: int, act: Callable[[], None]) -> None:
        self._data = data
        self._at = at
        self._act = act
        self._n_read = 0

    def __len__(self) -> int:
        return len(self._data)

    def batch(self, indices: torch.Tensor) -> Any:
        self._n_read += 1
        if self._n_read == self._at:
            self._act()
        return self._data[indices]


class Stop(Exception):
    """The coordinator is interrupted here."""


def stop() -> None:
    """An act that ends a run."""
    raise Stop
