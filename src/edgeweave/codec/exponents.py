"""A power of two for each block, in one byte: what ``blockfloat`` and ``truncate`` scale by.

byte       power
0 to 254   2 ** (byte - 127)
255        none: the block travels raw
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeweave.codec.packing import Bytes
from edgeweave.codec.quantiser import LARGEST, extremes
from edgeweave.codec.rounding import Floats

__all__ = ["SCALE", "inverse_powers", "least", "missing", "powers"]

SCALE = np.dtype(np.uint8)

_NONE = 255
_BIAS = 127
_LEAST = -126


def least(rows: Floats, top: np.float32) -> Bytes:
    """The least power, from ``2**-126``, with all of a row within ``top`` times it."""
    lowest, highest = extremes(rows)
    largest = np.maximum(highest, -lowest)
    missing_ = ~(largest < LARGEST)
    largest[missing_] = 0
    # Compared as fractions of powers of two, so that no rounding lets a value exceed the top.
    fraction, exponent = np.frexp(largest)
    top_fraction, top_exponent = np.frexp(top)
    exponent += fraction > top_fraction
    exponent -= top_exponent
    scales = (np.maximum(exponent, _LEAST) + _BIAS).astype(np.uint8)
    scales[missing_] = _NONE
    return scales


def missing(scales: Bytes) -> NDArray[np.bool_]:
    """Which blocks have no power and travel raw."""
    found: NDArray[np.bool_] = scales == _NONE
    return found


def powers(scales: Bytes) -> Floats:
    """The powers of two; 1 for a block that has none."""
    return np.ldexp(np.float32(1), _exponents(scales))


def inverse_powers(scales: Bytes) -> Floats:
    """One over ``powers``."""
    return np.ldexp(np.float32(1), -_exponents(scales))


def _exponents(scales: Bytes) -> NDArray[np.int32]:
    return np.where(missing(scales), 0, scales.astype(np.int32) - _BIAS)
