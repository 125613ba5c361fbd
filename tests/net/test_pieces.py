"""Frames cut in pieces come back whole, or not at all."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeweave.core.errors import WireError
from edgeweave.core.version import PROTOCOL_VERSION
from edgeweave.net.frame import Frame, FrameHeader, encode
from edgeweave.net.pieces import MOST_UNFINISHED, PIECE_BYTES, Assembler, chunks, split

from .conftest import make_frame


def cut(frame: Frame, sender: int = 1, number: int = 0) -> list[tuple[bytes, bytes]]:
    encoded = encode(frame)
    return list(split(encoded.header, encoded.views, sender=sender, number=number))


def large(device: str = "a", pieces: int = 3) -> Frame:
    return make_frame(device, x=torch.arange(PIECE_BYTES * (pieces - 1) // 8 + 1))


class Desk:
    """An assembler, what it let through and what it dropped."""

    def __init__(self, limit_bytes: int = 1 << 24) -> None:
        self.headers: list[FrameHeader] = []
        self.dropped: list[str] = []
        self.assembler = Assembler(
            limit_bytes,
            self.headers.append,
            on_dropped=lambda error: self.dropped.append(str(error)),
        )

    def add_all(self, pieces: list[tuple[bytes, bytes]]) -> list[Frame]:
        added = (self.assembler.add(*piece) for piece in pieces)
        return [frame for frame in added if frame is not None]


@given(st.lists(st.integers(0, 3 * PIECE_BYTES), max_size=6))
@settings(max_examples=50, deadline=None)
def test_chunks_are_the_concatenation_in_full_pieces(sizes: list[int]) -> None:
    data = [bytes([i + 1]) * size for i, size in enumerate(sizes)]
    runs = list(chunks(memoryview(part) for part in data))
    assert b"".join(runs) == b"".join(data)
    assert all(len(run) == PIECE_BYTES for run in runs[:-1])
    assert len(runs) == max(1, -(-sum(sizes) // PIECE_BYTES))


@given(st.lists(st.integers(0, 60_000), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_a_frame_of_any_size_comes_back_whole(lengths: list[int]) -> None:
    tensors = {f"t{i}": torch.arange(length) for i, length in enumerate(lengths)}
    frame = make_frame(**tensors)
    desk = Desk()
    (back,) = desk.add_all(cut(frame))
    assert back.header == frame.header
    assert all(map(torch.equal, back.tensors, frame.tensors))
    assert desk.assembler.n_unfinished == 0


@pytest.mark.parametrize("n_bytes", [0, 1, PIECE_BYTES])
def test_a_small_frame_is_one_piece(n_bytes: int) -> None:
    pieces = cut(make_frame(x=torch.zeros(n_bytes, dtype=torch.uint8)))
    assert len(pieces) == 1
    assert len(Desk().add_all(pieces)) == 1


@given(st.permutations(range(6)))
@settings(max_examples=60, deadline=None)
def test_frames_of_several_senders_interleave(order: list[int]) -> None:
    frames = {1: large("a", 2), 2: large("b", 2), 3: large("c", 2)}
    queues = {sender: cut(frame, sender) for sender, frame in frames.items()}
    desk = Desk()
    done = desk.add_all([queues[slot % 3 + 1].pop(0) for slot in order])
    assert {frame.header.device for frame in done} == {"a", "b", "c"}


def test_two_frames_of_one_sender_may_overtake_each_other() -> None:
    first, second = cut(large(), number=0), cut(large(), number=1)
    desk = Desk()
    assert len(desk.add_all([first[0], second[0], *second[1:], *first[1:]])) == 2


@given(st.permutations(range(4)))
@settings(max_examples=24, deadline=None)
def test_pieces_out_of_order_never_make_a_frame(order: list[int]) -> None:
    pieces = cut(large(pieces=4))
    desk = Desk()
    made, refused = [], 0
    for index in order:
        try:
            made += desk.add_all([pieces[index]])
        except WireError:
            refused += 1
    assert (len(made), refused) == ((1, 0) if order == [0, 1, 2, 3] else (0, 1))
    assert desk.assembler.n_unfinished == 0


def test_the_message_names_sender_kind_and_rule() -> None:
    pieces = cut(large(pieces=4))
    desk = Desk()
    desk.add_all(pieces[:1])
    with pytest.raises(
        WireError,
        match=r"frame 'activation' from 'a': pieces come in order \(expected piece 1, got 2\)",
    ):
        desk.add_all([pieces[2]])


def test_a_piece_of_a_frame_nobody_began_is_refused_once() -> None:
    pieces = cut(large(pieces=4))
    desk = Desk()
    with pytest.raises(WireError, match="a frame begins with its piece 0"):
        desk.add_all([pieces[1]])
    assert desk.add_all(pieces[2:]) == []


def test_a_refused_frame_allocates_nothing_and_its_rest_is_ignored() -> None:
    def refuse(header: FrameHeader) -> None:
        raise WireError(f"no {header.kind} is expected")

    assembler = Assembler(1 << 24, refuse, on_dropped=pytest.fail)
    pieces = cut(large())
    with pytest.raises(WireError, match="no activation is expected"):
        assembler.add(*pieces[0])
    assert [assembler.add(*piece) for piece in pieces[1:]] == [None, None]
    assert assembler.n_unfinished == 0


def test_a_frame_above_the_limit_is_refused_before_anyone_expects_it() -> None:
    desk = Desk(limit_bytes=1000)
    with pytest.raises(WireError, match="a payload here is at most 1000 B"):
        desk.add_all(cut(large()))
    assert desk.headers == []


def test_a_sender_that_starts_anew_loses_its_unfinished_frames() -> None:
    desk = Desk()
    desk.add_all(cut(large(), sender=1)[:1])
    assert len(desk.add_all(cut(large(), sender=2))) == 1
    assert desk.dropped == [
        "frame 'activation' from 'a': dropped unfinished, 64000 of 128008 bytes had come "
        "('a' started anew)."
    ]
    assert desk.assembler.n_unfinished == 0


def test_one_frame_too_many_displaces_the_oldest() -> None:
    desk = Desk()
    begun = [cut(large(), number=number) for number in range(MOST_UNFINISHED + 1)]
    for pieces in begun:
        desk.add_all(pieces[:1])
    assert desk.assembler.n_unfinished == MOST_UNFINISHED
    assert len(desk.dropped) == 1
    assert len(desk.add_all(begun[-1][1:])) == 1


def test_a_frame_begins_once() -> None:
    pieces = cut(large())
    desk = Desk()
    desk.add_all(pieces[:1])
    with pytest.raises(WireError, match="its piece 0 came again"):
        desk.add_all(pieces[:1])


def test_too_many_senders_displace_the_first() -> None:
    desk = Desk()
    for sender in range(300):
        desk.add_all(cut(large(f"device-{sender}"), sender=sender)[:1])
    assert desk.assembler.n_unfinished == 256
    assert "too many senders" in desk.dropped[0]


@pytest.mark.parametrize(
    ("attachment", "rule"),
    [
        (b"", "a piece begins with EW"),
        (b"EW", "a piece begins with EW"),
        (b"XX" + bytes(22), "a piece begins with EW"),
        (b"EW" + bytes([PROTOCOL_VERSION + 1]) + bytes(21), "both sides speak the same protocol"),
    ],
)
def test_an_alien_piece_is_refused(attachment: bytes, rule: str) -> None:
    with pytest.raises(WireError, match=rule):
        Desk().assembler.add(attachment, b"")


@pytest.mark.parametrize("chunk", [b"", bytes(PIECE_BYTES + 1), bytes(PIECE_BYTES)])
def test_a_piece_stays_within_its_frame(chunk: bytes) -> None:
    pieces = cut(large(pieces=2))
    desk = Desk()
    desk.add_all(pieces[:1])
    with pytest.raises(WireError, match="a piece holds 1 to 64000 bytes and ends within"):
        desk.assembler.add(pieces[1][0], chunk)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_attachments_are_no_crash(data: st.DataObject) -> None:
    desk = Desk(limit_bytes=1 << 20)
    pieces = cut(large())
    for attachment, chunk in pieces:
        raw = bytearray(attachment)
        if data.draw(st.booleans()):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        try:
            desk.assembler.add(bytes(raw), chunk)
        except WireError:
            continue
