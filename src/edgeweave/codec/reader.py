"""A coded tensor taken apart: refused where it ends too soon or too late, and what was in it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from edgeweave.core.errors import WireError

__all__ = ["Body", "Reader"]


class Body(Protocol):
    """Values that were taken and checked, and are not yet a tensor."""

    def write_to(self, out: torch.Tensor) -> None:
        """Fill a flat tensor of their number and type."""
        ...


class Reader:
    """What is left of ``data`` behind its first ``start`` bytes."""

    def __init__(self, data: memoryview, start: int) -> None:
        self._data = data
        self._at = start

    @property
    def n_left(self) -> int:
        """How many bytes were not taken yet."""
        return len(self._data) - self._at

    def take(self, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """View the next ``count`` items where they are."""
        n_bytes = count * dtype.itemsize
        if n_bytes > self.n_left:
            raise WireError(
                f"a coded tensor is as long as its header says (at byte {self._at} it needs "
                f"{n_bytes} more bytes and has {self.n_left})."
            )
        found = np.frombuffer(self._data, dtype, count, self._at) if count else np.empty(0, dtype)
        self._at += n_bytes
        return found

    def expect_end(self) -> None:
        """Refuse bytes that nothing asked for."""
        if self.n_left:
            raise WireError(
                f"a coded tensor is as long as its header says ({self.n_left} bytes too many)."
            )
