"""Values in blocks: a scale for each block, packed codes, and blocks that travel as they are.

    scales    one for each block, in the quantiser's own form
    codes     of 16 384 values at a time, packed together; the last ones are padded to eight
    raw       float32 values of the blocks that have no scale: with NaN, Inf or 2**126 and more

The last block is filled up with copies of the last value; copies beyond the padding are not sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edgeweave.codec._blockfloat import BlockFloat
from edgeweave.codec._truncate import Truncate
from edgeweave.codec._uniform import Uniform
from edgeweave.codec.header import Coding, Header
from edgeweave.codec.packing import Bytes, code_memory, codes_sent, pack, packed_bytes, unpack
from edgeweave.codec.quantiser import Quantiser, Scales
from edgeweave.codec.reader import Reader
from edgeweave.codec.rounding import GROUP, Floats, Rounding

__all__ = ["Blocks", "coded_bytes", "encode"]

_QUANTISERS: Mapping[Coding, Callable[[int], Quantiser]] = {
    Coding.TRUNCATE: Truncate,
    Coding.UNIFORM: Uniform,
    Coding.BLOCKFLOAT: BlockFloat,
}
_FLOAT = np.dtype("<f4")
_BYTE = np.dtype(np.uint8)


def coded_bytes(header: Header, n_values: int) -> int:
    """The size of ``n_values`` in blocks, where none of them travels raw."""
    scale = _QUANTISERS[header.coding](header.bits).scale
    return _n_blocks(header, n_values) * scale.itemsize + packed_bytes(n_values, header.bits)


def encode(values: torch.Tensor, header: Header, rounding: Rounding, out: Bytes) -> list[Floats]:
    """Write scales and codes of flat ``values`` to ``out``; return the blocks that travel raw."""
    quantiser = _QUANTISERS[header.coding](header.bits)
    scales = np.empty(_n_blocks(header, len(values)), quantiser.scale)
    padded = np.empty(GROUP, np.float32)
    memory = code_memory(GROUP, header.bits)
    at = scales.nbytes
    raw: list[Floats] = []
    with np.errstate(invalid="ignore", over="ignore"):
        for start, stop in _groups(len(values)):
            rows = _rows(values[start:stop], header.block, padded)
            first = start // header.block
            own = scales[first : first + len(rows)]
            levels = quantiser.quantise(rows, own, rounding).reshape(-1)
            codes = memory[: len(levels)]
            np.copyto(codes, levels, casting="unsafe")
            end = at + packed_bytes(stop - start, header.bits)
            pack(codes[: codes_sent(stop - start)], header.bits, out[at:end])
            at = end
            without_scale = quantiser.without_scale(own)
            if without_scale.any():
                raw.append(rows[without_scale])
    out[: scales.nbytes] = scales.view(np.uint8)
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
        with np.errstate(invalid="ignore", over="ignore"):
            without_scale = quantiser.without_scale(scales)
        raw = reader.take(int(without_scale.sum()) * header.block, _FLOAT)
        reader.expect_end()
        raw = raw.reshape(-1, header.block)
        return cls(header, n_values, quantiser, scales, packed, without_scale, raw)

    def write_to(self, out: torch.Tensor) -> None:
        """Fill ``n_values`` flat values of any float type."""
        block, bits = self.header.block, self.header.bits
        memory = code_memory(GROUP, bits)
        padded = np.empty(GROUP, np.float32)
        at = n_raw = 0
        for start, stop in _groups(self.n_values):
            end = at + packed_bytes(stop - start, bits)
            unpack(self.packed[at:end], bits, memory[: codes_sent(stop - start)])
            at = end
            first = start // block
            n_rows = -(-(stop - start) // block)
            own = slice(first, first + n_rows)
            target = out[start:stop]
            whole = target.dtype is torch.float32 and n_rows * block == len(target)
            values = target.numpy() if whole else padded[: n_rows * block]
            rows = values.reshape(n_rows, block)
            codes = memory[: n_rows * block].reshape(rows.shape)
            self.quantiser.dequantise(codes, self.scales[own], rows)
            without_scale = self.without_scale[own]
            if without_scale.any():
                count = int(without_scale.sum())
                rows[without_scale] = self.raw[n_raw : n_raw + count]
                n_raw += count
            if not whole:
                target.copy_(torch.from_numpy(values[: len(target)]))


def _n_blocks(header: Header, n_values: int) -> int:
    return -(-n_values // header.block)


def _groups(n_values: int) -> Iterator[tuple[int, int]]:
    for start in range(0, n_values, GROUP):
        yield start, min(start + GROUP, n_values)


def _rows(values: torch.Tensor, block: int, padded: Floats) -> Floats:
    """Blocks of a group, in place if they are whole blocks of float32, else in ``padded``."""
    n_rows = -(-len(values) // block)
    if values.dtype is torch.float32 and len(values) == n_rows * block:
        rows: Floats = values.numpy().reshape(n_rows, block)
        return rows
    torch.from_numpy(padded[: len(values)]).copy_(values)
    padded[len(values) : n_rows * block] = padded[len(values) - 1]
    return padded[: n_rows * block].reshape(n_rows, block)
