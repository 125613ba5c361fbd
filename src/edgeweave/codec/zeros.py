"""Zeros left out: after a ReLU half of the values are zero, and saying so takes one bit.

    rows      one bit for each 64 values: whether any of them is not zero; padded to a byte
    values    64 bits for each row that has one: which of its values are not zero
    ...       the values that are not zero, coded as if there were no others

Bits count from the lowest. Zero is the value whose bits are all zero: -0.0 is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edgeweave.codec.packing import Bytes
from edgeweave.codec.reader import Body, Reader
from edgeweave.core.errors import WireError

__all__ = ["WithZeros", "kept", "map_of", "pay", "take_map", "without"]

_ROW = 64
_BYTE = np.dtype(np.uint8)
_WORD = np.dtype("<u8")
_SAVING = 0.1

_SAME_BITS: Mapping[int, torch.dtype] = {2: torch.int16, 4: torch.int32}

Mask = NDArray[np.bool_]


def pay(values: torch.Tensor, bits: int) -> bool:
    """Whether leaving zeros out saves at least a tenth of ``bits`` a value."""
    if not len(values):
        return False
    n_zeros = len(values) - np.count_nonzero(_bit_patterns(values))
    saved = n_zeros / len(values) * bits - (1 + 1 / _ROW)
    return bool(saved >= _SAVING * bits)


def kept(values: torch.Tensor) -> Mask:
    """Which of flat ``values`` are not zero."""
    mask: Mask = _bit_patterns(values) != 0
    return mask


def without(values: torch.Tensor, kept_: Mask) -> torch.Tensor:
    """The values that are kept, side by side."""
    chosen = np.compress(kept_, _bit_patterns(values))
    return torch.from_numpy(chosen).view(values.dtype)


def map_of(kept_: Mask) -> Bytes:
    """Rows and values as the module describes them."""
    n_rows = -(-len(kept_) // _ROW)
    words = np.zeros(n_rows, _WORD)
    packed = np.packbits(kept_, bitorder="little")
    words.view(np.uint8)[: len(packed)] = packed
    any_ = words != 0
    return np.concatenate([np.packbits(any_, bitorder="little"), words[any_].view(np.uint8)])


def take_map(reader: Reader, n_values: int) -> Mask:
    """Undo ``map_of``; ``WireError`` if the map is none of ``n_values`` values."""
    n_rows = -(-n_values // _ROW)
    marks = np.unpackbits(reader.take(-(-n_rows // 8), _BYTE), bitorder="little")
    rows = marks[:n_rows].view(np.bool_)
    given = reader.take(int(np.count_nonzero(rows)), _WORD)
    words = np.zeros(n_rows, _WORD)
    words[rows] = given
    bits = np.unpackbits(words.view(np.uint8), bitorder="little").view(np.bool_)
    if marks[n_rows:].any() or bits[n_values:].any() or not given.all():
        raise WireError("a map of zeros marks rows that have values, and none beyond the last.")
    return bits[:n_values]


@dataclass(frozen=True, slots=True)
class WithZeros:
    """A body of the values that are not zero, with the others between them."""

    kept: Mask
    body: Body

    def write_to(self, out: torch.Tensor) -> None:
        """See ``Body``."""
        places = torch.from_numpy(np.flatnonzero(self.kept))
        values = torch.empty(len(places), dtype=out.dtype)
        self.body.write_to(values)
        # By place: picking by mask costs several times as much, a branch missed for each value.
        out.zero_().scatter_(0, places, values)


def _bit_patterns(values: torch.Tensor) -> NDArray[np.signedinteger]:
    patterns: NDArray[np.signedinteger] = values.view(_SAME_BITS[values.dtype.itemsize]).numpy()
    return patterns
