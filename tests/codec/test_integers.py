"""Integers and bools come back as they were, in fewer bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.codec import decode, encode, none, uniform

INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8]


def drawn(most: int, n_values: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, most, (n_values,), generator=generator)


@pytest.mark.parametrize(
    ("most", "bits"), [(2, 1), (10, 4), (65, 7), (256, 8), (1000, 10), (50_257, 16)]
)
def test_token_ids_take_the_bits_of_their_range(most: int, bits: int) -> None:
    ids = drawn(most, 6400)
    ids[0], ids[1] = 0, most - 1
    coded = encode(ids, uniform(2))
    assert len(coded) == 16 + 4 + 8 + 6400 * bits // 8
    assert torch.equal(decode(coded), ids)


def test_a_mask_takes_a_bit_for_each_value() -> None:
    mask = drawn(2, 6400).bool()
    coded = encode(mask, none())
    assert len(coded) == 16 + 4 + 8 + 800
    assert torch.equal(decode(coded), mask)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("n_values", [0, 1, 100])
def test_the_extremes_of_a_type_survive(dtype: torch.dtype, n_values: int) -> None:
    limits = torch.iinfo(dtype)
    values = torch.tensor([limits.min, limits.max] * n_values, dtype=dtype)
    back = decode(encode(values, none()))
    assert back.dtype == dtype
    assert torch.equal(back, values)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9), st.integers(1, 50))
def test_any_integers_come_back(some: list[int], repeats: int) -> None:
    values = torch.tensor(some, dtype=torch.int64).repeat(repeats)
    assert torch.equal(decode(encode(values, none())), values)


@pytest.mark.parametrize("value", [False, True])
def test_masks_of_one_value_come_back(value: bool) -> None:
    for n_values in (0, 1, 7, 1000):
        mask = torch.full((n_values,), value)
        assert torch.equal(decode(encode(mask, none())), mask)
