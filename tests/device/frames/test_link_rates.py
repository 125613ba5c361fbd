"""A link's rate shows in frames that waited for it, and in no others."""

from __future__ import annotations

import random
from statistics import median

import pytest

from edgeweave.device.frames.link_rates import Arrival, LinkRates
from edgeweave.net import LinkShape
from edgeweave.net.link_model import HEADER_BYTES, LinkModel

RATE, SIZE = 1e6, 100_000
CLOCKS_APART = 1234.5
ON_THE_WIRE = RATE * 1448 / (1448 + HEADER_BYTES)
"""What a link of ``RATE`` moves of frames."""


N_ROUNDS = 16


def rate_of(sent: list[float], *, jitter: float = 0.0) -> float | None:
    """As found, round after round, from frames sent at these moments over a link of ``RATE``."""
    shape = LinkShape(bytes_per_second=RATE, delay_seconds=0.01)
    link, rates, chance = LinkModel(shape, ("a", "b")), LinkRates(), random.Random(0)
    found = []
    for round_ in range(N_ROUNDS):
        for at in sent:
            began = 100.0 * round_ + at
            arrived = link.carry(began, SIZE).arrives_at + chance.uniform(0, jitter)
            rates.add(round_, 0, Arrival(began - CLOCKS_APART, arrived, SIZE))
        found += [rates.end_round(round_).get(0)]
    told = [rate for rate in found if rate is not None]
    return median(told) if 2 * len(told) > N_ROUNDS else None


def test_frames_that_were_sent_faster_than_the_link_takes_them_tell_its_rate() -> None:
    assert rate_of([0.02 * n for n in range(8)]) == pytest.approx(ON_THE_WIRE, rel=0.01)


def test_frames_that_never_waited_tell_nothing() -> None:
    assert rate_of([0.2 * n for n in range(8)]) is None


def test_pauses_between_bursts_count_for_nothing() -> None:
    bursts = [start + 0.01 * n for start in (0.0, 5.0, 9.0) for n in range(3)]
    assert rate_of(bursts) == pytest.approx(ON_THE_WIRE, rel=0.01)


def test_jitter_moves_the_rate_little_and_makes_none_up() -> None:
    assert rate_of([0.02 * n for n in range(12)], jitter=0.05) == pytest.approx(RATE, rel=0.25)
    for n_frames in (4, 16, 32):
        assert rate_of([0.12 * n for n in range(n_frames)], jitter=0.15) is None


def test_a_receiver_that_was_busy_for_a_moment_is_no_slow_link() -> None:
    late = dict.fromkeys(range(1, 12, 2), 0.009)
    shape = LinkShape(bytes_per_second=1e9)
    link, rates = LinkModel(shape, ("a", "b")), LinkRates()
    for round_ in range(N_ROUNDS):
        for number in range(12):
            at = round_ + 0.01 * number
            arrived = link.carry(at, SIZE).arrives_at + late.get(number, 0.0)
            rates.add(round_, 0, Arrival(at, arrived, SIZE))
        assert rates.end_round(round_) == {}


def test_a_round_tells_of_its_own_frames_once_and_of_each_sender() -> None:
    rates = LinkRates()
    for round_ in range(N_ROUNDS + 1):
        for sender, spacing in ((0, 0.1), (2, 0.2)):
            for number in range(4):
                rates.add(round_, sender, Arrival(0.0, spacing * (1 + number), SIZE))
        if round_ < N_ROUNDS - 1:
            rates.end_round(round_)
    assert rates.end_round(N_ROUNDS) == pytest.approx({0: SIZE / 0.1, 2: SIZE / 0.2})
    assert rates.end_round(N_ROUNDS - 1) == rates.end_round(N_ROUNDS) == {}


def test_how_much_a_link_jitters_is_known_after_some_rounds() -> None:
    rates = LinkRates()
    told = []
    for round_ in range(6):
        for number in range(4):
            rates.add(round_, 0, Arrival(0.0, 0.1 * (1 + number), SIZE))
        told += [0 in rates.end_round(round_)]
    assert told == [False, False, False, True, True, True]


def test_frames_without_bytes_tell_nothing_however_late_they_are() -> None:
    rates = LinkRates()
    for round_ in range(N_ROUNDS):
        for number in range(4):
            rates.add(round_, 0, Arrival(0.0, 0.1 * (1 + number), 0))
        assert rates.end_round(round_) == {}


def test_what_a_sender_makes_up_does_no_harm() -> None:
    rates = LinkRates()
    for round_ in range(N_ROUNDS):
        for number, sent in enumerate((float("nan"), float("inf"), -float("inf"), 0.0)):
            rates.add(round_, 0, Arrival(sent, 0.1 * number, SIZE))
            rates.add(round_, 2, Arrival(0.0, 0.1 * (1 + number), SIZE))
    told = [rates.end_round(round_) for round_ in range(N_ROUNDS)]
    assert told[-1][2] == pytest.approx(SIZE / 0.1)
    assert all(0 < rate < float("inf") for each in told for rate in each.values())


def test_a_frame_behind_a_ping_tells_the_rate_of_a_link_that_nothing_waits_for() -> None:
    shape = LinkShape(bytes_per_second=RATE, delay_seconds=0.01)
    link, rates = LinkModel(shape, ("a", "b")), LinkRates()
    found = []
    for round_ in range(N_ROUNDS):
        for number in range(4):
            at = 100.0 * round_ + number
            for size_bytes in (0, SIZE):
                arrived = link.carry(at, size_bytes).arrives_at
                sent = at - CLOCKS_APART
                rates.add(round_, 0, Arrival(sent, arrived, size_bytes, is_ping=not size_bytes))
        found += [rates.end_round(round_).get(0)]
    assert found[-1] == pytest.approx(ON_THE_WIRE, rel=0.01)


def test_what_comes_late_behind_a_ping_without_bytes_tells_nothing() -> None:
    rates = LinkRates()
    for round_ in range(N_ROUNDS):
        for number in range(4):
            rates.add(round_, 0, Arrival(number, number + 0.1, 0, is_ping=True))
            rates.add(round_, 0, Arrival(number, number + 0.3, 0, is_ping=number == 2))
        assert rates.end_round(round_) == {}


@pytest.mark.parametrize("sent", [float("nan"), float("inf"), -float("inf"), 1e300, -1e300])
def test_what_a_sender_makes_up_behind_a_ping_does_no_harm(sent: float) -> None:
    rates = LinkRates()
    for round_ in range(N_ROUNDS):
        rates.add(round_, 0, Arrival(0.0, 0.1, 0, is_ping=True))
        rates.add(round_, 0, Arrival(sent, 0.1, SIZE))
        assert all(0 < rate < float("inf") for rate in rates.end_round(round_).values())


def test_frames_between_two_pings_that_did_not_wait_make_no_slow_link_up() -> None:
    """A link that is busy for two thirds of the time, and every other frame behind a ping."""
    shape = LinkShape(bytes_per_second=RATE, delay_seconds=0.01)
    link, rates = LinkModel(shape, ("a", "b")), LinkRates()
    found = []
    for round_ in range(N_ROUNDS):
        for number in range(8):
            at = 100.0 * round_ + 1.5 * number * SIZE / RATE
            for size_bytes in (0, SIZE) if number % 2 == 0 else (SIZE,):
                arrived = link.carry(at, size_bytes).arrives_at
                rates.add(round_, 0, Arrival(at, arrived, size_bytes, is_ping=not size_bytes))
        found += [rates.end_round(round_).get(0)]
    assert found[-1] == pytest.approx(ON_THE_WIRE, rel=0.01)
