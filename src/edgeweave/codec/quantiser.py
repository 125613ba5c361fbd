"""What the lossy codecs have in common: rows of values in, levels and a scale for each row out."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from edgeweave.codec.packing import Codes
from edgeweave.codec.rounding import Floats, Ints, Rounding

__all__ = ["LARGEST", "Quantiser", "Scales", "extremes"]

Scales = NDArray[Any]
"""What each block has beside its codes; the item type is the quantiser's."""

LARGEST = np.float32(2.0**126)
"""Blocks that reach it travel raw, so that no scale and no decoded value overflows."""


class Quantiser(Protocol):
    """Works on rows, each a block, of at most ``GROUP`` values in all."""

    scale: np.dtype[Any]

    def quantise(self, rows: Floats, scales: Scales, rounding: Rounding) -> Floats | Ints:
        """What the codes are when cut to integers, valid until the next call; fills ``scales``."""
        ...

    def dequantise(self, codes: Codes, scales: Scales, out: Floats) -> None:
        """Fill rows from their codes and scales."""
        ...

    def without_scale(self, scales: Scales) -> NDArray[np.bool_]:
        """Which blocks travel raw; ``WireError`` if a scale is none that ``quantise`` makes."""
        ...


def extremes(rows: Floats) -> tuple[Floats, Floats]:
    """The lowest and the highest value of each row; NaN where it has one."""
    values = torch.from_numpy(rows)
    return torch.amin(values, 1).numpy(), torch.amax(values, 1).numpy()
