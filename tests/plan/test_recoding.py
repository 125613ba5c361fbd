"""Codecs that follow their links: rates told step by step, on a plan of two stages."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from edgeweave.plan import (
    Coding,
    Costs,
    Cut,
    Link,
    LinkCodec,
    Plan,
    Recoding,
    Skip,
    choose_codecs,
)
from tests.plan.worlds import equal_costs, plan_of

WIDTHS = (16, 8, 4)
THERE, BACK = ("d0", "d1"), ("d1", "d0")
SECONDS = 1.0
"""What either stage computes for a microbatch."""
SIZE = 1_000_000


def costs_at(bytes_per_second: float) -> Costs:
    return replace(
        equal_costs(
            2,
            2,
            forward_seconds=SECONDS / 2,
            backward_seconds=SECONDS / 2,
            link=Link(bytes_per_second, 0.0),
            cut=Cut(SIZE, SIZE),
        ),
        coding=Coding(WIDTHS, overhead_bits=0.0),
    )


def planned(bytes_per_second: float) -> tuple[Plan, Costs]:
    costs = costs_at(bytes_per_second)
    plan = plan_of(costs, ("d0", "d1"), (0, 1, 2), n_microbatches=32, extra_in_flight=4)
    return replace(plan, codecs=choose_codecs(plan, costs)), costs


def bits(recoding: Recoding) -> dict[tuple[str, str], int]:
    return {codec.ends: codec.bits for codec in recoding.codecs}


def tell(recoding: Recoding, rate: float, n_steps: int = 1) -> list[bool]:
    return [recoding.observe({THERE: rate, BACK: rate}) for _ in range(n_steps)]


def test_a_link_that_becomes_slow_is_coded_and_one_that_recovers_no_more() -> None:
    recoding = Recoding(*planned(10e6))
    assert bits(recoding) == {}
    assert any(tell(recoding, 0.3e6, 3))
    slow = bits(recoding)
    assert slow == {codec.ends: codec.bits for codec in planned(0.3e6)[0].codecs}
    assert set(slow) == {THERE, BACK}
    assert tell(recoding, 10e6, 7) == [False] * 7, "too many bits cost more than too few"
    assert tell(recoding, 10e6) == [True]
    assert bits(recoding) == {}


def test_what_is_chosen_is_what_a_new_plan_would_choose() -> None:
    for rate in (4e6, 1e6, 0.5e6, 0.2e6, 0.1e6):
        recoding = Recoding(*planned(10e6))
        tell(recoding, rate, 3)
        assert recoding.codecs == planned(rate)[0].codecs


def test_one_odd_step_changes_nothing() -> None:
    recoding = Recoding(*planned(10e6))
    tell(recoding, 10e6, 3)
    assert tell(recoding, 0.1e6) == [False]
    assert tell(recoding, 10e6, 4) == [False] * 4
    assert bits(recoding) == {}


def test_noise_changes_nothing() -> None:
    plan, costs = planned(0.5e6)
    for seed in range(100):
        chance, recoding = random.Random(seed), Recoding(plan, costs)
        for _ in range(100):
            assert tell(recoding, 0.5e6 * chance.uniform(0.97, 1.03)) == [False]
        assert recoding.codecs == plan.codecs


def test_a_coded_link_that_stays_silent_is_believed_to_be_faster_until_it_tells() -> None:
    recoding = Recoding(*planned(0.2e6))
    before = bits(recoding)
    steps = 0
    while bits(recoding) == before:
        recoding.observe({})
        steps += 1
        assert steps < 100
    assert bits(recoding)[THERE] > before[THERE]
    tell(recoding, 0.2e6, 3)
    assert bits(recoding) == before


def test_who_asked_in_vain_asks_less_often() -> None:
    recoding = Recoding(*planned(0.2e6))
    waited = []
    for _ in range(5):
        steps, before = 0, bits(recoding)
        while bits(recoding) == before:
            recoding.observe({})
            steps += 1
        waited.append(steps)
        tell(recoding, 0.2e6, 3)
        assert bits(recoding) == before
    assert waited == sorted(waited)
    assert waited[-1] >= 4 * waited[0]


def test_an_exact_link_that_stays_silent_stays_exact() -> None:
    recoding = Recoding(*planned(10e6))
    assert not any(recoding.observe({}) for _ in range(200))
    assert recoding.link_rates == {THERE: 10e6, BACK: 10e6}


def test_a_link_that_must_code_is_believed_to_be_fast_and_no_faster_than_any() -> None:
    """A fast link never tells its rate; believed to be faster each time, it became infinite."""
    plan, costs = planned(10e6)
    costs = replace(costs, coding=Coding((8,), always=True))
    recoding = Recoding(replace(plan, codecs=choose_codecs(plan, costs)), costs)
    told = [recoding.observe({}) for _ in range(20_000)]
    assert not any(told)
    assert all(10e6 < rate < 1e12 for rate in recoding.link_rates.values())
    assert set(bits(recoding)) == {THERE, BACK}


def test_a_direct_link_which_never_tells_keeps_its_codec() -> None:
    costs = replace(
        equal_costs(3, 3, link=Link(0.2e6, 0.0), cut=Cut(SIZE, SIZE)),
        skips=(Skip((0, 2), SIZE // 2, SIZE // 2),),
        coding=Coding(WIDTHS, overhead_bits=0.0),
    )
    plan = replace(plan_of(costs, ("d0", "d1", "d2"), (0, 1, 2, 3)), skips="direct")
    recoding = Recoding(replace(plan, codecs=choose_codecs(plan, costs)), costs)
    before = bits(recoding)
    neighbours = [pair for ends in (("d0", "d1"), ("d1", "d2")) for pair in (ends, ends[::-1])]
    for _ in range(300):
        recoding.observe(dict.fromkeys(neighbours, 0.2e6))
    assert ("d0", "d2") in before
    assert bits(recoding) == before
    assert recoding.link_rates["d0", "d2"] == 0.2e6


def test_slower_devices_need_fewer_codecs() -> None:
    plan, costs = planned(1e6)
    recoding = Recoding(plan, costs)
    coded = bits(recoding)
    slower = tuple(
        replace(device, forward_seconds=(20.0, 20.0), backward_seconds=(20.0, 20.0))
        for device in costs.devices
    )
    assert coded
    assert recoding.observe({}, slower)
    assert bits(recoding) == {}


def test_keeping_more_bits_gives_up_the_fewest_and_in_the_end_all() -> None:
    plan, costs = planned(0.05e6)
    recoding = Recoding(plan, costs)
    assert set(bits(recoding).values()) == {4}
    assert recoding.keep_more_bits()
    assert set(bits(recoding).values()) == {8}
    assert recoding.keep_more_bits()
    assert set(bits(recoding).values()) == {16}
    assert recoding.keep_more_bits()
    assert bits(recoding) == {}
    tell(recoding, 0.05e6, 5)
    assert bits(recoding) == {}


def test_where_there_must_be_a_codec_its_last_width_stays() -> None:
    plan, costs = planned(0.05e6)
    recoding = Recoding(plan, replace(costs, coding=Coding((4,), always=True)))
    assert not recoding.keep_more_bits()
    assert set(bits(recoding).values()) == {4}


def test_keeping_more_bits_gives_up_those_that_are_in_use() -> None:
    """Links have 8 bits: giving up 4 would change nothing that a gradient sees."""
    plan, costs = planned(1e6)
    plan = replace(plan, codecs=(LinkCodec(*THERE, 8), LinkCodec(*BACK, 16)))
    recoding = Recoding(plan, costs)
    assert recoding.keep_more_bits()
    assert set(bits(recoding).values()) == {16}
    tell(recoding, 0.05e6, 5)
    assert set(bits(recoding).values()) == {16}


def test_fewer_bits_must_be_worth_it() -> None:
    """One byte a second less is no reason to take bits from values."""
    plan, costs = planned(1e6)
    recoding = Recoding(replace(plan, codecs=()), costs)
    nearly = SIZE / SECONDS / 0.999
    assert not any(tell(recoding, nearly, 5))
    assert bits(recoding) == {}


@pytest.mark.parametrize("rate", [0.1e6, 0.5e6])
def test_without_codecs_nothing_is_ever_coded(rate: float) -> None:
    plan, costs = planned(10e6)
    recoding = Recoding(plan, replace(costs, coding=None))
    assert not any(tell(recoding, rate, 5))
    assert not recoding.keep_more_bits()
    assert recoding.codecs == ()


def test_links_to_devices_that_hold_nothing_are_not_followed() -> None:
    plan, costs = planned(10e6)
    recoding = Recoding(plan, costs)
    assert not recoding.observe({("d0", "elsewhere"): 1.0})
    assert LinkCodec("d0", "d1", 8) not in recoding.codecs
