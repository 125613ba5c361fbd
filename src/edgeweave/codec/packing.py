"""Codes of 1 to 16 bits side by side in bytes, at the speed of whole arrays.

A code is split into its low byte and the rest, a rest of fewer than 8 bits into pieces of 4, 2 and
1 bits, lowest first. A piece is packed by folding: the second half of the codes moves above the
first half, until a byte is full.

    8 codes of 2 bits    a b c d e f g h
    folded once          ea fb gc hd                   second half above first half
    folded twice         gcea hdfb                     two full bytes

So no code crosses a byte and nothing is done bit by bit. Codes come in multiples of 64, filled up
with anything, so that every half has whole words of 8 bytes and these are shifted and masked at
once: a mask keeps what a shift moves over a byte's edge away.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bytes", "Codes", "code_memory", "codes_sent", "pack", "packed_bytes", "unpack"]

Bytes = NDArray[np.uint8]
Codes = NDArray[np.unsignedinteger[Any]]
"""``uint8`` for up to 8 bits, else ``uint16``."""

_Words = NDArray[np.uint64]

_TOGETHER = 64
_WHOLE = 8
_EACH_BYTE = 0x0101010101010101


def codes_sent(n_codes: int) -> int:
    """``n_codes`` with the padding that fills whole words.

    >>> codes_sent(65)
    128
    """
    return -(-n_codes // _TOGETHER) * _TOGETHER


def code_memory(n_codes: int, bits: int) -> Codes:
    """Zeros to put codes of ``bits`` bits into."""
    return np.zeros(n_codes, np.uint8 if bits <= _WHOLE else np.uint16)


def packed_bytes(n_codes: int, bits: int) -> int:
    """The size of ``n_codes`` packed codes.

    >>> packed_bytes(65, 3)
    48
    """
    return codes_sent(n_codes) // 8 * bits


def pack(codes: Codes, bits: int, out: Bytes) -> None:
    """Pack a multiple of 64 codes, each below ``2**bits``, into ``packed_bytes`` bytes."""
    if bits > _WHOLE:
        n_codes = len(codes)
        np.copyto(out[:n_codes], codes, casting="unsafe")
        pack((codes >> _WHOLE).astype(np.uint8), bits - _WHOLE, out[n_codes:])
        return
    words = codes.view(np.uint64)
    for shift, width, place in _pieces(len(codes), bits):
        piece: _Words = (words >> np.uint64(shift)) & np.uint64(_mask(width))
        out[place] = _folded(piece, width).view(np.uint8)


def unpack(packed: Bytes, bits: int, out: Codes) -> None:
    """Undo ``pack`` for all of ``out``."""
    if bits > _WHOLE:
        n_codes = len(out)
        high = np.empty(n_codes, np.uint8)
        unpack(packed[n_codes:], bits - _WHOLE, high)
        np.copyto(out, high)
        out <<= _WHOLE
        out |= packed[:n_codes]
        return
    words = out.view(np.uint64)
    for shift, width, place in _pieces(len(out), bits):
        if not shift:
            _unfold(packed[place], width, words)
        else:
            piece = np.empty_like(words)
            _unfold(packed[place], width, piece)
            piece <<= shift
            words |= piece


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


def _mask(width: int) -> int:
    """The lowest ``width`` bits of each byte of a word."""
    return ((1 << width) - 1) * _EACH_BYTE


def _folded(codes: _Words, width: int) -> _Words:
    """Fold in place until bytes are full."""
    while width < _WHOLE:
        half = len(codes) // 2
        low, high = codes[:half], codes[half:]
        high <<= width
        low |= high
        codes = low
        width *= 2
    return codes


def _unfold(packed: Bytes, width: int, out: _Words) -> None:
    """Spread full bytes over ``out``, in place from its front."""
    n_filled = len(packed) // 8
    out[:n_filled].view(np.uint8)[:] = packed
    held = _WHOLE
    while held > width:
        held //= 2
        low, high = out[:n_filled], out[n_filled : 2 * n_filled]
        np.right_shift(low, held, out=high)
        high &= _mask(held)
        low &= _mask(held)
        n_filled *= 2
