"""A link's rate shows in frames that waited for it, and in no others."""

from __future__ import annotations

import random

import pytest

from edgeweave.device.link_rates import LinkRates
from edgeweave.net import LinkShape
from edgeweave.net.link_model import HEADER_BYTES, LinkModel

RATE, SIZE = 1e6, 100_000
CLOCKS_APART = 1234.5
ON_THE_WIRE = RATE * 1448 / (1448 + HEADER_BYTES)
"""What a link of ``RATE`` moves of frames."""


def rate_of(sent: list[float], *, jitter: float = 0.0) -> float | None:
    """As found from frames sent at these moments over a link of ``RATE``."""
    shape = LinkShape(bytes_per_second=RATE, delay_seconds=0.01)
    link, rates, chance = LinkModel(shape, ("a", "b")), LinkRates(), random.Random(0)
    for at in sent:
        arrived = link.carry(at, SIZE).arrives_at + chance.uniform(0, jitter)
        rates.add(3, 0, (at - CLOCKS_APART, arrived, SIZE))
    return rates.end_round(3).get(0)


def test_frames_that_were_sent_faster_than_the_link_takes_them_tell_its_rate() -> None:
    assert rate_of([0.02 * n for n in range(8)]) == pytest.approx(ON_THE_WIRE, rel=0.01)


def test_frames_that_never_waited_tell_nothing() -> None:
    assert rate_of([0.2 * n for n in range(8)]) is None


def test_pauses_between_bursts_count_for_nothing() -> None:
    bursts = [start + 0.01 * n for start in (0.0, 5.0, 9.0) for n in range(3)]
    assert rate_of(bursts) == pytest.approx(ON_THE_WIRE, rel=0.01)


def test_jitter_moves_the_rate_little_and_makes_none_up() -> None:
    assert rate_of([0.02 * n for n in range(12)], jitter=0.03) == pytest.approx(RATE, rel=0.25)
    assert rate_of([0.25 * n for n in range(12)], jitter=0.03) is None


def test_a_receiver_that_was_busy_for_a_moment_is_no_slow_link() -> None:
    late = dict.fromkeys(range(1, 12, 2), 0.009)
    shape = LinkShape(bytes_per_second=1e9)
    link, rates = LinkModel(shape, ("a", "b")), LinkRates()
    for number in range(12):
        at = 0.01 * number
        arrived = link.carry(at, SIZE).arrives_at + late.get(number, 0.0)
        rates.add(0, 0, (at, arrived, SIZE))
    assert rates.end_round(0) == {}


def test_a_round_tells_of_its_own_frames_once_and_of_each_sender() -> None:
    rates = LinkRates()
    for round_ in (1, 2):
        for sender, spacing in ((0, 0.1), (2, 0.2)):
            for number in range(4):
                rates.add(round_, sender, (0.0, spacing * (1 + number), SIZE))
    assert rates.end_round(2) == pytest.approx({0: SIZE / 0.1, 2: SIZE / 0.2})
    assert rates.end_round(1) == rates.end_round(2) == {}


def test_what_a_sender_makes_up_does_no_harm() -> None:
    rates = LinkRates()
    for number, sent in enumerate((float("nan"), float("inf"), -float("inf"), 0.0)):
        rates.add(0, 0, (sent, 0.1 * number, SIZE))
    assert all(rate > 0 for rate in rates.end_round(0).values())
