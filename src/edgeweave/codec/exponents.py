"""A power of two for each block, in one byte: what ``blockfloat`` and ``truncate`` scale by.

byte       power
1 to 254   2 ** (byte - 127): the exponent of a float32, as it is stored there
0          0
255        none: the block travels raw
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeweave.codec.packing import Bytes
from edgeweave.codec.quantiser import LARGEST
from edgeweave.codec.rounding import Floats
from edgeweave.core.errors import WireError

__all__ = ["SCALE", "inverse_powers", "least", "missing", "powers"]

SCALE = np.dtype(np.uint8)

_NONE = 255
_MOST = 254
_BIAS = 127
_LEAST = -126
_MANTISSA_BITS = 23


def least(lowest: Floats, highest: Floats, top: np.float32) -> Bytes:
    """The least power, from ``2**-126``, with all of a block within ``top`` times it."""
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


def missing(scales: Bytes, top: np.float32) -> NDArray[np.bool_]:
    """Which blocks have no power; ``WireError`` if a power is more than ``least`` gives."""
    found: NDArray[np.bool_] = scales == _NONE
    if (scales[~found] > _MOST - np.frexp(top)[1]).any():
        raise WireError("the power of two of a block keeps all its values below 2**127.")
    return found


def powers(scales: Bytes) -> Floats:
    """The powers of two; 0 for a block that has none."""
    return _floats(np.where(scales == _NONE, 0, scales))


def inverse_powers(scales: Bytes) -> Floats:
    """One over the powers that ``least`` makes; 0 for a block that has none."""
    return _floats(_MOST - np.minimum(scales, _MOST))


def _floats(exponents: Bytes) -> Floats:
    """With these exponents, as stored, and no mantissa."""
    return (exponents.astype(np.int32) << _MANTISSA_BITS).view(np.float32)
