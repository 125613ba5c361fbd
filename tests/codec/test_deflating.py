"""The lossless stage: what went in comes out, never larger, and no bytes make it take memory."""

from __future__ import annotations

import random
import struct
import tracemalloc
import zlib
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.codec import Codec, blockfloat, decode, encode, none, truncate, uniform
from edgeweave.codec.deflating import LARGEST_RATIO, deflated, inflated, is_deflated
from edgeweave.core.errors import VersionError, WireError
from tests.codec.bounds import EVERY_CODEC

HEAD_BYTES = 12
N_DAMAGED = 4000
BELL = torch.randn(4096, generator=torch.Generator().manual_seed(0))
TENSORS = {
    "a bell": BELL,
    "mostly zeros": BELL.relu() * (BELL > 1),
    "half": BELL.half().reshape(64, 64),
    "brain": BELL.bfloat16().reshape(2, 2, 1024),
    "double": BELL.double(),
    "a scalar": torch.tensor(3.0),
    "nothing": torch.empty(0, 7),
    "not finite": torch.where(BELL > 2, torch.nan, BELL),
    "integers": torch.arange(3000),
    "truths": BELL > 0,
}


def deflated_by_hand(
    content: bytes, *, length: int | None = None, version: int = 1, behind: bytes = b""
) -> bytes:
    """A payload that says what it likes of its length."""
    announced = len(content) if length is None else length
    head = struct.pack("<3sBQ", b"EWZ", version, announced)
    return head + zlib.compress(content, 9) + behind


def coded(codec: Codec = uniform(6), *, deflate: bool = True) -> bytes:  # noqa: B008
    return bytes(encode(BELL, codec, seed=1, deflate=deflate))


@pytest.mark.parametrize("codec", [none(), *EVERY_CODEC[::4]], ids=str)
@pytest.mark.parametrize("what", TENSORS)
def test_it_changes_no_value_and_makes_nothing_larger(what: str, codec: Codec) -> None:
    tensor = TENSORS[what]
    plain = encode(tensor, codec, seed=5)
    smaller = encode(tensor, codec, seed=5, deflate=True)
    assert len(smaller) <= len(plain)
    assert is_deflated(smaller) == (len(smaller) < len(plain))
    expected = decode(plain)
    into = torch.full_like(tensor, 1)
    for found in (decode(smaller), decode(bytes(smaller), into=into), into):
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert _bits(found) == _bits(expected)


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@given(st.binary(max_size=3000))
def test_any_bytes_come_back_or_stay_as_they_are(data: bytes) -> None:
    found = deflated(memoryview(data))
    assert len(found) <= len(data)
    if is_deflated(memoryview(data)):
        return
    assert (inflated(found, len(data)) if is_deflated(found) else found) == data


@pytest.mark.parametrize("codec", [uniform(8), blockfloat(4), truncate(8)], ids=str)
def test_it_is_worth_its_while_on_values_that_crowd_around_zero(codec: Codec) -> None:
    assert len(coded(codec)) < 0.97 * len(coded(codec, deflate=False))


def test_equal_messages_give_equal_bytes() -> None:
    assert coded() == coded()


def test_what_is_inside_is_announced_as_described() -> None:
    data = coded()
    assert data[:4] == b"EWZ\x01"
    assert struct.unpack_from("<Q", data, 4) == (len(coded(deflate=False)),)
    assert zlib.decompress(data[HEAD_BYTES:]) == coded(deflate=False)


def damaged(rng: random.Random) -> Iterator[bytes]:
    """Bytes changed, cut off, added, moved; more often in the header than behind it."""
    found = [coded(codec) for codec in (uniform(4), uniform(8), blockfloat(6), truncate(8))]
    assert all(is_deflated(memoryview(data)) for data in found)
    while True:
        data = bytearray(rng.choice(found))
        kind = rng.randrange(5)
        if kind == 0:
            data = data[: rng.randrange(len(data))]
        elif kind == 1:
            data += rng.randbytes(rng.randint(1, 9))
        elif kind == 2:
            start = rng.randrange(HEAD_BYTES, len(data))
            data[start : start + 9] = rng.randbytes(9)
        else:
            end = HEAD_BYTES + 4 if kind == 3 else len(data)
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(end)] ^= 1 << rng.randrange(8)
        if bytes(data) not in found:
            yield bytes(data)


@pytest.mark.parametrize("is_known", [True, False], ids=["into", "by its header"])
def test_thousands_of_damaged_payloads_are_refused_in_little_memory(*, is_known: bool) -> None:
    payloads = damaged(random.Random(1))
    into = torch.full_like(BELL, 7.0) if is_known else None
    tracemalloc.start()
    try:
        for _ in range(N_DAMAGED):
            with pytest.raises(WireError):
                decode(next(payloads), into=into)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < 1 << 20
    assert into is None or bool((into == 7.0).all())


def test_thousands_of_streams_with_a_right_checksum_are_refused_too() -> None:
    rng, plain = random.Random(2), coded(deflate=False)
    for _ in range(N_DAMAGED):
        data = bytearray(plain)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if bytes(data) != plain:
            with pytest.raises(WireError):
                decode(deflated_by_hand(bytes(data)))


BOMB = deflated_by_hand(bytes(64 << 20))


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (BOMB, r"at most 16512 bytes inside here \(\d+ bytes announce 67108864\)"),
        (deflated_by_hand(bytes(64 << 20), length=100), r"\(announced: 100 bytes, inside: 101 or"),
        (deflated_by_hand(bytes(64 << 20), length=16512), r"inside: 16513 or more"),
        (deflated_by_hand(b"", length=2**64 - 1), "announce 18446744073709551615"),
        (deflated_by_hand(b"abc", length=16512), r"at most \d+ bytes inside|announced: 16512"),
    ],
    ids=["a bomb", "a bomb that lies", "one as long as may be", "without end", "a short one"],
)
def test_a_bomb_is_not_set_off(data: bytes, rule: str) -> None:
    into = torch.empty_like(BELL)
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match=rule):
            decode(data, into=into)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < 2 * len(data) + (1 << 17)


def test_a_bomb_for_nobody_takes_no_more_than_its_ratio_allows() -> None:
    lies = deflated_by_hand(bytes(64 << 20), length=LARGEST_RATIO * 9999)
    with pytest.raises(WireError, match=r"inside: \d+ or more"):
        decode(lies)
    greedy = deflated_by_hand(b"x" * 9, length=LARGEST_RATIO * 60)
    with pytest.raises(WireError, match=r"at most \d+ bytes inside here"):
        decode(greedy)


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (coded()[:11], r"at least 12 bytes \(it has 11\)"),
        (coded()[:12], "as long as its header says"),
        (coded()[:-1], r"inside: \d+ or more"),
        (coded() + b"\0", "behind it: 1"),
        (deflated_by_hand(b"12345", length=6), r"announced: 6 bytes, inside: 5, behind it: 0"),
        (deflated_by_hand(b"12345", length=4), r"announced: 4 bytes, inside: 5"),
        (b"EWZ\x01" + (9).to_bytes(8, "little") + b"garbage!", "arrives as it was sent"),
        (deflated_by_hand(coded(deflate=False), behind=b"more"), "behind it: 4"),
        (deflated_by_hand(coded()), "a coded tensor begins with b'EWC' .got b'EWZ'"),
        (deflated_by_hand(b"EWC"), "at least 16 bytes"),
    ],
)
def test_a_broken_rule_is_named(data: bytes, rule: str) -> None:
    with pytest.raises(WireError, match=rule):
        decode(data)


def test_a_stream_that_needs_a_dictionary_is_refused() -> None:
    press = zlib.compressobj(9, zdict=b"a dictionary that nobody here has")
    stream = press.compress(b"a dictionary") + press.flush()
    with pytest.raises(WireError, match="arrives as it was sent"):
        decode(b"EWZ\x01" + (12).to_bytes(8, "little") + stream)


def test_another_version_is_named() -> None:
    with pytest.raises(VersionError, match=r"has version 1 \(got 2\)"):
        decode(deflated_by_hand(coded(deflate=False), version=2))
