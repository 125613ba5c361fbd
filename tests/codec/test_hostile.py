"""Damaged or malicious bytes are refused before memory is taken for them; nothing crashes."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator

import pytest
import torch

from edgeweave.codec import blockfloat, decode, encode, none, truncate, uniform
from edgeweave.core.errors import WireError

N_DAMAGED = 10_000
MOST_EXPANSION = 2048
ROOM = 4096
SLOPE = torch.linspace(0.001, 1, 1024)


def originals() -> list[bytes]:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(3, 200, generator=generator)
    broken = dense.clone()
    broken[1, 5] = torch.nan
    ids = torch.randint(0, 500, (300,), generator=generator)
    tensors = [dense, dense.relu(), broken, dense.half(), dense.relu().bfloat16()]
    codecs = [none(), truncate(6, 64), uniform(3, 64), uniform(11, 64), blockfloat(8)]
    coded = [encode(tensor, codec) for tensor in tensors for codec in codecs]
    coded += [encode(each, none()) for each in (ids, ids > 9, torch.zeros(9000), ids.double())]
    return [bytes(each) for each in coded]


def sealed(data: bytes | bytearray) -> bytes:
    """With the checksum of what it says now."""
    checksum = zlib.crc32(data[16:], zlib.crc32(data[:12]))
    return bytes(data[:12]) + struct.pack("<I", checksum) + bytes(data[16:])


def damaged(rng: random.Random) -> Iterator[bytes]:
    """Bytes changed, cut off, added, moved; more often in the header than behind it."""
    found = originals()
    while True:
        data = bytearray(rng.choice(found))
        kind = rng.randrange(4)
        if kind == 0:
            data = data[: rng.randrange(len(data))]
        elif kind == 1:
            data += rng.randbytes(rng.randint(1, 9))
        else:
            for _ in range(rng.randint(1, 4)):
                end = 24 if kind == 2 else len(data)
                data[rng.randrange(min(end, len(data)))] ^= 1 << rng.randrange(8)
        if bytes(data) not in found:
            yield bytes(data)


@pytest.fixture
def largest_taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of the largest tensor that was allocated, in a list of one."""
    largest = [0]
    empty = torch.empty

    def counted(*args: object, **kwargs: object) -> torch.Tensor:
        tensor: torch.Tensor = empty(*args, **kwargs, device="meta")
        largest[0] = max(largest[0], tensor.nbytes)
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", counted)
    return largest


def test_ten_thousand_damaged_payloads_are_all_refused(largest_taken: list[int]) -> None:
    payloads = damaged(random.Random(1))
    for _ in range(N_DAMAGED):
        with pytest.raises(WireError):
            decode(next(payloads))
    assert largest_taken == [0]


def test_ten_thousand_with_a_right_checksum_are_refused_or_small(largest_taken: list[int]) -> None:
    payloads = damaged(random.Random(2))
    n_refused = 0
    for _ in range(N_DAMAGED):
        data = next(payloads)
        largest_taken[0] = 0
        try:
            decode(sealed(data) if len(data) >= 16 else data)
        except WireError:
            n_refused += 1
            assert largest_taken == [0]
        assert largest_taken[0] <= MOST_EXPANSION * len(data) + ROOM
    assert N_DAMAGED // 2 < n_refused < N_DAMAGED


def changed(offset: int, value: bytes, data: bytes = b"") -> bytes:
    data = data or bytes(encode(SLOPE, uniform(8)))
    return sealed(data[:offset] + value + data[offset + len(value) :])


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"", "at least 16 bytes"),
        (changed(0, b"PNG"), r"begins with b'EWC' \(got b'PNG'\)"),
        (changed(3, b"\x02"), r"has version 1 \(got 2\)"),
        (changed(0, b"EWC")[:-1], "its checksum is wrong"),
        (changed(4, b"\x05"), "known codings, dtypes and flags .coding 5"),
        (changed(5, b"\x0a"), "known codings, dtypes and flags .*dtype 10"),
        (changed(8, b"\x02"), "zeros left out 2"),
        (changed(9, b"\x11"), "17 dimensions"),
        (changed(10, b"\x01"), "reserved 1"),
        (changed(6, b"\x01"), "fit the coding .coding uniform, 1 bits, block 256"),
        (changed(6, b"\x11"), "17 bits, block 256"),
        (changed(7, b"\x03"), "block 8"),
        (changed(7, b"\x0d"), "block 8192"),
        (changed(7, b"\xff"), "fit the coding"),
        (changed(5, b"\x07"), "torch.int64"),
        (changed(4, b"\x00"), "fit the coding .coding raw, 8 bits"),
        (changed(16, b"\xff\xff\xff\xff"), "as long as its header says .at byte 20 it needs"),
        (changed(16, b"\x00\x03\x00\x00"), "bytes too many"),
        (changed(24, struct.pack("<f", -1.0)), "step is 0 or more"),
        (changed(20, struct.pack("<f", float("inf"))), "are finite numbers"),
        (changed(20, struct.pack("<2f", 3e38, 1e37)), "are finite numbers"),
        (changed(24, struct.pack("<f", float("nan"))), "as long as its header says"),
        (changed(20, b"\xf8", bytes(encode(SLOPE, blockfloat(8)))), "all its values below 2..127"),
        (changed(20, b"\xf8", bytes(encode(SLOPE, truncate(8)))), "all its values below 2..127"),
    ],
)
def test_a_broken_rule_is_named(data: bytes, rule: str) -> None:
    with pytest.raises(WireError, match=rule):
        decode(data)


def test_a_shape_that_no_memory_holds_is_refused() -> None:
    head = bytes(encode(torch.zeros(0, 1, 1), none()))
    with pytest.raises(WireError, match="fits in memory"):
        decode(changed(20, b"\xff" * 8, head))


def test_integers_beyond_their_type_are_refused() -> None:
    coded = bytes(encode(torch.arange(100, dtype=torch.int8).repeat(9), none()))
    with pytest.raises(WireError, match=r"integers fit their dtype \(100 to 199 as torch.int8\)"):
        decode(changed(20, struct.pack("<q", 100), coded))


def test_a_bool_is_zero_or_one() -> None:
    coded = bytes(encode(torch.tensor([True]), none()))
    with pytest.raises(WireError, match="a bool is 0 or 1"):
        decode(changed(20, b"\x02", coded))


@pytest.mark.parametrize("offset", [20, 21, 29])
def test_a_map_that_marks_what_is_not_there_is_refused(offset: int) -> None:
    values = torch.zeros(100)
    values[[3, 70]] = 1.0
    coded = bytearray(encode(values, none()))
    assert coded[20] == 0b11
    coded[offset] = {20: 0b111, 21: 0, 29: 0x80}[offset]
    if offset == 29:
        coded[36] = 0x80
    with pytest.raises(WireError):
        decode(sealed(coded))


@pytest.mark.parametrize("into", [torch.zeros(4), torch.zeros(2, 2, dtype=torch.float16)])
def test_a_tensor_of_another_shape_or_type_is_not_filled(into: torch.Tensor) -> None:
    with pytest.raises(WireError, match="decoded into one of its own dtype and shape"):
        decode(encode(torch.ones(2, 2), none()), into=into)
    assert (into == 0).all()
