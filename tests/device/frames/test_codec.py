"""Frames coded and decoded again: equal messages are equal bytes, damaged ones take no memory."""

from __future__ import annotations

import random
import struct
import zlib

import msgspec
import numpy as np
import pytest
import torch

from edgeweave.codec import Codec, blockfloat, decode, encode, none, truncate, uniform
from edgeweave.core.errors import WireError
from edgeweave.device import as_mapping
from edgeweave.device.frames.codec import (
    MOST_OVERHEAD_BYTES,
    FrameCoding,
    decoded_frame,
    encoded_frame,
    message_seed,
)
from edgeweave.net import Frame, payload_bytes
from edgeweave.net.frame import decode as read_frame
from edgeweave.net.frame import decode_header
from edgeweave.net.frame import encode as write_frame
from tests.device.stages.examples import frame

N_DAMAGED = 2000
GENERATOR = torch.Generator().manual_seed(0)
TENSORS = {
    "x": torch.randn(4, 300, generator=GENERATOR),
    "half": torch.randn(4, 65, generator=GENERATOR).half(),
    "ids": torch.arange(60).reshape(4, 15),
    "kept": torch.rand(4, 40, generator=GENERATOR) > 0.5,
    "nothing": torch.empty(4, 0),
    "exact": torch.randn(4, generator=GENERATOR).double(),
}
PLAIN = frame("activation", 0, tensors=TENSORS, samples=4)
SPECS = PLAIN.header.tensors
CODINGS = [
    FrameCoding(codec, seed, deflate=deflate)
    for codec in (uniform(8), blockfloat(4), truncate(12), none())
    for seed, deflate in ((None, False), (7, True))
]


def over_the_wire(sent: Frame) -> Frame:
    """What a receiver makes of it."""
    encoded = write_frame(sent)
    return read_frame(decode_header(encoded.header), b"".join(encoded.views))


def bytes_of(sent: Frame) -> bytes:
    return b"".join(write_frame(sent).views)


@pytest.mark.parametrize("coding", CODINGS, ids=str)
def test_a_coded_frame_arrives_as_what_its_codec_makes_of_its_tensors(coding: FrameCoding) -> None:
    coded = encoded_frame(PLAIN, coding)
    assert coded.header.codec == "edgeweave"
    assert {(spec.dtype, len(spec.shape)) for spec in coded.header.tensors} == {("uint8", 1)}
    found = decoded_frame(over_the_wire(coded), SPECS)
    assert found.header == PLAIN.header
    for index, (name, tensor) in enumerate(as_mapping(found).items()):
        seed = None if coding.seed is None else coding.seed + index
        expected = decode(encode(TENSORS[name], coding.codec, seed=seed))
        assert torch.equal(tensor, expected)
        exact = name in {"ids", "kept", "nothing", "exact"} or coding.codec == none()
        assert torch.equal(tensor, TENSORS[name]) == exact


@pytest.mark.parametrize("coding", CODINGS, ids=str)
@pytest.mark.parametrize("name", [*TENSORS, "scalar", "sixteen dimensions"])
def test_no_tensor_grows_by_more_than_is_allowed_for(name: str, coding: FrameCoding) -> None:
    more = {"scalar": torch.tensor(0.5), "sixteen dimensions": torch.rand((1,) * 15 + (3,))}
    plain = frame("gradient", 0, tensors={name: (TENSORS | more)[name]})
    coded = encoded_frame(plain, coding)
    most = payload_bytes(plain.header.tensors) + MOST_OVERHEAD_BYTES
    assert payload_bytes(coded.header.tensors) <= most
    assert torch.equal(
        decoded_frame(coded, plain.header.tensors).tensors[0],
        decode(encode(plain.tensors[0], coding.codec, seed=coding.seed)),
    )


def test_fewer_bits_are_fewer_bytes() -> None:
    sizes = [
        payload_bytes(encoded_frame(PLAIN, FrameCoding(uniform(bits))).header.tensors)
        for bits in (16, 8, 4)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] < 0.8 * payload_bytes(SPECS)
    assert sizes[2] < 0.6 * sizes[0]


def test_an_empty_frame_is_coded_too() -> None:
    empty = frame("gradient", 2, samples=4)
    assert decoded_frame(encoded_frame(empty, FrameCoding(uniform(8))), ()).header == empty.header


def test_a_frame_may_bring_fewer_tensors_than_are_known_and_in_its_own_order() -> None:
    sent = frame("gradient", 0, tensors={"half": TENSORS["half"], "x": TENSORS["x"]})
    found = decoded_frame(encoded_frame(sent, FrameCoding(none())), SPECS)
    assert list(as_mapping(found)) == ["half", "x"]
    assert found.header == sent.header


def test_equal_messages_are_equal_bytes_and_others_are_not() -> None:
    def sent(seed: int | None, codec: Codec = uniform(6)) -> bytes:  # noqa: B008
        return bytes_of(encoded_frame(PLAIN, FrameCoding(codec, seed)))

    assert sent(3) == sent(3)
    assert sent(None) == sent(None)
    assert len({sent(None), sent(3), sent(4), sent(3, uniform(7))}) == 4


def test_tensors_of_a_frame_are_not_rounded_alike() -> None:
    twice = frame("gradient", 0, tensors={"a": TENSORS["x"], "b": TENSORS["x"]})
    at_random = encoded_frame(twice, FrameCoding(uniform(4), 9)).tensors
    to_nearest = encoded_frame(twice, FrameCoding(uniform(4))).tensors
    assert torch.equal(*to_nearest)
    assert not torch.equal(*at_random)


def test_the_seed_of_a_message_is_its_own_and_the_same_everywhere() -> None:
    message = (3, 14, 2, 1, 0)
    assert message_seed(*message) == message_seed(*message) == 252180899644145
    changed = {
        message_seed(*(value + (index == place) for index, value in enumerate(message)))
        for place in range(5)
    }
    around = {
        message_seed(run, step, microbatch, source, target)
        for run in (0, 1)
        for step in range(12)
        for microbatch in range(12)
        for source in range(4)
        for target in range(4)
    }
    assert len(changed | {message_seed(*message)}) == 6
    assert len(around) == 2 * 12 * 12 * 4 * 4
    assert all(0 <= seed < 2**48 for seed in around)


SMALL = frame("activation", 0, tensors={"x": TENSORS["x"]}, samples=4)
CODED = encoded_frame(SMALL, FrameCoding(uniform(8)))


def with_bytes(data: bytes) -> Frame:
    """The coded frame with something else in it."""
    tensors = {"x": torch.from_numpy(np.array(bytearray(data), np.uint8))}
    changed = frame("activation", 0, tensors=tensors, samples=4)
    return Frame(msgspec.structs.replace(changed.header, codec="edgeweave"), changed.tensors)


@pytest.mark.parametrize(
    "sent",
    [
        TENSORS["x"].double(),
        TENSORS["x"].half(),
        TENSORS["x"][:3],
        TENSORS["x"].reshape(300, 4),
        TENSORS["x"].reshape(1, 4, 300),
        torch.zeros(4, 1 << 22),
    ],
    ids=["longer floats", "shorter floats", "fewer", "turned", "deeper", "larger"],
)
def test_another_dtype_or_shape_than_the_declared_one_is_refused(sent: torch.Tensor) -> None:
    coded = bytes(encode(sent, uniform(8)))
    rule = "^x in 'activation' from pi-a: .* decoded into one of its own dtype and shape"
    with pytest.raises(WireError, match=rule):
        decoded_frame(with_bytes(coded), SMALL.header.tensors)


def test_thousands_of_damaged_frames_are_refused_and_named() -> None:
    rng, whole = random.Random(3), bytes(CODED.tensors[0].numpy())
    deflated = bytes(encode(TENSORS["x"], uniform(4), deflate=True))
    assert deflated[:3] == b"EWZ"
    for number in range(N_DAMAGED):
        original = whole if number % 2 else deflated
        data = bytearray(original)
        if number % 5 == 0:
            data = data[: rng.randrange(len(data))]
        else:
            for _ in range(rng.randint(1, 3)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if bytes(data) != original:
            with pytest.raises(WireError, match=r"^x in 'activation' from pi-a: "):
                decoded_frame(with_bytes(bytes(data)), SMALL.header.tensors)


@pytest.mark.parametrize("length", [1200 * 4 + 129, 64 << 20, 2**63])
def test_a_bomb_in_a_frame_is_not_set_off(length: int) -> None:
    bomb = b"EWZ\x01" + struct.pack("<Q", length) + zlib.compress(bytes(1 << 24), 9)
    with pytest.raises(WireError, match="from pi-a: a deflated tensor has at most 4928 bytes"):
        decoded_frame(with_bytes(bomb), SMALL.header.tensors)
