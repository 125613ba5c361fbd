"""What comes back is within the stated bounds, whatever went in."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeweave.codec import Codec, blockfloat, decode, encode, none, truncate, uniform

from .bounds import EVERY_CODEC, allowed

HALF_ULP = {torch.float32: 2.0**-25, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
ZEROS_LEFT_OUT = 8
"""Where in the header it says so."""
MAKERS = (truncate, uniform, blockfloat)
SOME_CODECS = [make(bits) for make in MAKERS for bits in (2, 5, 8, 12)]


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def wide(n_values: int, seed: int) -> torch.Tensor:
    """Values of forty binades, some of them zero, with a sign."""
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randint(-30, 10, (n_values,), generator=generator)
    values = torch.ldexp(torch.randn(n_values, generator=generator), exponents)
    return torch.where(torch.rand(n_values, generator=generator) < 0.1, 0.0, values)


def assert_within(values: torch.Tensor, codec: Codec, seed: int | None = None) -> None:
    coded = encode(values, codec, seed=seed)
    back = decode(coded)
    assert (back.dtype, back.shape) == (values.dtype, values.shape)
    flat = values.reshape(-1).float()
    coded_values = torch.full_like(flat, True, dtype=torch.bool)
    if coded[ZEROS_LEFT_OUT]:
        coded_values = flat.view(torch.int32) != 0
    bound = torch.zeros(len(flat), dtype=torch.float64)
    if bool(coded_values.any()):
        bound[coded_values] = allowed(flat[coded_values], codec, at_random=seed is not None)
    bound += (flat.double().abs() + bound) * HALF_ULP[values.dtype]
    bound += 2.0**-25 * (values.dtype is torch.float16)
    error = (back.reshape(-1).double() - flat.double()).abs()
    assert bool((error <= bound).all()), (error - bound).max()


@pytest.mark.parametrize("codec", EVERY_CODEC, ids=str)
@pytest.mark.parametrize("seed", [None, 7], ids=["nearest", "at random"])
def test_an_error_is_within_the_bound_of_its_codec(codec: Codec, seed: int | None) -> None:
    assert_within(gaussian(5_011), codec, seed)
    assert_within(wide(3_000, 1), codec, seed)
    assert_within(1000 + gaussian(777) * 1e-3, codec, seed)


@pytest.mark.parametrize("codec", SOME_CODECS, ids=str)
def test_the_bound_holds_where_values_take_several_groups(codec: Codec) -> None:
    assert_within(gaussian(66_011), codec, seed=2)


@pytest.mark.parametrize("codec", SOME_CODECS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_floats_keep_their_type_and_the_bound(codec: Codec, dtype: torch.dtype) -> None:
    assert_within(gaussian(3_000).to(dtype), codec)
    assert_within(gaussian(500).to(dtype), codec, seed=3)


@settings(max_examples=150)
@given(st.data())
def test_any_finite_values_are_within_the_bound(data: st.DataObject) -> None:
    make = data.draw(st.sampled_from(MAKERS))
    codec = make(data.draw(st.integers(2, 16)), 2 ** data.draw(st.integers(4, 9)))
    limit = float(2.0**125)
    numbers = st.floats(-limit, limit, width=32) | st.floats(-1, 1, width=32) | st.just(0.0)
    some = data.draw(st.lists(numbers, min_size=1, max_size=40))
    repeats = data.draw(st.integers(1, 60))
    values = torch.tensor(some, dtype=torch.float32).repeat(repeats)
    assert_within(values, codec, data.draw(st.none() | st.integers(0, 2**32)))


@pytest.mark.parametrize("make", MAKERS)
def test_more_bits_are_more_exact(make: type) -> None:
    values = gaussian(8192)
    losses = [decode(encode(values, make(bits))) - values for bits in range(2, 17)]
    errors = [float(loss.square().mean()) for loss in losses]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("codec", [none(), *EVERY_CODEC], ids=str)
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf, 3e38, -(2.0**126)])
def test_a_block_that_has_no_scale_travels_exactly(codec: Codec, special: float) -> None:
    values = gaussian(3 * 4096 + 5)
    values[[4100, 12_292]] = special
    back = decode(encode(values, codec, seed=1))
    block = max(codec.block, 1)
    for place in (4100, 12_292):
        start = place // block * block
        same = slice(start, min(start + block, len(values)))
        assert torch.equal(back[same].view(torch.int32), values[same].view(torch.int32))
    assert int((~(back.abs() < 2.0**126)).sum()) == 2
    elsewhere = back != special
    assert float((back - values)[elsewhere].nan_to_num(0).abs().max()) <= 8.0


@pytest.mark.parametrize("codec", EVERY_CODEC, ids=str)
def test_denormals_stay_below_what_is_normal(codec: Codec) -> None:
    values = gaussian(600) * 1e-40
    assert_within(values, codec)
    assert float((decode(encode(values, codec, seed=1)) - values).abs().max()) < 2.0**-110


@pytest.mark.parametrize("codec", EVERY_CODEC, ids=str)
@pytest.mark.parametrize("seed", [None, 3])
def test_zeros_and_what_they_share_a_block_with(codec: Codec, seed: int | None) -> None:
    assert torch.equal(decode(encode(torch.zeros(1000), codec, seed=seed)), torch.zeros(1000))
    if codec.name != "uniform":
        few = gaussian(4096)
        few[::20] = 0
        assert (decode(encode(few, codec, seed=seed))[::20] == 0).all()


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize("constant", [1.0, -3.7e-5, 2.0**125])
def test_uniform_keeps_a_constant_exactly(bits: int, constant: float) -> None:
    values = torch.full((1000,), constant)
    assert torch.equal(decode(encode(values, uniform(bits), seed=5)), values)


@pytest.mark.parametrize("bits", range(2, 17))
def test_integers_that_fit_the_levels_are_exact(bits: int) -> None:
    levels = torch.arange(2**bits, dtype=torch.float32)[-4096:] - 2 ** (bits - 1)
    levels = levels.repeat(4096 // len(levels))
    levels[0], levels[1] = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    back = decode(encode(levels, uniform(bits, 4096)))
    assert torch.allclose(back, levels, rtol=2**-20, atol=2**-20)
    signed = levels.clamp(min=1 - 2 ** (bits - 1))
    assert torch.equal(decode(encode(signed, blockfloat(bits, 4096), seed=9)), signed)


@pytest.mark.parametrize("codec", [none(), truncate(8), uniform(3), blockfloat(5)], ids=str)
@pytest.mark.parametrize(
    "shape", [(), (0,), (3, 0, 2), (1,), (7,), (255,), (257,), (3, 5, 7), (32_769,), (2, 1, 32_768)]
)
def test_every_shape_comes_back(codec: Codec, shape: tuple[int, ...]) -> None:
    values = gaussian(*shape)
    back = decode(encode(values, codec))
    assert back.shape == values.shape
    assert torch.allclose(back, values, atol=1.0)
    if codec.name == "none":
        assert torch.equal(back, values)


def test_strided_and_differentiable_tensors_travel_by_value() -> None:
    values = gaussian(64, 65).requires_grad_().t()[::2]
    assert torch.equal(decode(encode(values, none())), values.detach())
    assert torch.equal(
        decode(encode(values, uniform(8))), decode(encode(values.detach().clone(), uniform(8)))
    )


@pytest.mark.parametrize("codec", [none(), uniform(8), truncate(4)], ids=str)
@pytest.mark.parametrize("values", [gaussian(33, 500), torch.relu(gaussian(33, 500))])
def test_decoding_into_a_tensor_fills_it(codec: Codec, values: torch.Tensor) -> None:
    coded = encode(values, codec)
    whole = torch.full((33, 500), 9.0)
    assert decode(coded, into=whole) is whole
    strided = torch.full((500, 33), 9.0).t()
    assert decode(coded, into=strided) is strided
    trained = torch.zeros(33, 500, requires_grad=True)
    assert decode(coded, into=trained) is trained
    assert torch.equal(trained, whole)
    assert torch.equal(whole, decode(coded))
    assert torch.equal(strided, whole)


@pytest.mark.parametrize("name", ["none", "float64"])
def test_what_is_not_lossy_is_equal_bit_for_bit(name: str) -> None:
    values = torch.tensor([0.0, -0.0, math.nan, math.inf, 1e-45, 3.4e38, 0.1]).repeat(99)
    codec = none() if name == "none" else uniform(2)
    values = values if name == "none" else values.double()
    same = torch.int32 if name == "none" else torch.int64
    assert torch.equal(decode(encode(values, codec)).view(same), values.view(same))


@pytest.mark.parametrize("codec", EVERY_CODEC, ids=str)
def test_a_tensor_takes_its_bits_a_scale_a_block_and_a_header(codec: Codec) -> None:
    values = gaussian(10, 4096)
    scale_bytes = 8 if codec.name == "uniform" else 1
    expected = 16 + 2 * 4 + 40_960 * codec.bits // 8 + 40_960 // codec.block * scale_bytes
    assert len(encode(values, codec)) == expected


@pytest.mark.parametrize("values", [gaussian(9), gaussian(3000).fill_(math.nan)])
def test_what_would_not_become_smaller_travels_as_it_is(values: torch.Tensor) -> None:
    coded = encode(values, uniform(16))
    assert len(coded) == 20 + values.nbytes
    assert torch.equal(decode(coded).view(torch.int32), values.view(torch.int32))
