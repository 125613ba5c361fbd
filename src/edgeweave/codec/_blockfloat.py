"""``blockfloat``: signed integers times a power of two that a block shares."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeweave.codec import exponents
from edgeweave.codec.packing import Codes
from edgeweave.codec.quantiser import Scales
from edgeweave.codec.rounding import GROUP, Floats, Rounding, shaped

__all__ = ["BlockFloat"]


class BlockFloat:
    """The ``Quantiser`` of ``blockfloat``. Code ``2**(bits - 1)`` is zero; code 0 is not used."""

    scale = exponents.SCALE

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._zero = np.float32(1 << (bits - 1))
        self._memory = np.empty(GROUP, np.float32)

    def scales(self, lowest: Floats, highest: Floats) -> Scales:
        """See ``Quantiser``."""
        return exponents.least(lowest, highest, self._zero - 1)

    def quantise(self, rows: Floats, scales: Scales, rounding: Rounding, codes: Codes) -> None:
        """See ``Quantiser``."""
        values = shaped(self._memory, rows)
        np.multiply(rows, exponents.inverse_powers(scales)[:, None], out=values)
        values += self._zero
        rounding.add_to_floats(values, self._bits)
        np.copyto(codes, values, casting="unsafe")

    def dequantise(self, codes: Codes, scales: Scales, out: Floats) -> None:
        """See ``Quantiser``."""
        np.copyto(out, codes)
        out -= self._zero
        out *= exponents.powers(scales)[:, None]

    def without_scale(self, scales: Scales) -> NDArray[np.bool_]:
        """See ``Quantiser``."""
        return exponents.missing(scales, self._zero - 1)
