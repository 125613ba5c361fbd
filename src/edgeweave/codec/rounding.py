"""What is added to a value so that cutting its fraction off rounds it: a half, or at random.

Nearest is the smaller error and suits activations. At random, a value between two levels goes up
with the probability of its distance from the lower one, so that the mean error is zero and errors
of many microbatches cancel: for gradients.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeweave.core.errors import ConfigError

__all__ = ["GROUP", "AtRandom", "Floats", "Ints", "Nearest", "Rounding", "shaped"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

GROUP = 32_768
"""Values worked on at a time, so that all there is of them stays in a small processor's cache."""

_RANDOM_BITS = 16
_FLOAT_BITS = 24


def shaped(memory: NDArray[Any], like: NDArray[Any]) -> NDArray[Any]:
    """As much of flat ``memory`` as ``like`` has items, in its shape."""
    return memory[: like.size].reshape(like.shape)


class Rounding(Protocol):
    """Adds to at most ``GROUP`` values, in place, what makes cutting off round."""

    def add_to_floats(self, values: NDArray[Any], bits: int) -> None:
        """For values from 0 to ``2**bits - 1``, to be cut to integers. None reaches ``2**bits``."""
        ...

    def add_to_ints(self, values: Ints, shift: int) -> None:
        """For integers to be shifted right by ``shift``, of 13 to 23."""
        ...


class Nearest:
    """Adds a half."""

    def add_to_floats(self, values: Floats, bits: int) -> None:
        """See ``Rounding``."""
        values += np.float32(0.5)

    def add_to_ints(self, values: Ints, shift: int) -> None:
        """See ``Rounding``."""
        values += 1 << (shift - 1)


class AtRandom:
    """Adds a fraction below 1, in steps of ``2**-16`` or of what a float can still tell apart.

    The mean of many roundings is the value itself, to within ``2**-16`` of the distance of its two
    levels or ``2**-22`` of the range of its block, whichever is more.
    """

    def __init__(self, seed: int) -> None:
        if seed < 0:
            raise ConfigError(f"a seed of random rounding is 0 or more (got {seed}).")
        self._source = np.random.SFC64(seed)
        self._fractions = np.empty(GROUP, np.float32)

    def add_to_floats(self, values: Floats, bits: int) -> None:
        """See ``Rounding``."""
        fractions = shaped(self._fractions, values)
        n_bits = min(_RANDOM_BITS, _FLOAT_BITS - bits)
        numbers = self._numbers(values)
        if n_bits < _RANDOM_BITS:
            numbers >>= _RANDOM_BITS - n_bits
        np.multiply(numbers, np.float32(2.0**-n_bits), out=fractions)
        values += fractions

    def add_to_ints(self, values: Ints, shift: int) -> None:
        """See ``Rounding``."""
        numbers = shaped(self._fractions.view(np.int32), values)
        np.copyto(numbers, self._numbers(values))
        if shift >= _RANDOM_BITS:
            numbers <<= shift - _RANDOM_BITS
        else:
            numbers >>= _RANDOM_BITS - shift
        values += numbers

    def _numbers(self, values: NDArray[Any]) -> NDArray[np.uint16]:
        words = self._source.random_raw(-(-values.size // 4))
        return shaped(words.view(np.uint16), values)
