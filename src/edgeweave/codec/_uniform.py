"""``uniform``: a block's levels lie at equal distances between its extremes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeweave.codec.packing import Codes
from edgeweave.codec.quantiser import LARGEST, Scales
from edgeweave.codec.rounding import GROUP, Floats, Rounding, shaped
from edgeweave.core.errors import WireError

__all__ = ["Uniform"]

_LEAST_STEP = np.float32(2.0**-126)
"""Narrower blocks become their lowest value: an error below ``2**-110``."""

_BELOW_ONE = np.float32(1 - 2.0**-22)
"""Keeps the highest value, after three roundings, from exceeding the last level."""


class Uniform:
    """The ``Quantiser`` of ``uniform``. A step of NaN marks a block that travels raw."""

    scale = np.dtype([("lowest", "<f4"), ("step", "<f4")])

    def __init__(self, bits: int) -> None:
        self._last_level = np.float32((1 << bits) - 1)
        self._bits = bits
        self._memory = np.empty(GROUP, np.float32)

    def scales(self, lowest: Floats, highest: Floats) -> Scales:
        """See ``Quantiser``."""
        found = np.empty(len(lowest), self.scale)
        with np.errstate(invalid="ignore", over="ignore"):
            step = (highest - lowest) / self._last_level
            sound = np.maximum(highest, -lowest) < LARGEST
        step[step < _LEAST_STEP] = 0
        found["lowest"] = np.where(sound, lowest, 0)
        found["step"] = np.where(sound, step, np.nan)
        return found

    def quantise(self, rows: Floats, scales: Scales, rounding: Rounding, codes: Codes) -> None:
        """See ``Quantiser``."""
        step = scales["step"]
        levels_per_unit = np.zeros(len(step), np.float32)
        np.divide(_BELOW_ONE, step, out=levels_per_unit, where=step > 0)
        values = shaped(self._memory, rows)
        np.subtract(rows, scales["lowest"][:, None], out=values)
        values *= levels_per_unit[:, None]
        rounding.add_to_floats(values, self._bits)
        np.copyto(codes, values, casting="unsafe")

    def dequantise(self, codes: Codes, scales: Scales, out: Floats) -> None:
        """See ``Quantiser``."""
        np.copyto(out, codes)
        out *= scales["step"][:, None]
        out += scales["lowest"][:, None]

    def without_scale(self, scales: Scales) -> NDArray[np.bool_]:
        """See ``Quantiser``."""
        lowest, step = scales["lowest"], scales["step"]
        raw: NDArray[np.bool_] = np.isnan(step)
        with np.errstate(invalid="ignore", over="ignore"):
            sound = (step >= 0) & np.isfinite(lowest + step * self._last_level)
        if not (raw | sound).all():
            raise WireError("the levels of a block are finite numbers, its step is 0 or more.")
        return raw
