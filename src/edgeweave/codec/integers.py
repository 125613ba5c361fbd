"""Integers without loss, in as few bits as their range needs: token ids, labels, masks.

lowest    int64
codes     value - lowest, in the header's bits: 1 to 16
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from edgeweave.codec.codecs import MOST_BITS
from edgeweave.codec.packing import (
    Bytes,
    Codes,
    code_memory,
    codes_sent,
    pack,
    packed_bytes,
    unpack,
)
from edgeweave.codec.reader import Reader
from edgeweave.core.errors import WireError

__all__ = ["MOST_BITS", "Integers", "Range", "coded_bytes", "encode", "range_of"]

_LOWEST = np.dtype("<i8")
_BYTE = np.dtype(np.uint8)


@dataclass(frozen=True, slots=True)
class Range:
    """The lowest integer of a tensor, and the bits that the distance to the highest takes."""

    lowest: int
    bits: int


def range_of(values: torch.Tensor) -> Range:
    """The range of flat ``values``; of none at all, that of a zero."""
    if not len(values):
        return Range(0, 1)
    lowest, highest = (int(extreme) for extreme in torch.aminmax(_countable(values)))
    return Range(lowest, max((highest - lowest).bit_length(), 1))


def coded_bytes(n_values: int, bits: int) -> int:
    """The size of ``n_values`` integers in ``bits`` each."""
    return _LOWEST.itemsize + packed_bytes(n_values, bits)


def encode(values: torch.Tensor, range_: Range, out: Bytes) -> None:
    """Write flat ``values`` to ``out``."""
    out[: _LOWEST.itemsize] = np.array([range_.lowest], _LOWEST).view(np.uint8)
    codes = code_memory(codes_sent(len(values)), range_.bits)
    distances = _countable(values).numpy().astype(np.int64) - range_.lowest
    np.copyto(codes[: len(values)], distances, casting="unsafe")
    pack(codes, range_.bits, out[_LOWEST.itemsize :])


@dataclass(frozen=True, slots=True)
class Integers:
    """Integers as they came, checked, not yet in their own type."""

    lowest: int
    codes: Codes

    @classmethod
    def taken_from(cls, reader: Reader, n_values: int, bits: int, dtype: torch.dtype) -> Integers:
        """Take all that is left; ``WireError`` if it is not exactly ``n_values`` of ``dtype``."""
        lowest = int(reader.take(1, _LOWEST)[0])
        packed = reader.take(packed_bytes(n_values, bits), _BYTE)
        reader.expect_end()
        codes = code_memory(codes_sent(n_values), bits)
        unpack(packed, bits, codes)
        codes = codes[:n_values]
        least, most = _limits(dtype)
        highest = lowest + int(codes.max(initial=0))
        if lowest < least or highest > most:
            raise WireError(f"integers fit their dtype ({lowest} to {highest} as {dtype}).")
        return cls(lowest, codes)

    def write_to(self, out: torch.Tensor) -> None:
        """Fill flat values of the type they were checked for."""
        out.copy_(torch.from_numpy(self.codes.astype(np.int64) + self.lowest))


def _countable(values: torch.Tensor) -> torch.Tensor:
    """Bools as the integers they are."""
    return values.view(torch.uint8) if values.dtype is torch.bool else values


def _limits(dtype: torch.dtype) -> tuple[int, int]:
    if dtype is torch.bool:
        return 0, 1
    limits = torch.iinfo(dtype)
    return limits.min, limits.max
