"""The model of one link against closed formulas, measured times, and properties. Virtual time."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import mean, median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.core.loss import PACKET_BYTES
from edgeweave.net import GilbertElliott, LinkShape, RateTrace
from edgeweave.net._capacity import capacity_of
from edgeweave.net._loss import Losses
from edgeweave.net.link_model import HEADER_BYTES, LinkModel, Passage

ENDS = ("a", "b")
WIFI = {"bytes_per_second": 2.5e6, "delay_seconds": 0.02}
"""20 Mbit/s and 20 ms each way."""


def wire_bytes(size_bytes: int) -> int:
    return size_bytes + max(1, math.ceil(size_bytes / PACKET_BYTES)) * HEADER_BYTES


def arrivals(shape: LinkShape, sizes: list[int], seed: int = 0) -> list[Passage]:
    model = LinkModel(shape, ENDS, seed=seed)
    return [model.carry(0.0, size) for size in sizes]


# Reliable messages


@pytest.mark.parametrize("size_bytes", [1, PACKET_BYTES, PACKET_BYTES + 1, 1_000_000])
def test_without_loss_a_message_takes_its_bytes_over_the_rate_and_the_delay(
    size_bytes: int,
) -> None:
    (passage,) = arrivals(LinkShape(**WIFI), [size_bytes])
    seconds = wire_bytes(size_bytes) / 2.5e6
    assert passage.left_at == pytest.approx(seconds)
    assert passage.arrives_at == pytest.approx(seconds + 0.02)


@pytest.mark.parametrize(("loss", "measured_ms"), [(0.0, 456), (0.01, 461), (0.05, 535)])
def test_a_megabyte_takes_about_as_long_as_over_tcp_with_bbr(
    loss: float, measured_ms: float
) -> None:
    """The table of DESIGN.md section 7: medians of 1 MB over 20 Mbit/s and 20 ms each way."""
    found = [
        arrivals(LinkShape(**WIFI, loss=loss), [1_000_000], seed)[0].arrives_at
        for seed in range(200)
    ]
    assert median(found) == pytest.approx(measured_ms / 1e3, rel=0.1)


def test_the_next_message_leaves_when_the_last_packet_of_the_one_before_has() -> None:
    first, second = arrivals(LinkShape(**WIFI), [100_000, 50_000])
    assert second.left_at - first.left_at == pytest.approx(wire_bytes(50_000) / 2.5e6)


def test_a_link_that_rested_begins_when_the_message_comes() -> None:
    model = LinkModel(LinkShape(**WIFI), ENDS)
    model.carry(0.0, 1000)
    assert model.carry(5.0, 1000).left_at == pytest.approx(5.0 + wire_bytes(1000) / 2.5e6)


def test_a_link_without_a_limit_delays_everything_alike() -> None:
    passages = arrivals(LinkShape(delay_seconds=0.3), [1, 10_000_000])
    assert passages == [Passage(0.0, 0.3)] * 2


def test_without_a_limit_each_round_of_loss_costs_a_round_trip() -> None:
    rounds = [
        arrivals(LinkShape(delay_seconds=0.1, loss=0.5), [1000], seed)[0].arrives_at
        for seed in range(400)
    ]
    assert {round((seconds - 0.1) / 0.2, 6) % 1 for seconds in rounds} == {0.0}
    # The number of losses before a success has mean loss / (1 - loss).
    assert mean(rounds) == pytest.approx(0.1 + 0.2 * 1.0, rel=0.15)


def test_the_way_back_counts_into_the_round_trip() -> None:
    shape = LinkShape(delay_seconds=0.1, loss=0.5)
    seeds = range(50)
    short = [LinkModel(shape, ENDS, seed=s, return_seconds=0.0).carry(0.0, 1) for s in seeds]
    long = [LinkModel(shape, ENDS, seed=s, return_seconds=0.4).carry(0.0, 1) for s in seeds]
    for one, other in zip(short, long, strict=True):
        rounds = (one.arrives_at - 0.1) / 0.1
        assert other.arrives_at == pytest.approx(0.1 + rounds * 0.5)


@pytest.mark.parametrize("loss", [0.02, 0.2, GilbertElliott(0.02, 0.2)])
def test_a_full_link_carries_its_rate_less_what_is_sent_again(
    loss: float | GilbertElliott,
) -> None:
    model = LinkModel(LinkShape(2.5e6, 0.02, loss=loss), ENDS, seed=1)
    for _ in range(20):
        passage = model.carry(0.0, 1_000_000)
    share = loss.share if isinstance(loss, GilbertElliott) else loss
    expected = 20 * wire_bytes(1_000_000) / 2.5e6 / (1 - share)
    assert passage.arrives_at == pytest.approx(expected, rel=0.04)


def test_what_pieces_it_is_given_in_does_not_change_how_long_a_message_takes() -> None:
    def last_arrival(sizes: list[int], seed: int) -> float:
        return arrivals(LinkShape(**WIFI, loss=0.03), sizes, seed)[-1].arrives_at

    piece = 40 * PACKET_BYTES
    whole = mean(last_arrival([25 * piece], seed) for seed in range(60))
    pieces = mean(last_arrival([piece] * 25, seed) for seed in range(60))
    assert pieces == pytest.approx(whole, rel=0.02)


def test_jitter_spreads_delays_and_is_never_early() -> None:
    shape = LinkShape(delay_seconds=0.05, jitter_seconds=0.04)
    model = LinkModel(shape, ENDS)
    spread = [model.carry(float(i), 100).arrives_at - i for i in range(2000)]
    assert min(spread) >= 0.0
    assert np.std(spread) == pytest.approx(0.04, rel=0.2)
    assert mean(spread) == pytest.approx(0.05, rel=0.1)


def test_another_shape_holds_from_the_next_message_on() -> None:
    model = LinkModel(LinkShape(1000.0), ENDS)
    left = model.carry(0.0, 1000 - HEADER_BYTES).left_at
    model.reshape(LinkShape(500.0, delay_seconds=1.0))
    assert left == pytest.approx(1.0)
    assert model.carry(0.0, 1000 - HEADER_BYTES) == Passage(pytest.approx(3.0), pytest.approx(4.0))


SHAPES = st.builds(
    LinkShape,
    bytes_per_second=st.one_of(
        st.none(),
        st.floats(1e4, 1e8),
        st.just(RateTrace((0.0, 0.1, 0.2), (1e6, 0.0, 3e6), 0.5)),
    ),
    delay_seconds=st.floats(0.0, 0.2),
    jitter_seconds=st.sampled_from([0.0, 0.01]),
    loss=st.sampled_from([0.0, 0.01, 0.3, GilbertElliott(0.05, 0.3)]),
)
OFFERS = st.lists(st.tuples(st.floats(0.0, 0.3), st.integers(0, 200_000)), max_size=12)


@given(SHAPES, OFFERS, st.integers(0, 10))
def test_messages_keep_their_order_and_never_beat_rate_and_delay(
    shape: LinkShape, offers: list[tuple[float, int]], seed: int
) -> None:
    model = LinkModel(shape, ENDS, seed=seed)
    capacity = capacity_of(shape.bytes_per_second, 0.0)
    now, free_at, passages = 0.0, 0.0, []
    for pause, size in offers:
        now += pause
        passage = model.carry(now, size)
        passages.append(passage)
        start = max(now, free_at)
        assert passage.left_at >= start
        if capacity is not None:
            carried = capacity.at(passage.left_at) - capacity.at(start)
            assert carried >= wire_bytes(size) * (1 - 1e-9) - 1e-3
        delay = 0.0 if shape.jitter_seconds else shape.delay_seconds
        assert passage.arrives_at >= passage.left_at + delay - 1e-9
        free_at = passage.left_at
    for before, after in pairwise(passages):
        assert after.arrives_at >= before.arrives_at
        assert after.left_at >= before.left_at


@given(SHAPES, OFFERS, st.integers(0, 10))
def test_the_same_seed_gives_the_same_times(
    shape: LinkShape, offers: list[tuple[float, int]], seed: int
) -> None:
    def times() -> list[Passage]:
        model = LinkModel(shape, ENDS, seed=seed)
        return [model.carry(now, size) for now, size in offers]

    assert times() == times()


def test_seed_and_both_names_decide_what_is_lost() -> None:
    def fates(seed: int, ends: tuple[str, str]) -> list[bool]:
        model = LinkModel(LinkShape(loss=0.5), ends, seed=seed)
        return list(model.lose_datagrams(64))

    assert fates(0, ENDS) == fates(0, ENDS)
    assert len({tuple(fates(s, e)) for s in (0, 1) for e in (ENDS, ("b", "a"), ("a", "c"))}) == 6


# Loss-tolerant messages


def test_what_else_travels_changes_no_fate_of_loss_tolerant_messages() -> None:
    shape = LinkShape(1e6, loss=GilbertElliott(0.1, 0.3))
    alone, busy = LinkModel(shape, ENDS), LinkModel(shape, ENDS)
    lonely = [bool(alone.lose_datagrams()) for _ in range(200)]
    crowded = []
    for number in range(200):
        busy.carry(0.0, 1000 * (number % 7))
        crowded.append(bool(busy.lose_datagrams()))
    assert crowded == lonely


def test_a_loss_tolerant_message_takes_its_place_on_the_link() -> None:
    model = LinkModel(LinkShape(1e6, 0.1), ENDS)
    first = model.carry(0.0, 500_000)
    passage = model.carry_datagrams(0.0, 1000)
    assert passage.left_at == pytest.approx(first.left_at + (1000 + HEADER_BYTES) / 1e6)
    assert passage.arrives_at == pytest.approx(passage.left_at + 0.1)


def test_a_loss_tolerant_message_may_overtake_another_on_its_way() -> None:
    model = LinkModel(LinkShape(delay_seconds=1.0, jitter_seconds=0.5), ENDS)
    found = [model.carry_datagrams(0.0, 100).arrives_at for _ in range(50)]
    assert found != sorted(found)


# Losses


@pytest.mark.parametrize(
    "loss",
    [
        GilbertElliott(0.01, 0.2),
        GilbertElliott(0.5, 0.5),
        GilbertElliott(0.02, 0.1, loss_good=0.01, loss_bad=0.5),
        GilbertElliott(1e-9, 1.0, loss_good=0.1),
        GilbertElliott(1.0, 1.0),
        0.07,
    ],
)
@pytest.mark.parametrize("at_once", [1, 44, 100_000])
def test_the_share_lost_is_the_one_asked_for(loss: float | GilbertElliott, at_once: int) -> None:
    losses = Losses(loss, np.random.default_rng(0))
    n_draws = 100_000 // at_once if at_once > 1 else 10_000
    lost = np.concatenate([losses.draw(at_once) for _ in range(n_draws)])
    share = loss.share if isinstance(loss, GilbertElliott) else loss
    assert lost.mean() == pytest.approx(share, rel=0.15)


@pytest.mark.parametrize("at_once", [3, 100_000])
def test_bursts_last_as_long_as_their_state(at_once: int) -> None:
    losses = Losses(GilbertElliott(0.02, 0.25), np.random.default_rng(0))
    lost = np.concatenate([losses.draw(at_once) for _ in range(100_000 // at_once)])
    edges = np.flatnonzero(np.diff(np.concatenate(([0], lost, [0])).astype(int)))
    lengths = edges[1::2] - edges[::2]
    assert lengths.mean() == pytest.approx(1 / 0.25, rel=0.1)


def test_without_loss_nothing_is_lost() -> None:
    for loss in (0.0, GilbertElliott(0.5, 0.5, loss_good=0.0, loss_bad=0.0)):
        assert not Losses(loss, np.random.default_rng(0)).draw(1000).any()


# Traces


TRACE = RateTrace((0.0, 1.0, 3.0), (100.0, 0.0, 50.0), 4.0)
"""150 bytes in four seconds: 100 in the first, none in two, 50 in the last."""


@pytest.mark.parametrize(
    ("seconds", "carried"),
    [(0.0, 0.0), (0.5, 50.0), (1.0, 100.0), (2.9, 100.0), (3.5, 125.0), (4.0, 150.0), (8.5, 350.0)],
)
def test_a_trace_is_integrated_and_repeated(seconds: float, carried: float) -> None:
    capacity = capacity_of(TRACE, began=10.0)
    assert capacity is not None
    assert capacity.at(10.0 + seconds) == pytest.approx(carried)


@pytest.mark.parametrize(
    ("carried", "seconds"),
    [(50.0, 0.5), (100.0, 1.0), (100.5, 3.01), (150.0, 4.0), (151.0, 4.01), (350.0, 8.5)],
)
def test_a_number_of_bytes_has_passed_at_the_first_moment_it_can(
    carried: float, seconds: float
) -> None:
    capacity = capacity_of(TRACE, began=10.0)
    assert capacity is not None
    assert capacity.when(carried) == pytest.approx(10.0 + seconds)


def test_a_message_waits_out_a_hole_in_a_trace() -> None:
    model = LinkModel(LinkShape(TRACE), ENDS)
    # Half a second carries 50 bytes, then nothing passes until 3 s, then 50 bytes per second.
    assert model.carry(0.5, 75 - HEADER_BYTES).left_at == pytest.approx(3.5)


@given(st.floats(0.0, 100.0))
def test_capacity_and_its_inverse_agree(seconds: float) -> None:
    capacity = capacity_of(TRACE, began=0.0)
    assert capacity is not None
    carried = capacity.at(seconds)
    assert capacity.when(carried) <= seconds + 1e-9
    assert capacity.at(capacity.when(carried)) == pytest.approx(carried)
