"""The head of a coded tensor: what the bytes behind it are, and whether they arrived whole.

    offset  bytes
    0       3      b"EWC"
    3       1      version, 1
    4       1      coding: 0 raw, 1 truncate, 2 uniform, 3 blockfloat, 4 narrowed integers
    5       1      dtype of the tensor, a position in ``DTYPES``
    6       1      bits of a value; 0 where raw
    7       1      log2 of the block; 0 where there are no blocks
    8       1      1 if zeros are left out, else 0
    9       1      number of dimensions, at most 16
    10      2      0
    12      4      CRC-32 of all other bytes, header included
    16      4 * d  lengths of the dimensions

Little-endian throughout.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import torch

from edgeweave.codec.codecs import FEWEST_BITS, LARGEST_BLOCK, MOST_BITS, SMALLEST_BLOCK
from edgeweave.core.errors import VersionError, WireError

__all__ = ["DTYPES", "Coding", "Header", "is_float", "is_integer", "read", "sealed"]

_MAGIC = b"EWC"
_VERSION = 1
_FIXED = struct.Struct("<3sBBBBBBBHI")
_CHECKSUM = struct.Struct("<I")
_CHECKSUM_OFFSET = 12
_MOST_DIMENSIONS = 16
_LONGEST_DIMENSION = 2**32 - 1
_MOST_BYTES = 2**62

DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
)
_NUMBERS: Mapping[torch.dtype, int] = {dtype: number for number, dtype in enumerate(DTYPES)}
_CODED_FLOATS = DTYPES[:3]
_INTEGERS = DTYPES[4:]


class Coding(IntEnum):
    """How the values behind a header are written."""

    RAW = 0
    TRUNCATE = 1
    UNIFORM = 2
    BLOCKFLOAT = 3
    INTEGERS = 4


@dataclass(frozen=True, slots=True)
class Header:
    """What ``decode`` must know before it reads a value."""

    coding: Coding
    dtype: torch.dtype
    shape: tuple[int, ...]
    bits: int = 0
    block: int = 0
    zeros_left_out: bool = False

    @property
    def n_values(self) -> int:
        """How many values the tensor has."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """How long this header is."""
        return _FIXED.size + 4 * len(self.shape)

    def packed(self) -> bytes:
        """The bytes, with a checksum of 0 until ``sealed`` puts it in."""
        if self.dtype not in _NUMBERS:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise WireError(
                f"a coded tensor has one of the types {known} (got {self.dtype}). Convert it."
            )
        if len(self.shape) > _MOST_DIMENSIONS or max(self.shape, default=0) > _LONGEST_DIMENSION:
            raise WireError(
                f"a coded tensor has at most {_MOST_DIMENSIONS} dimensions of less than 2**32 "
                f"(got {self.shape})."
            )
        fixed = _FIXED.pack(
            _MAGIC,
            _VERSION,
            self.coding,
            _NUMBERS[self.dtype],
            self.bits,
            max(self.block.bit_length() - 1, 0),
            self.zeros_left_out,
            len(self.shape),
            0,
            0,
        )
        return fixed + struct.pack(f"<{len(self.shape)}I", *self.shape)


def is_float(dtype: torch.dtype) -> bool:
    """Whether values are floats that codecs apply to."""
    return dtype in _CODED_FLOATS


def is_integer(dtype: torch.dtype) -> bool:
    """Whether values are integers or bools, which lose nothing."""
    return dtype in _INTEGERS


def sealed(coded: memoryview) -> memoryview:
    """Put the checksum into a coded tensor, in place."""
    _CHECKSUM.pack_into(coded, _CHECKSUM_OFFSET, _checksum(coded))
    return coded


def read(data: memoryview) -> Header:
    """Check a coded tensor's checksum and header; ``WireError`` if a rule is broken."""
    if len(data) < _FIXED.size:
        raise WireError(
            f"a coded tensor has at least {_FIXED.size} bytes (it has {len(data)}). Send it again."
        )
    magic, version, coding, dtype, bits, log_block, left_out, n_dimensions, zero, checksum = (
        _FIXED.unpack_from(data)
    )
    if magic != _MAGIC:
        raise WireError(f"a coded tensor begins with {_MAGIC!r} (got {magic!r}).")
    if version != _VERSION:
        raise VersionError(
            f"a coded tensor has version {_VERSION} (got {version}). "
            "Install one version of edgeweave on all devices."
        )
    if _checksum(data) != checksum:
        raise WireError(
            "a coded tensor arrives as it was sent (its checksum is wrong). Send it again."
        )
    if (
        coding not in Coding.__members__.values()
        or dtype >= len(DTYPES)
        or left_out > 1
        or zero
        or n_dimensions > _MOST_DIMENSIONS
        or _FIXED.size + 4 * n_dimensions > len(data)
    ):
        raise WireError(
            f"a coded tensor's header has known codings, dtypes and flags (coding {coding}, dtype "
            f"{dtype}, zeros left out {left_out}, {n_dimensions} dimensions, reserved {zero})."
        )
    header = Header(
        Coding(coding),
        DTYPES[dtype],
        struct.unpack_from(f"<{n_dimensions}I", data, _FIXED.size),
        bits,
        1 << log_block if log_block else 0,
        bool(left_out),
    )
    _check(header)
    return header


def _check(header: Header) -> None:
    # Torch computes strides with empty dimensions counted as one; these must not overflow either.
    if header.dtype.itemsize * math.prod(max(n, 1) for n in header.shape) > _MOST_BYTES:
        raise WireError(f"a coded tensor fits in memory (shape {header.shape}).")
    if header.coding is Coding.RAW:
        fits = header.bits == header.block == 0
    elif header.coding is Coding.INTEGERS:
        fits = header.block == 0 and header.dtype in _INTEGERS and 1 <= header.bits <= MOST_BITS
    else:
        fits = (
            FEWEST_BITS <= header.bits <= MOST_BITS
            and SMALLEST_BLOCK <= header.block <= LARGEST_BLOCK
            and is_float(header.dtype)
        )
    if not fits or (header.zeros_left_out and not is_float(header.dtype)):
        raise WireError(
            f"bits, block and dtype fit the coding (coding {header.coding.name.lower()}, "
            f"{header.bits} bits, block {header.block}, {header.dtype})."
        )


def _checksum(data: memoryview) -> int:
    start = zlib.crc32(data[:_CHECKSUM_OFFSET])
    return zlib.crc32(data[_CHECKSUM_OFFSET + _CHECKSUM.size :], start)
