"""``truncate``: floats of fewer bits, with a power of two that a block shares.

A small float of k exponent and m mantissa bits is cut out of a float32 with integer operations.
Scale a block so that its smallest normal number is 2. Then for a magnitude y

    g = y + max(y, 2)             2 * y if y >= 2: the next binade
                                  y + 2 if y < 2:  the binade [2, 4), evenly spaced
    code = bits(g) >> (23 - m)    in its lowest k + m bits, as bits(2.0) has none there

counts the small floats up to y, those below the smallest normal included. The sign goes on top.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from edgeweave.codec import exponents
from edgeweave.codec.packing import Codes
from edgeweave.codec.quantiser import Scales
from edgeweave.codec.rounding import GROUP, Floats, Rounding, shaped

__all__ = ["Truncate", "exponent_bits"]

_MANTISSA_BITS = 23
_MOST_EXPONENT_BITS = 5
_MAGNITUDE = 0x7FFFFFFF
_SMALLEST = np.float32(2)


def exponent_bits(bits: int) -> int:
    """How many of ``bits`` hold the exponent; one holds the sign, the others the mantissa.

    >>> [exponent_bits(bits) for bits in (2, 4, 8, 16)]
    [1, 2, 4, 5]
    """
    return min(_MOST_EXPONENT_BITS, (bits + 1) // 2)


class Truncate:
    """The ``Quantiser`` of ``truncate``."""

    scale = exponents.SCALE

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._shift = _shift(bits)
        self._top = _values(bits).max()
        self._memory = [np.empty(GROUP, np.float32) for _ in range(2)]

    def scales(self, lowest: Floats, highest: Floats) -> Scales:
        """See ``Quantiser``."""
        return exponents.least(lowest, highest, self._top)

    def quantise(self, rows: Floats, scales: Scales, rounding: Rounding, codes: Codes) -> None:
        """See ``Quantiser``."""
        y, g = (shaped(memory, rows) for memory in self._memory)
        np.multiply(rows, (_SMALLEST * exponents.inverse_powers(scales))[:, None], out=y)
        bits_of_y, bits_of_g = y.view(np.int32), g.view(np.int32)
        bits_of_y &= _MAGNITUDE
        np.maximum(y, _SMALLEST, out=g)
        g += y
        rounding.add_to_ints(bits_of_g, self._shift)
        bits_of_g >>= self._shift
        np.copyto(codes, bits_of_g, casting="unsafe")
        sign = 1 << (self._bits - 1)
        codes &= sign - 1
        codes |= (rows.view(np.int32) < 0).view(np.uint8) * codes.dtype.type(sign)

    def dequantise(self, codes: Codes, scales: Scales, out: Floats) -> None:
        """See ``Quantiser``."""
        np.take(_values(self._bits), codes, out=out, mode="clip")
        out *= exponents.powers(scales)[:, None]

    def without_scale(self, scales: Scales) -> NDArray[np.bool_]:
        """See ``Quantiser``."""
        return exponents.missing(scales, self._top)


def _shift(bits: int) -> int:
    """How many bits of a float32's mantissa go."""
    return _MANTISSA_BITS - (bits - 1 - exponent_bits(bits))


def _magnitudes(bits: int) -> Floats:
    """What each code without a sign means, where the smallest normal number is 2."""
    codes = np.arange(1 << (bits - 1), dtype=np.int32)
    g = ((codes << _shift(bits)) + _SMALLEST.view(np.int32)).view(np.float32)
    magnitudes: Floats = np.minimum(g - _SMALLEST, g / 2)
    return magnitudes


@cache
def _values(bits: int) -> Floats:
    """What each code means, where the smallest normal number is 1."""
    magnitudes = _magnitudes(bits) / _SMALLEST
    values = np.concatenate([magnitudes, -magnitudes])
    values.setflags(write=False)
    return values
