"""What codecs do to links, and to the steps that are simulated with them, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.core.errors import ConfigError
from edgeweave.core.loss import mean_rounds
from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.plan import Coding, Costs, Cut, DeviceCosts, Feed, Link, LinkCodec, Plan, simulate
from edgeweave.plan.coding import candidates, coded, with_codecs, with_link_rates
from edgeweave.plan.links import LinkCoding

from .worlds import FREE_LINK, equal_costs, one_unit_each, with_links

QUARTER = LinkCoding(8, 0.25, encode_seconds_per_byte=0.01, decode_seconds_per_byte=0.02)
EXACT_SCALES = Coding((16, 8, 4), overhead_bits=0.0)


def costs_with(*, encode: float = 0.0, decode: float = 0.0, **options: Any) -> Costs:
    """Two devices behind a link of a byte per second; 10 bytes there, none back."""
    options = {"link": Link(1.0, 0.0), "cut": Cut(10, 0), **options}
    plain = equal_costs(2, 2, **options)
    devices = tuple(
        replace(device, encode_seconds_per_byte=encode, decode_seconds_per_byte=decode)
        for device in plain.devices
    )
    return replace(plain, devices=devices, coding=EXACT_SCALES)


def planned(costs: Costs, bits: int | None, **options: Any) -> Plan:
    plan = one_unit_each(costs, **options)
    return plan if bits is None else replace(plan, codecs=(LinkCodec("d0", "d1", bits),))


def test_a_coded_link_carries_less_and_its_messages_wait_for_both_codecs() -> None:
    link = Link(2.0, 0.5, coding=QUARTER)
    assert link.goodput == 8.0
    assert link.wire_bytes(100) == 25
    assert link.wire_bytes(101) == 26
    assert link.occupied_seconds(100) == 12.5
    assert link.arrival_seconds(100) == pytest.approx(0.5 + 100 * 0.03)
    assert Link(2.0, 0.5).arrival_seconds(100) == 0.5


@pytest.mark.parametrize(("slow", "goodput"), [("encode", 0.5), ("decode", 0.5), ("wire", 4.0)])
def test_the_slowest_of_both_codecs_and_the_wire_holds_up_the_next_message(
    slow: str, goodput: float
) -> None:
    seconds = {f"{each}_seconds_per_byte": 2.0 * (each == slow) for each in ("encode", "decode")}
    assert Link(1.0, 0.0, coding=LinkCoding(8, 0.25, **seconds)).goodput == goodput


def test_fewer_packets_are_lost_of_fewer_bytes() -> None:
    link = Link(1e6, 1.0, loss=0.3, coding=replace(QUARTER, encode_seconds_per_byte=0.0))
    rounds = mean_rounds(5000, 0.3)
    assert link.arrival_seconds(20_000) == 1.0 * (1 + 2 * rounds) + 20_000 * 0.02
    assert rounds < mean_rounds(20_000, 0.3)


def test_bits_and_scales_are_a_share_of_what_values_had() -> None:
    assert Coding((8,)).share(8) == 8.25 / 32
    assert Coding((8,), value_bits=16, overhead_bits=1.0).share(8) == 9 / 16
    assert Coding((16,), value_bits=16).share(16) == 1.0


@pytest.mark.parametrize("widths", [(), (8, 16), (8, 8), (16, 8, 12)])
def test_widths_are_different_and_most_bits_come_first(widths: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError) as refused:
        Coding(widths)
    assert str(refused.value) == (
        f"widths of codecs are different numbers of bits, most first (got {widths})."
    )


@pytest.mark.parametrize("name", ["encode_seconds_per_byte", "decode_seconds_per_byte"])
@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_codec_takes_no_less_than_nothing(name: str, seconds: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} of device 'pi'"):
        DeviceCosts("pi", (1.0,), (1.0,), None, **{name: seconds})


@pytest.mark.parametrize("always", [False, True])
def test_a_link_may_be_as_it_is_unless_all_are_to_be_coded(*, always: bool) -> None:
    costs = replace(costs_with(encode=0.1, decode=0.2), coding=replace(EXACT_SCALES, always=always))
    found = candidates(costs, ("d0", "d1"))
    bits = [None if link.coding is None else link.coding.bits for link in found]
    assert bits == ([] if always else [None]) + [16, 8, 4]
    assert found[-1].coding == LinkCoding(4, 0.125, 0.1, 0.2)


def test_the_source_encodes_and_the_target_decodes() -> None:
    costs = costs_with()
    first, second = costs.devices
    costs = replace(
        costs,
        devices=(
            replace(first, encode_seconds_per_byte=1.0, decode_seconds_per_byte=2.0),
            replace(second, encode_seconds_per_byte=3.0, decode_seconds_per_byte=4.0),
        ),
    )
    there, back = candidates(costs, ("d0", "d1"))[1].coding, candidates(costs, ("d1", "d0"))[1]
    assert there == LinkCoding(16, 0.5, 1.0, 4.0)
    assert back.coding == LinkCoding(16, 0.5, 3.0, 2.0)


def test_every_link_between_devices_is_as_fast_as_it_may_be_and_no_other() -> None:
    costs = replace(costs_with(), feeds=(Feed("input:0", 9, (0,)),))
    fast = coded(costs)
    assert fast.link("d0", "d1").goodput == fast.link("d1", "d0").goodput == 8.0
    for name in ("d0", "d1"):
        assert fast.link(COORDINATOR_NAME, name) == costs.link(COORDINATOR_NAME, name)


def test_of_equally_fast_ways_the_one_with_the_most_bits_is_taken() -> None:
    slow_codec = coded(costs_with(encode=0.5))
    assert slow_codec.link("d0", "d1").coding == LinkCoding(16, 0.5, 0.5, 0.0)
    slower_codec = coded(costs_with(encode=1.0))
    assert slower_codec.link("d0", "d1").coding is None


def test_costs_that_know_of_no_codecs_have_none() -> None:
    costs = replace(costs_with(), coding=None)
    assert coded(costs) is costs
    assert with_codecs(costs, ()) is costs
    with pytest.raises(ConfigError) as refused:
        with_codecs(costs, [LinkCodec("d0", "d1", 8)])
    assert str(refused.value) == (
        "codecs need costs that know of coding (asked for 8 bits from d0 to d1). Plan again."
    )


def test_chosen_codecs_take_the_place_of_others_and_rates_leave_them_alone() -> None:
    costs = with_codecs(coded(costs_with()), [LinkCodec("d0", "d1", 16)])
    assert costs.link("d0", "d1").goodput == 2.0
    assert costs.link("d1", "d0").goodput == 8.0
    measured = with_link_rates(costs, {("d0", "d1"): 3.0})
    assert measured.link("d0", "d1").goodput == 6.0
    assert measured.link("d1", "d0") == costs.link("d1", "d0")


# Each line: the first forward; four messages on the link; the way of the last one; its forward;
# all four backwards, and that of the first stage.
@pytest.mark.parametrize(
    ("bits", "encode", "decode", "expected"),
    [
        (None, 0.05, 0.1, 1 + 4 * 10.0 + 0.0 + 1 + 4 + 1),
        (16, 0.0, 0.0, 1 + 4 * 5.0 + 0.0 + 1 + 4 + 1),
        (8, 0.0, 0.0, 1 + 4 * 2.5 + 0.0 + 1 + 4 + 1),
        (8, 0.05, 0.1, 1 + 4 * 2.5 + (0.5 + 1.0) + 1 + 4 + 1),
        (8, 0.5, 0.0, 1 + 4 * 5.0 + 5.0 + 1 + 4 + 1),
        (8, 0.1, 0.75, 1 + 4 * 7.5 + (1.0 + 7.5) + 1 + 4 + 1),
        (4, 0.0, 0.0, 1 + 4 * 1.25 + 0.0 + 1 + 4 + 1),
    ],
)
def test_a_coded_link_bounds_gpipe_as_calculated_by_hand(
    bits: int | None, encode: float, decode: float, expected: float
) -> None:
    costs = costs_with(encode=encode, decode=decode)
    plan = planned(costs, bits, schedule="gpipe")
    assert simulate(plan, costs).step_seconds == pytest.approx(expected, rel=1e-12)


def test_a_codec_of_one_direction_leaves_the_other_as_it_is() -> None:
    costs = costs_with(cut=Cut(10, 10))
    plan = planned(costs, 8, schedule="gpipe")
    timeline = simulate(plan, costs, n_steps=1)
    sends = {
        stage: [
            event.stop_seconds - event.start_seconds
            for event in timeline.events
            if (event.kind, event.stage) == ("send", stage)
        ]
        for stage in (0, 1)
    }
    assert sends == {0: [2.5] * 4, 1: [10.0] * 4}


sizes, seconds = st.integers(0, 9), st.sampled_from([0.0, 0.125, 0.5])


@given(
    st.tuples(sizes, sizes),
    st.lists(st.tuples(seconds, seconds), min_size=3, max_size=3),
    st.lists(st.sampled_from([None, 16, 8, 4]), min_size=4, max_size=4),
    st.sampled_from(["1f1b", "gpipe"]),
    st.integers(1, 6),
)
def test_coded_links_are_links_that_are_faster_and_longer(
    size: tuple[int, int],
    codecs: list[tuple[float, float]],
    bits: list[int | None],
    schedule: str,
    n_microbatches: int,
) -> None:
    slow = Link(0.5, 1.0)
    plain = equal_costs(3, 3, cut=Cut(*size), link=slow)
    devices = tuple(
        replace(device, encode_seconds_per_byte=encode, decode_seconds_per_byte=decode)
        for device, (encode, decode) in zip(plain.devices, codecs, strict=True)
    )
    costs = replace(plain, devices=devices, coding=EXACT_SCALES)
    ends = [("d0", "d1"), ("d1", "d2"), ("d1", "d0"), ("d2", "d1")]
    chosen = {pair: width for pair, width in zip(ends, bits, strict=True) if width is not None}
    links = {}
    for (source, target), width in chosen.items():
        encode = costs.device(source).encode_seconds_per_byte
        decode = costs.device(target).decode_seconds_per_byte
        per_byte = max(width / 32 / slow.bytes_per_second, encode, decode)
        on_the_way = size[source > target] * (encode + decode)
        links[source, target] = Link(1 / per_byte, slow.latency_seconds + on_the_way)
    plan = one_unit_each(costs, schedule=schedule, n_microbatches=n_microbatches)
    with_them = replace(plan, codecs=tuple(LinkCodec(*pair, chosen[pair]) for pair in chosen))
    found = simulate(with_them, costs).step_seconds
    expected = simulate(plan, with_links(plain, links)).step_seconds
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("source", "target", "bits"), [("a", "b", 0), ("a", "b", -8), ("a", "a", 8)]
)
def test_a_codec_has_bits_and_its_link_two_ends(source: str, target: str, bits: int) -> None:
    with pytest.raises(ConfigError) as refused:
        LinkCodec(source, target, bits)
    assert str(refused.value) == (
        f"a codec has bits, and a link two ends (got {bits} bits from {source!r} to {target!r}). "
        "Plan again."
    )


def test_a_free_link_is_not_free_of_its_codec() -> None:
    costs = costs_with(encode=1.0, link=FREE_LINK)
    plain, slower = planned(costs, None), planned(costs, 16)
    assert simulate(slower, costs).step_seconds > simulate(plain, costs).step_seconds + 10
