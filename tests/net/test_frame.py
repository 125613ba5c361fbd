"""The frame format: round trips without copies, and nothing malformed gets through."""

from __future__ import annotations

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeweave.core.errors import WireError
from edgeweave.net.frame import (
    ALIGNMENT_BYTES,
    Frame,
    FrameHeader,
    TensorSpec,
    check_header,
    decode,
    decode_header,
    encode,
    payload_bytes,
    specs_of,
)

from .conftest import make_frame

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
]
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


def travel(frame: Frame) -> Frame:
    encoded = encode(frame)
    return decode(decode_header(encoded.header), bytearray(b"".join(encoded.views)))


def header(*specs: TensorSpec) -> FrameHeader:
    return FrameHeader("gradient", "pi-1", 0, 1, 2, 3, specs)


@given(st.lists(st.tuples(st.sampled_from(DTYPES), SHAPES), max_size=5))
def test_every_dtype_and_shape_survives_the_trip(kinds: list) -> None:
    tensors = {
        f"t{i}": (torch.rand(shape) * 100).to(dtype) for i, (dtype, shape) in enumerate(kinds)
    }
    frame = make_frame(**tensors)
    back = travel(frame)
    assert back.header == frame.header
    for sent, received in zip(frame.tensors, back.tensors, strict=True):
        assert received.dtype == sent.dtype
        assert torch.equal(received, sent)


def test_a_contiguous_cpu_tensor_is_not_copied_when_sent() -> None:
    tensor = torch.zeros(8)
    (view,) = encode(make_frame(x=tensor)).views
    tensor[0] = 1.0
    assert bytes(view[:4]) == b"\x00\x00\x80\x3f"


def test_a_received_tensor_views_the_buffer_and_is_writable() -> None:
    encoded = encode(make_frame(x=torch.zeros(8)))
    buffer = bytearray(b"".join(encoded.views))
    (tensor,) = decode(decode_header(encoded.header), buffer).tensors
    tensor[0] = 1.0
    assert buffer[:4] == b"\x00\x00\x80\x3f"


def test_read_only_bytes_become_a_writable_tensor() -> None:
    encoded = encode(make_frame(x=torch.zeros(8)))
    (tensor,) = decode(decode_header(encoded.header), b"".join(encoded.views)).tensors
    tensor += 1
    assert torch.equal(tensor, torch.ones(8))


def test_strided_and_differentiable_tensors_travel_by_value() -> None:
    tensor = torch.arange(12.0, requires_grad=True).reshape(3, 4).t()
    assert torch.equal(travel(make_frame(x=tensor)).tensors[0], tensor.detach())


def test_each_tensor_begins_aligned() -> None:
    frame = make_frame(a=torch.ones(3, dtype=torch.uint8), b=torch.ones(5), c=torch.ones(2))
    encoded = encode(frame)
    assert sum(len(view) for view in encoded.views) == payload_bytes(frame.header.tensors) == 136
    buffer = bytearray(b"".join(encoded.views))
    base = torch.frombuffer(buffer, dtype=torch.uint8).data_ptr()
    offsets = [tensor.data_ptr() - base for tensor in decode(frame.header, buffer).tensors]
    assert offsets == [0, ALIGNMENT_BYTES, 2 * ALIGNMENT_BYTES]


def test_scalars_travel_beside_tensors() -> None:
    sent = FrameHeader("result", "pi-1", 2, 1, 0, 0, (), {"loss": 0.25, "samples": 32.0})
    assert travel(Frame(sent)).header.scalars == {"loss": 0.25, "samples": 32.0}


def test_a_header_that_does_not_fit_its_tensors_is_not_sent() -> None:
    frame = Frame(header(TensorSpec("x", "float32", (3,))), (torch.ones(2),))
    with pytest.raises(
        WireError,
        match=r"frame 'gradient' from 'pi-1': a header describes .*"
        r"x float32 \[3\]; present: x float32 \[2\]",
    ):
        encode(frame)
    with pytest.raises(WireError, match="present: none, 0 in all"):
        encode(Frame(header(TensorSpec("x", "float32", (3,)))))


def test_a_complex_tensor_has_no_place_in_a_frame() -> None:
    with pytest.raises(WireError, match=r"tensor 'x' has torch\.complex64"):
        specs_of({"x": torch.ones(1, dtype=torch.complex64)})


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        (TensorSpec("x", "float8", (1,)), "a dtype is one of .* has 'float8'"),
        (TensorSpec("x", "object", (1,)), "a dtype is one of .* has 'object'"),
        (TensorSpec("x", "int8", (-1,)), r"lengths of 0 or more .* has \(-1,\)"),
        (TensorSpec("x", "int8", (-1, -1)), "lengths of 0 or more"),
        (TensorSpec("x", "int8", (2**62, 4)), "fits in memory"),
        (TensorSpec("x", "int8", (0, 2**62, 2**62)), "fits in memory"),
        (TensorSpec("x", "int8", (1,) * 17), "at most 16 dimensions .* has 17"),
        (TensorSpec("x", "int8", (2**20,)), "at most 64.0 KiB .*announces 1.0 MiB"),
    ],
)
def test_an_impossible_tensor_is_refused_by_name(spec: TensorSpec, rule: str) -> None:
    with pytest.raises(WireError, match=f"frame 'gradient' from 'pi-1': .*{rule}"):
        check_header(header(spec), limit_bytes=65_536)


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(WireError, match="'x' comes twice"):
        payload_bytes([TensorSpec("x", "int8", (1,)), TensorSpec("x", "int8", (1,))])


@pytest.mark.parametrize("size", [0, 11, 13])
def test_a_payload_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(WireError, match=f"announced: 12 bytes, present: {size}"):
        decode(header(TensorSpec("x", "float32", (3,))), bytearray(size))


def test_a_bool_is_zero_or_one() -> None:
    with pytest.raises(WireError, match="a bool is 0 or 1"):
        decode(header(TensorSpec("x", "bool", (2,))), bytearray(b"\x01\x02"))


def test_a_codec_nobody_knows_is_refused() -> None:
    encoded = msgspec.msgpack.encode(["k", "d", 0, 0, 0, 0, [], {}, "gzip"])
    with pytest.raises(WireError, match="a frame header is a msgpack array of the known fields"):
        decode_header(encoded)


def test_a_header_of_megabytes_is_refused_on_both_sides() -> None:
    with pytest.raises(WireError, match="at most 256"):
        decode_header(bytes(300_000))
    scalars = {f"value {i}": 0.0 for i in range(20_000)}
    with pytest.raises(WireError, match="Send fewer tensors"):
        encode(Frame(FrameHeader("k", "d", 0, 0, 0, 0, (), scalars)))


def accept_or_refuse(data: bytes, payload: bytes) -> None:
    """Anything from the wire is a frame or a WireError, never a crash."""
    try:
        received = decode_header(data)
        if check_header(received, limit_bytes=1 << 20) == len(payload):
            decode(received, payload)
    except WireError:
        pass


@given(st.binary(max_size=200))
def test_random_bytes_are_no_crash(data: bytes) -> None:
    accept_or_refuse(data, b"")


@settings(max_examples=300)
@given(st.data())
def test_a_mutated_header_is_no_crash(data: st.DataObject) -> None:
    frame = make_frame(x=torch.ones(3, 2), mask=torch.ones(4, dtype=torch.bool))
    encoded = encode(frame)
    raw = bytearray(encoded.header)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    accept_or_refuse(bytes(raw), b"".join(encoded.views))


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(st.lists(JSON_LIKE, max_size=10))
def test_a_header_of_other_types_is_no_crash(fields: list) -> None:
    accept_or_refuse(msgspec.msgpack.encode(fields), b"")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["int8", "float64", "bool", "?"]),
            st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20),
        ),
        max_size=3,
    )
)
def test_absurd_shapes_are_no_crash(kinds: list) -> None:
    specs = [[f"t{i}", dtype, shape] for i, (dtype, shape) in enumerate(kinds)]
    accept_or_refuse(msgspec.msgpack.encode(["k", "d", 0, 0, 0, 0, specs]), b"")
