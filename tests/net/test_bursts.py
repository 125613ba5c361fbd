"""Frames that lose rows: which of them arrive over an emulated link, when, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeweave.core.errors import ConfigError
from edgeweave.net import Frame, Links, LinkShape, Priority, Reliability, encode
from edgeweave.net.bursts import N_ENDS, left_of
from edgeweave.net.link_model import HEADER_BYTES, LinkModel

from .conftest import make_frame
from .test_shaped import KEY, World, world_of

ROWS = 40


def burst(n_rows: int = ROWS, width: int = 250) -> Frame:
    """Every row has its number in it, twice."""
    numbers = torch.arange(n_rows, dtype=torch.int32)
    return make_frame(row=numbers, x=numbers[:, None].float().expand(-1, width).contiguous())


def sent(world: World, frame: Frame) -> None:
    world.a.send(KEY, frame, device="b", reliability=Reliability.ROW_TOLERANT)


def received(world: World) -> list[list[int]]:
    """The rows of the frames that came, which are what their numbers say."""
    found = []
    world.settle()
    while not world.inbox.frames.empty():
        numbers, rows = world.inbox.frames.get().tensors
        assert torch.equal(rows, numbers[:, None].float().expand(rows.shape))
        found.append(numbers.tolist())
    return found


def test_rows_are_lost_as_the_link_draws_it_and_the_others_arrive_as_one_frame() -> None:
    shape, seed = LinkShape(1e7, 0.01, loss=0.3), 5
    model = LinkModel(shape, ("a", "b"), seed=seed)
    expected = []
    for _ in range(3):
        lost = model.lose_datagrams(ROWS + N_ENDS)[:ROWS]
        expected.append([number for number in range(ROWS) if not lost[number]])
    assert 10 < len(expected[0]) < ROWS
    with world_of(Links(shape, seed=seed)) as world:
        for _ in range(3):
            sent(world, burst())
            world.wait(0.1)
        assert received(world) == expected
        assert world.b.statistics().frames_received == 3


def test_a_burst_of_nothing_arrives_unless_all_its_datagrams_are_lost() -> None:
    """Its sender has nothing to send, and says so three times."""
    model = LinkModel(LinkShape(loss=0.5), ("a", "b"), seed=3)
    expected = sum(not model.lose_datagrams(N_ENDS).all() for _ in range(100))
    assert 80 < expected < 95
    with world_of(Links(LinkShape(loss=0.5), seed=3)) as world:
        for _ in range(100):
            sent(world, make_frame())
        world.wait(0.1)
        assert len(world.arrived()) == expected


def test_a_receiver_hears_of_a_burst_whose_rows_are_all_lost() -> None:
    fates = np.array([True] * ROWS + [True, False, True])
    left = left_of(burst(), fates)
    assert [list(tensor.shape) for tensor in left.tensors] == [[0], [0, 250]]
    assert [list(spec.shape) for spec in left.header.tensors] == [[0], [0, 250]]


def test_a_burst_takes_of_the_link_what_its_datagrams_take() -> None:
    frame, rate = burst(), 1e6
    header = len(encode(frame).header)
    on_wire = (ROWS + N_ENDS) * (header + HEADER_BYTES) + ROWS * (4 + 1000)
    with world_of(Links(LinkShape(rate, 0.1))) as world:
        sent(world, frame)
        world.wait(on_wire / rate + 0.1 - 0.002)
        assert received(world) == []
        world.wait(0.004)
        assert received(world) == [list(range(ROWS))]


def test_what_is_urgent_passes_a_long_burst() -> None:
    with world_of(Links(LinkShape(1e6))) as world:
        sent(world, burst(900))
        beat = make_frame(row=torch.zeros(1, dtype=torch.int32), x=torch.zeros(1, 1))
        world.a.send(KEY, beat, device="b", priority=Priority.CONTROL)
        world.wait(0.2)
        assert received(world) == [[0]]
        world.wait(1.0)
        assert received(world) == [list(range(900))]


def test_a_burst_is_lost_where_the_link_is_down() -> None:
    with world_of(Links(LinkShape(up=False))) as world:
        sent(world, burst())
        world.reshape(Links())
        world.wait(1.0)
        assert received(world) == []


def test_a_row_of_more_than_a_datagram_is_refused() -> None:
    refused = pytest.raises(ConfigError, match=r"^each row of a row-tolerant frame is one datagram")
    with world_of(Links(LinkShape(1e6))) as world, refused:
        sent(world, burst(width=300))


def test_tensors_with_different_numbers_of_rows_are_refused() -> None:
    frame = make_frame(row=torch.zeros(2), x=torch.zeros(3, 4))
    refused = pytest.raises(ConfigError, match=r"^the tensors of a frame that may lose rows have")
    with world_of(Links(LinkShape(1e6))) as world, refused:
        sent(world, frame)
