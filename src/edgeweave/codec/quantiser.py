"""What the lossy codecs have in common: rows of values in, codes and a scale for each row out."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from edgeweave.codec.packing import Codes
from edgeweave.codec.rounding import Floats, Rounding

__all__ = ["LARGEST", "Quantiser", "Scales", "extremes"]

Scales = NDArray[Any]
"""What each block has beside its codes; the item type is the quantiser's."""

LARGEST = np.float32(2.0**126)
"""Blocks that reach it travel raw, so that no scale and no decoded value overflows."""


class Quantiser(Protocol):
    """Works on rows, each a block: scales for any number, the rest for ``GROUP`` values at most."""

    scale: np.dtype[Any]

    def scales(self, lowest: Floats, highest: Floats) -> Scales:
        """The scales of blocks with these extremes."""
        ...

    def quantise(self, rows: Floats, scales: Scales, rounding: Rounding, codes: Codes) -> None:
        """Fill ``codes``, which has the shape of ``rows``; where there is no scale, rows are 0."""
        ...

    def dequantise(self, codes: Codes, scales: Scales, out: Floats) -> None:
        """Fill rows from their codes and scales, with anything where there is no scale."""
        ...

    def without_scale(self, scales: Scales) -> NDArray[np.bool_]:
        """Which blocks travel raw; ``WireError`` if a scale is none that ``scales`` makes."""
        ...


def extremes(rows: Floats) -> tuple[Floats, Floats]:
    """The lowest and the highest value of each row; NaN where it has one."""
    values = torch.from_numpy(rows)
    return torch.amin(values, 1).numpy(), torch.amax(values, 1).numpy()
