"""Zeros cost less than values, and nothing where they are not worth saying."""

from __future__ import annotations

import pytest
import torch

from edgeweave.codec import Codec, blockfloat, decode, encode, none, truncate, uniform

CODECS = [none(), truncate(8), uniform(4), blockfloat(6)]


def relu(n_values: int) -> torch.Tensor:
    return torch.relu(torch.randn(n_values, generator=torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_zeros_cost_one_bit_each(codec: Codec, dtype: torch.dtype) -> None:
    values = relu(40_000).to(dtype)
    bits = codec.bits or 8 * dtype.itemsize
    coded = encode(values, codec, seed=1)
    assert len(coded) * 8 / 40_000 < 1.1 + 0.5 * bits + 0.3
    assert (decode(coded)[values == 0] == 0).all()


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_rows_of_zeros_cost_a_bit_for_each_64(codec: Codec) -> None:
    values = torch.zeros(64_000)
    assert len(encode(values, codec)) == 16 + 4 + 1000 // 8
    values[128:192] = 1.0 + relu(64)
    assert len(encode(values, codec)) <= 16 + 4 + 1000 // 8 + 8 + 256


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_leaving_zeros_out_changes_no_bound_of_the_others(codec: Codec) -> None:
    values = relu(5_003)
    dense = values[values != 0]
    back = decode(encode(values, codec))
    assert torch.equal(back[values != 0], decode(encode(dense, codec)))


def test_few_zeros_are_values_like_others() -> None:
    values = torch.randn(4096, generator=torch.Generator().manual_seed(3))
    plain = len(encode(values, uniform(8)))
    values[::10] = 0
    assert len(encode(values, uniform(8))) == plain


def test_minus_zero_is_not_left_out() -> None:
    values = torch.zeros(256)
    values[5] = -0.0
    back = decode(encode(values, none()))
    assert torch.equal(torch.signbit(back), torch.signbit(values))
