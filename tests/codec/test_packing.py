"""Codes of any width come back from the bytes they fill."""

from __future__ import annotations

import numpy as np
import pytest

from edgeweave.codec.packing import code_memory, pack, packed_bytes, unpack


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("n_codes", [0, 8, 24, 1000, 16_384])
def test_codes_come_back(bits: int, n_codes: int) -> None:
    codes = code_memory(n_codes, bits)
    codes[:] = np.random.default_rng(0).integers(0, 1 << bits, n_codes)
    before = codes.copy()
    packed = np.empty(packed_bytes(n_codes, bits), np.uint8)
    pack(codes, bits, packed)
    assert np.array_equal(codes, before)
    back = code_memory(n_codes, bits)
    back[:] = 1
    unpack(packed, bits, back)
    assert np.array_equal(back, codes)


def test_codes_are_folded_as_the_picture_shows() -> None:
    a, b, c, d, e, f, g, h = codes = np.array([0, 1, 2, 3, 3, 2, 1, 1], np.uint8)
    packed = np.empty(2, np.uint8)
    pack(codes, 2, packed)
    assert packed.tolist() == [
        a | c << 2 | e << 4 | g << 6,
        b | d << 2 | f << 4 | h << 6,
    ]


def test_wide_codes_have_their_low_bytes_first() -> None:
    packed = np.empty(12, np.uint8)
    pack(np.arange(0x801, 0x809, dtype="<u2"), 12, packed)
    assert packed.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 0x88, 0x88, 0x88, 0x88]
