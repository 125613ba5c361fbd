"""Codes of 1 to 16 bits side by side in bytes, at the speed of whole arrays.

A code is split into its low byte and the rest, a rest of fewer than 8 bits into pieces of 4, 2 and
1 bits, lowest first. A piece is packed by folding: the second half of the codes moves above the
first half, until a byte is full.

    8 codes of 2 bits    a b c d e f g h
    folded once          ea fb gc hd                   second half above first half
    folded twice         gcea hdfb                     two full bytes

So no code crosses a byte, nothing is done bit by bit, and any group of codes, padded with zeros to
a multiple of 8, fills whole bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bytes", "Codes", "code_memory", "codes_sent", "pack", "packed_bytes", "unpack"]

Bytes = NDArray[np.uint8]
Codes = NDArray[np.unsignedinteger[Any]]
"""``uint8`` for up to 8 bits, else little-endian ``uint16``."""

_TOGETHER = 8
_WHOLE = 8


def codes_sent(n_codes: int) -> int:
    """``n_codes`` with the padding that fills whole bytes.

    >>> codes_sent(9)
    16
    """
    return -(-n_codes // _TOGETHER) * _TOGETHER


def code_memory(n_codes: int, bits: int) -> Codes:
    """Zeros to put codes of ``bits`` bits into."""
    return np.zeros(n_codes, np.uint8 if bits <= _WHOLE else np.dtype("<u2"))


def packed_bytes(n_codes: int, bits: int) -> int:
    """The size of ``n_codes`` packed codes.

    >>> packed_bytes(9, 3)
    6
    """
    return codes_sent(n_codes) // 8 * bits


def pack(codes: Codes, bits: int, out: Bytes) -> None:
    """Pack a multiple of eight codes, each below ``2**bits``, into ``packed_bytes`` bytes."""
    if bits > _WHOLE:
        halves = codes.view(np.uint8)
        n_codes = len(codes)
        out[:n_codes] = halves[::2]
        pack(np.ascontiguousarray(halves[1::2]), bits - _WHOLE, out[n_codes:])
        return
    for shift, width, place in _pieces(len(codes), bits):
        if width == _WHOLE:
            out[place] = codes
        else:
            piece: Bytes = np.right_shift(codes, shift, dtype=np.uint8)
            piece &= (1 << width) - 1
            out[place] = _folded(piece, width)


def unpack(packed: Bytes, bits: int, out: Codes) -> None:
    """Undo ``pack`` for all of ``out``."""
    if bits > _WHOLE:
        n_codes = len(out)
        halves = out.view(np.uint8)
        halves[::2] = packed[:n_codes]
        high = np.empty(n_codes, np.uint8)
        unpack(packed[n_codes:], bits - _WHOLE, high)
        halves[1::2] = high
        return
    for shift, width, place in _pieces(len(out), bits):
        if width == bits:
            _unfold(packed[place], width, out)
        else:
            piece = np.empty(len(out), np.uint8)
            _unfold(packed[place], width, piece)
            piece <<= shift
            if shift:
                out |= piece
            else:
                out[:] = piece


def _pieces(n_codes: int, bits: int) -> Iterator[tuple[int, int, slice]]:
    """Shift and width of each piece of up to 8 bits, and where its bytes go."""
    shift = 0
    start = 0
    for width in (8, 4, 2, 1):
        if bits & width:
            stop = start + n_codes * width // 8
            yield shift, width, slice(start, stop)
            shift += width
            start = stop


def _folded(codes: Bytes, width: int) -> Bytes:
    """Fold in place until bytes are full."""
    while width < _WHOLE:
        half = len(codes) // 2
        low, high = codes[:half], codes[half:]
        high <<= width
        low |= high
        codes = low
        width *= 2
    return codes


def _unfold(packed: Bytes, width: int, out: Bytes) -> None:
    """Spread full bytes over ``out``, in place from its front."""
    n_filled = len(packed)
    out[:n_filled] = packed
    for held in _halvings(width):
        low, high = out[:n_filled], out[n_filled : 2 * n_filled]
        np.right_shift(low, held, out=high)
        low &= (1 << held) - 1
        n_filled *= 2


def _halvings(width: int) -> Iterator[int]:
    """Widths on the way from a full byte down to ``width``."""
    held = _WHOLE // 2
    while held >= width:
        yield held
        held //= 2
