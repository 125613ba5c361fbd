"""Waiting for lost packets: the formulas against packets that are lost one by one."""

from __future__ import annotations

import random
from statistics import fmean

import pytest

from edgeweave.core.loss import (
    PACKET_BYTES,
    drawn_rounds,
    loss_from_rounds,
    mean_rounds,
    n_packets,
)

CASES = [(1, 0.3), (46, 0.01), (700, 0.002), (46, 0.2)]


def rounds_of(count: int, loss: float, chance: random.Random) -> int:
    rounds = 0
    while count := sum(chance.random() < loss for _ in range(count)):
        rounds += 1
    return rounds


@pytest.mark.parametrize(("count", "loss"), CASES)
def test_mean_and_drawn_rounds_are_those_of_packets_lost_one_by_one(
    count: int, loss: float
) -> None:
    chance = random.Random(7)
    seen = [rounds_of(count, loss, chance) for _ in range(4000)]
    size = count * PACKET_BYTES
    drawn = [drawn_rounds(size, loss, chance.random()) for _ in range(20_000)]
    assert mean_rounds(size, loss) == pytest.approx(fmean(seen), abs=0.05)
    for rounds in range(3):
        share = fmean(each <= rounds for each in seen)
        assert fmean(each <= rounds for each in drawn) == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize(("count", "loss"), CASES)
def test_the_loss_is_found_from_the_mean_wait(count: int, loss: float) -> None:
    size = count * PACKET_BYTES
    assert loss_from_rounds(size, mean_rounds(size, loss)) == pytest.approx(loss, rel=1e-3)


def test_what_loses_nothing_waits_for_nothing() -> None:
    assert mean_rounds(1 << 20, 0.0) == 0
    assert drawn_rounds(1 << 20, 0.0, 0.999) == 0
    assert loss_from_rounds(1 << 20, 0.0) == pytest.approx(0, abs=1e-9)


def test_a_message_has_a_packet_even_when_it_is_empty() -> None:
    sizes = (0, 1, PACKET_BYTES, PACKET_BYTES + 1)
    assert [n_packets(size) for size in sizes] == [1, 1, 1, 2]
