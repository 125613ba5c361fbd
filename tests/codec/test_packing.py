"""Codes of any width come back from the bytes they fill."""

from __future__ import annotations

import numpy as np
import pytest

from edgeweave.codec.packing import code_memory, pack, packed_bytes, unpack


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("n_codes", [0, 64, 192, 1024, 16_384])
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
    codes = np.random.default_rng(1).integers(0, 4, 64).astype(np.uint8)
    packed = np.empty(16, np.uint8)
    pack(codes, 2, packed)
    a, c, e, g = codes.reshape(4, 16)
    assert np.array_equal(packed, a | e << 2 | c << 4 | g << 6)


def test_wide_codes_have_their_low_bytes_first() -> None:
    packed = np.empty(96, np.uint8)
    pack(np.arange(0x801, 0x841, dtype=np.uint16), 12, packed)
    assert packed.tolist() == [*range(1, 65), *[0x88] * 32]
