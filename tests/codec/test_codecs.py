"""The codecs as values, their public names, and the header byte by byte."""

from __future__ import annotations

import pytest
import torch

import edgeweave.codec
from edgeweave.codec import Codec, blockfloat, encode, none, truncate, uniform
from edgeweave.core.errors import ConfigError, WireError


def test_public_names_are_these() -> None:
    assert edgeweave.codec.__all__ == [
        "Codec",
        "CodecName",
        "blockfloat",
        "decode",
        "encode",
        "encode_with_feedback",
        "none",
        "truncate",
        "uniform",
    ]


@pytest.mark.parametrize("make", [truncate, uniform, blockfloat])
@pytest.mark.parametrize("bits", [1, 17, 0, -8])
def test_bits_are_two_to_sixteen(make: type, bits: int) -> None:
    with pytest.raises(ConfigError, match=rf"{make.__name__} takes 2 to 16 bits \(got {bits}\)"):
        make(bits)


@pytest.mark.parametrize("block", [0, 8, 100, 8192, -16])
def test_a_block_is_a_power_of_two(block: int) -> None:
    with pytest.raises(ConfigError, match=rf"power of two from 16 to 4096 values \(got {block}\)"):
        uniform(8, block)


def test_a_codec_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"one of none, .*, blockfloat \(got 'zip'\)"):
        Codec("zip", 8, 64)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="none has no bits and no block"):
        Codec("none", 8)


def test_codecs_are_values_with_a_name() -> None:
    assert uniform(8) == Codec("uniform", 8, 256)
    assert [str(codec) for codec in (none(), truncate(4, 32))] == ["none", "truncate(4, 32)"]


def test_the_header_is_the_one_described() -> None:
    coded = bytes(encode(torch.linspace(0, 1, 600).reshape(3, 200).half(), truncate(6, 128)))
    assert coded[:12] == b"EWC" + bytes([1, 1, 1, 6, 7, 0, 2, 0, 0])
    assert coded[16:24] == (3).to_bytes(4, "little") + (200).to_bytes(4, "little")


@pytest.mark.parametrize(
    "tensor", [torch.zeros(2, dtype=torch.complex64), torch.zeros((1,) * 17)], ids=["type", "rank"]
)
def test_what_no_frame_holds_is_not_coded(tensor: torch.Tensor) -> None:
    with pytest.raises(WireError, match="a coded tensor has"):
        encode(tensor, none())
