"""Values in blocks: a scale for each block, packed codes, and blocks that travel as they are.

    scales    one for each block, in the quantiser's own form
    codes     of 32 768 values at a time, packed together
    raw       float32 values of the blocks that have no scale: with NaN, Inf or 2**126 and more

The last block is filled up with copies of the last value; of these only padding is sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edgeweave.codec._blockfloat import BlockFloat
from edgeweave.codec._truncate import Truncate
from edgeweave.codec._uniform import Uniform
from edgeweave.codec.header import Coding, Header
from edgeweave.codec.packing import Bytes, code_memory, codes_sent, pack, packed_bytes, unpack
from edgeweave.codec.quantiser import Quantiser, Scales, extremes
from edgeweave.codec.reader import Reader
from edgeweave.codec.rounding import GROUP, Floats, Rounding

__all__ = ["Blocks", "coded_bytes", "encode"]

_QUANTISERS: Mapping[Coding, type[Truncate | Uniform | BlockFloat]] = {
    Coding.TRUNCATE: Truncate,
    Coding.UNIFORM: Uniform,
    Coding.BLOCKFLOAT: BlockFloat,
}
_FLOAT = np.dtype("<f4")
_BYTE = np.dtype(np.uint8)


def coded_bytes(header: Header, n_values: int) -> int:
    """The size of ``n_values`` in blocks, where none of them travels raw."""
    scale = _QUANTISERS[header.coding].scale
    return _n_blocks(header, n_values) * scale.itemsize + packed_bytes(n_values, header.bits)


def encode(values: torch.Tensor, header: Header, rounding: Rounding, out: Bytes) -> Floats:
    """Write scales and codes of flat ``values`` to ``out``; return the blocks that travel raw."""
    quantiser = _QUANTISERS[header.coding](header.bits)
    rows = _Rows(values, header.block)
    scales = quantiser.scales(*rows.extremes())
    raw = rows.taken_out(quantiser.without_scale(scales))
    out[: scales.nbytes] = scales.view(np.uint8)
    memory = code_memory(GROUP, header.bits)
    for group in _groups(header, len(values), scales.nbytes):
        part = rows.of(group.blocks)
        codes = memory[: part.size].reshape(part.shape)
        quantiser.quantise(part, scales[group.blocks], rounding, codes)
        pack(memory[: group.n_sent], header.bits, out[group.packed])
    return raw


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks as they came, checked, not yet values."""

    header: Header
    n_values: int
    quantiser: Quantiser
    scales: Scales
    packed: Bytes
    without_scale: NDArray[np.bool_]
    raw: Floats

    @classmethod
    def taken_from(cls, reader: Reader, header: Header, n_values: int) -> Blocks:
        """Take all that is left; ``WireError`` if it is not exactly ``n_values`` in blocks."""
        quantiser = _QUANTISERS[header.coding](header.bits)
        scales = reader.take(_n_blocks(header, n_values), quantiser.scale)
        packed = reader.take(packed_bytes(n_values, header.bits), _BYTE)
        without_scale = quantiser.without_scale(scales)
        raw = reader.take(int(without_scale.sum()) * header.block, _FLOAT)
        reader.expect_end()
        raw = raw.reshape(-1, header.block)
        return cls(header, n_values, quantiser, scales, packed, without_scale, raw)

    def write_to(self, out: torch.Tensor) -> None:
        """Fill ``n_values`` flat values of any float type."""
        block = self.header.block
        memory = code_memory(GROUP, self.header.bits)
        padded = np.empty(GROUP, np.float32)
        n_raw = 0
        for group in _groups(self.header, self.n_values):
            unpack(self.packed[group.packed], self.header.bits, memory[: group.n_sent])
            scales = self.scales[group.blocks]
            target = out[group.start : group.start + group.n_values]
            in_place = target.dtype is torch.float32 and len(target) == len(scales) * block
            values = target.numpy() if in_place else padded[: len(scales) * block]
            rows = values.reshape(-1, block)
            self.quantiser.dequantise(memory[: rows.size].reshape(rows.shape), scales, rows)
            without_scale = self.without_scale[group.blocks]
            if without_scale.any():
                n_before, n_raw = n_raw, n_raw + int(without_scale.sum())
                rows[without_scale] = self.raw[n_before:n_raw]
            if not in_place:
                target.copy_(torch.from_numpy(values[: len(target)]))


@dataclass(frozen=True, slots=True)
class _Group:
    """Values worked on together: where they are, their blocks, and their packed codes."""

    start: int
    n_values: int
    blocks: slice
    packed: slice

    @property
    def n_sent(self) -> int:
        return codes_sent(self.n_values)


def _groups(header: Header, n_values: int, first_byte: int = 0) -> Iterator[_Group]:
    at = first_byte
    for start in range(0, n_values, GROUP):
        count = min(GROUP, n_values - start)
        end = at + packed_bytes(count, header.bits)
        first = start // header.block
        blocks = slice(first, first + _n_blocks(header, count))
        yield _Group(start, count, blocks, slice(at, end))
        at = end


def _n_blocks(header: Header, n_values: int) -> int:
    return -(-n_values // header.block)


class _Rows:
    """Values as blocks of float32, where they are; only a short last block is copied."""

    def __init__(self, values: torch.Tensor, block: int) -> None:
        n_whole = len(values) // block * block
        self._whole: Floats = values[:n_whole].float().numpy().reshape(-1, block)
        rest = values[n_whole:].float().numpy()
        self._last = np.pad(rest, (0, -len(rest) % block), "edge" if len(rest) else "empty")
        self._last = self._last.reshape(-1, block)

    def extremes(self) -> tuple[Floats, Floats]:
        """The lowest and the highest value of each block."""
        (low, high), (last_low, last_high) = extremes(self._whole), extremes(self._last)
        return np.concatenate([low, last_low]), np.concatenate([high, last_high])

    def taken_out(self, chosen: NDArray[np.bool_]) -> Floats:
        """Replace these blocks by zeros, and return what they were."""
        of_whole, of_last = np.split(chosen, [len(self._whole)])
        found = np.concatenate([self._whole[of_whole], self._last[of_last]])
        if len(found):
            self._whole = self._whole.copy()
            self._whole[of_whole] = 0
            self._last[of_last] = 0
        return found

    def of(self, blocks: slice) -> Floats:
        """Some neighbouring blocks."""
        whole = self._whole[blocks]
        return whole if blocks.stop <= len(self._whole) else np.concatenate([whole, self._last])
