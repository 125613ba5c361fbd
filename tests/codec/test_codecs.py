"""The codecs as values, their public names, and the header byte by byte."""

from __future__ import annotations

import pytest
import torch

import edgeweave.codec
from edgeweave.codec import Codec, blockfloat, encode, none, parse, truncate, uniform
from edgeweave.core.errors import ConfigError, WireError
from tests.codec.bounds import EVERY_CODEC


def test_public_names_are_these() -> None:
    assert edgeweave.codec.__all__ == [
        "PAYLOAD_BYTES",
        "Codec",
        "CodecName",
        "blockfloat",
        "dealt",
        "decode",
        "encode",
        "encode_with_feedback",
        "kept",
        "n_datagrams",
        "none",
        "parse",
        "put_together",
        "row_length",
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


@pytest.mark.parametrize("codec", [none(), uniform(3, 4096), *EVERY_CODEC], ids=str)
def test_a_codec_is_read_from_its_own_name(codec: Codec) -> None:
    assert parse(str(codec)) == codec


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        ("none", none()),
        ("uniform(8)", uniform(8)),
        ("uniform(8,64)", uniform(8, 64)),
        (" uniform( 8 , 64 ) ", uniform(8, 64)),
        ("truncate(16)", truncate(16)),
        ("blockfloat(2, 16)", blockfloat(2, 16)),
    ],
)
def test_a_block_may_be_left_out_and_spaces_do_not_matter(text: str, codec: Codec) -> None:
    assert parse(text) == codec


@pytest.mark.parametrize(
    "text",
    [
        *("", "auto", "uniform", "uniform()", "uniform(8", "uniform 8", "uniform(8)(8)"),
        *("none()", "none(8)", "none(0, 0)", "zip(8)", "Uniform(8)", "uniform(8.0)"),
        *("uniform(-8)", "uniform(8, )", "uniform(,64)", "uniform(8, 64, 2)", "uniform(8)\n"),
        *("uniform(99999)", "uniform(8, 999999)", "uniform(eight)", "Codec(8)", "encode(8)"),
    ],
)
def test_another_text_is_no_codec(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(text)
    assert str(refused.value) == (
        "a codec is none, or truncate, uniform or blockfloat with bits and perhaps a block in "
        f"brackets (got {text!r}). Write uniform(8)."
    )


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("uniform(17)", r"uniform takes 2 to 16 bits \(got 17\)"),
        ("truncate(0)", r"truncate takes 2 to 16 bits \(got 0\)"),
        ("blockfloat(8, 100)", r"power of two from 16 to 4096 values \(got 100\)"),
        ("uniform(8, 0)", r"power of two from 16 to 4096 values \(got 0\)"),
    ],
)
def test_numbers_in_a_text_keep_the_rules_of_codecs(text: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        parse(text)
