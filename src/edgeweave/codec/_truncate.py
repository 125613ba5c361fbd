"""``truncate``: floats of fewer bits, with a power of two that a block shares.

A small float of k exponent and m mantissa bits is cut out of a float32 with integer operations.
Scale a block so that its smallest normal number is 1. Then for a magnitude y

    g = max(2 * y, y + 1)         2 * y if y >= 1: the next binade
                                  y + 1 if y < 1:  the binade [1, 2), evenly spaced
    code = (bits(g) - bits(1.0)) >> (23 - m)

counts the small floats up to y, those below the smallest normal included. The sign goes on top.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeweave.codec import exponents
from edgeweave.codec.packing import Codes
from edgeweave.codec.quantiser import Scales
from edgeweave.codec.rounding import GROUP, Floats, Ints, Rounding, shaped

__all__ = ["Truncate", "exponent_bits"]

_MANTISSA_BITS = 23
_MOST_EXPONENT_BITS = 5
_ONE = 0x3F800000
_MAGNITUDE = 0x7FFFFFFF
_SIGN_BIT = 31


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
        mantissa_bits = bits - 1 - exponent_bits(bits)
        self._sign = bits - 1
        self._shift = _MANTISSA_BITS - mantissa_bits
        binades = 2 ** exponent_bits(bits) - 2
        self._top = np.float32(2.0**binades * (2 - 2.0**-mantissa_bits))
        self._memory = [np.empty(GROUP, np.float32) for _ in range(3)]

    def quantise(self, rows: Floats, scales: Scales, rounding: Rounding) -> Ints:
        """See ``Quantiser``."""
        scales[:] = exponents.least(rows, self._top)
        doubled, g, evenly = (shaped(memory, rows) for memory in self._memory)
        np.multiply(rows, (2 * exponents.inverse_powers(scales))[:, None], out=doubled)
        raw = self.without_scale(scales)
        if raw.any():
            doubled[raw] = 0
        signs, codes = doubled.view(np.int32), g.view(np.int32)
        np.bitwise_and(signs, _MAGNITUDE, out=codes)
        np.multiply(g, np.float32(0.5), out=evenly)
        evenly += np.float32(1)
        np.maximum(g, evenly, out=g)
        codes -= _ONE
        rounding.add_to_ints(codes, self._shift)
        codes >>= self._shift
        signs >>= _SIGN_BIT
        signs &= 1 << self._sign
        codes |= signs
        return codes

    def dequantise(self, codes: Codes, scales: Scales, out: Floats) -> None:
        """See ``Quantiser``."""
        signs, g_bits = (shaped(memory, out).view(np.int32) for memory in self._memory[:2])
        np.copyto(signs, codes)
        np.bitwise_and(signs, (1 << self._sign) - 1, out=g_bits)
        g_bits <<= self._shift
        g_bits += _ONE
        g = g_bits.view(np.float32)
        np.multiply(g, np.float32(0.5), out=out)
        g -= np.float32(1)
        np.minimum(g, out, out=out)
        out *= exponents.powers(scales)[:, None]
        signs >>= self._sign
        signs <<= _SIGN_BIT
        out_bits = out.view(np.int32)
        out_bits |= signs

    def without_scale(self, scales: Scales) -> NDArray[np.bool_]:
        """See ``Quantiser``."""
        return exponents.missing(scales)
