"""Rounding at random has no bias; rounding to nearest is deterministic."""

from __future__ import annotations

import math

import pytest
import torch

from edgeweave.codec import Codec, blockfloat, decode, encode, truncate, uniform
from edgeweave.core.errors import ConfigError

from .bounds import allowed

CODECS = [make(bits) for make in (truncate, uniform, blockfloat) for bits in (2, 3, 4, 8, 12)]
N_SEEDS = 300
N_VALUES = 1024
FALSE_ALARM = 1e-9
"""The probability that one of these tests fails though rounding is unbiased, seeds being drawn."""


def values() -> torch.Tensor:
    return torch.randn(N_VALUES, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_the_mean_of_many_roundings_is_the_value(codec: Codec) -> None:
    # Each error lies between two neighbouring levels, so Hoeffding's inequality bounds the mean of
    # n independent ones in units of their distance: P(|mean| > t) <= 2 exp(-2 n t^2).
    x = values()
    distance = allowed(x, codec, at_random=True)
    errors = torch.zeros(N_VALUES, dtype=torch.float64)
    for seed in range(N_SEEDS):
        errors += (decode(encode(x, codec, seed=seed)).double() - x.double()) / distance
    of_one = math.sqrt(math.log(2 * N_VALUES / FALSE_ALARM) / (2 * N_SEEDS))
    of_all = math.sqrt(math.log(2 / FALSE_ALARM) / (2 * N_SEEDS * N_VALUES))
    assert float((errors / N_SEEDS).abs().max()) < of_one + 2**-10
    assert abs(float(errors.mean() / N_SEEDS)) < of_all + 2**-10


def test_the_same_test_finds_the_bias_of_rounding_to_nearest() -> None:
    x = values()
    error = (decode(encode(x, uniform(2))) - x) / allowed(x, uniform(2), at_random=True)
    limit = math.sqrt(math.log(2 * N_VALUES / FALSE_ALARM) / (2 * N_SEEDS))
    assert float(error.abs().max()) > limit


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_equal_seeds_give_equal_bytes_and_others_others(codec: Codec) -> None:
    x = values()
    assert encode(x, codec, seed=1) == encode(x, codec, seed=1)
    assert encode(x, codec, seed=1) != encode(x, codec, seed=2)
    assert encode(x, codec) == encode(x, codec)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"0 or more \(got -1\)"):
        encode(values(), uniform(8), seed=-1)


def test_truncate_with_two_bits_keeps_sign_and_zero_only() -> None:
    x = values()
    back = decode(encode(x, truncate(2)))
    for block in back.split(256):
        assert len(block.abs().unique()) <= 2
