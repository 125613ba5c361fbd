"""Values as they are, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from edgeweave.codec.packing import Bytes
from edgeweave.codec.reader import Reader
from edgeweave.core.errors import WireError

__all__ = ["Raw", "encode"]

_BYTE = np.dtype(np.uint8)


def encode(values: torch.Tensor, out: Bytes) -> None:
    """Write flat ``values`` to ``out``."""
    out[:] = _bytes_of(values)


@dataclass(frozen=True, slots=True)
class Raw:
    """Values as they came, checked."""

    data: Bytes

    @classmethod
    def taken_from(cls, reader: Reader, n_values: int, dtype: torch.dtype) -> Raw:
        """Take all that is left; ``WireError`` if it is not exactly ``n_values`` of ``dtype``."""
        data = reader.take(n_values * dtype.itemsize, _BYTE)
        reader.expect_end()
        if dtype is torch.bool and data.max(initial=0) > 1:
            raise WireError("a bool is 0 or 1.")
        return cls(data)

    def write_to(self, out: torch.Tensor) -> None:
        """Fill flat values of the type they were checked for."""
        _bytes_of(out)[:] = self.data


def _bytes_of(values: torch.Tensor) -> Bytes:
    if not len(values):
        return np.empty(0, np.uint8)  # torch cannot view the memory of nothing
    viewed: Bytes = values.view(torch.uint8).numpy()
    return viewed
