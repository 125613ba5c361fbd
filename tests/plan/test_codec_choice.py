"""The chosen codecs against all combinations of codecs, and coded plans against all placements."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgeweave.plan import (
    Coding,
    Costs,
    Cut,
    Link,
    LinkCodec,
    Plan,
    choose_codecs,
    explain,
    partition,
    simulate,
)
from edgeweave.plan.coding import coded
from edgeweave.plan.costs import crossings

from .worlds import equal_costs, every_placement, one_unit_each, plan_of, small_costs

WORTH_BITS = 1.02
ROUNDING = 1 + 1e-9
CODINGS = [
    Coding((8,)),
    Coding((16, 8)),
    Coding((12, 8, 4), overhead_bits=0.0),
    Coding((16, 12), value_bits=16),
]
Codecs = tuple[LinkCodec, ...]
Choice = tuple[Plan, Costs]
NO_TIME = [0.0]
LONG_TIMES = [0.0, 0.02, 0.1, 0.3]


@st.composite
def coded_costs(
    draw: st.DrawFn, codec_seconds: list[float] = NO_TIME, *, always: bool | None = False
) -> Costs:
    """Small costs whose devices know codecs."""
    costs = draw(small_costs(max_units=4))
    coding = draw(st.sampled_from(CODINGS))
    taken = st.sampled_from(codec_seconds)
    devices = tuple(
        replace(device, encode_seconds_per_byte=draw(taken), decode_seconds_per_byte=draw(taken))
        for device in costs.devices
    )
    choice = draw(st.booleans()) if always is None else always
    return replace(costs, devices=devices, coding=replace(coding, always=choice))


@st.composite
def choices(
    draw: st.DrawFn, codec_seconds: list[float] = NO_TIME, *, always: bool | None = False
) -> Choice:
    """A plan with two or three stages, and its costs."""
    costs = draw(coded_costs(codec_seconds, always=always))
    placements = [each for each in every_placement(costs) if len(each.devices) > 1]
    assume(placements)
    placement = draw(st.sampled_from(placements))
    plan = plan_of(
        costs,
        placement.devices,
        placement.bounds,
        schedule=draw(st.sampled_from(["1f1b", "gpipe"])),
        n_microbatches=draw(st.integers(1, 5)),
        extra_in_flight=draw(st.integers(0, 1)),
    )
    assume(messages(plan, costs))
    return plan, costs


def messages(plan: Plan, costs: Costs) -> dict[tuple[str, str], int]:
    """The bytes on every link that carries some."""
    found = {}
    for front, behind in zip(plan.stages, plan.stages[1:], strict=False):
        cut = behind.first_unit - 1
        for crossing in crossings(costs, front.device, behind.device, cut):
            if crossing.size_bytes:
                found[crossing.src, crossing.dst] = crossing.size_bytes
    return found


def step_seconds(plan: Plan, costs: Costs, codecs: Codecs) -> float:
    return simulate(replace(plan, codecs=codecs), costs).step_seconds


def options(costs: Costs) -> tuple[int | None, ...]:
    assert costs.coding is not None
    widths = costs.coding.widths
    return widths if costs.coding.always else (None, *widths)


def every_combination(plan: Plan, costs: Costs) -> Iterator[Codecs]:
    links = list(messages(plan, costs))
    for picked in product(options(costs), repeat=len(links)):
        pairs = zip(links, picked, strict=True)
        yield tuple(LinkCodec(*ends, bits) for ends, bits in pairs if bits is not None)


def seconds_of(costs: Costs, ends: tuple[str, str], size_bytes: int, bits: int | None) -> float:
    """How long a message keeps its link, written out once more."""
    assert costs.coding is not None
    wire = size_bytes / costs.link(*ends).bytes_per_second
    if bits is None:
        return wire
    share = min(1.0, (bits + costs.coding.overhead_bits) / costs.coding.value_bits)
    encode = costs.device(ends[0]).encode_seconds_per_byte
    decode = costs.device(ends[1]).decode_seconds_per_byte
    return max(share * wire, size_bytes * encode, size_bytes * decode)


def notches(plan: Plan, costs: Costs) -> list[Codecs]:
    """For every limit on messages, lowest first, the most bits that keep each of them below it."""
    sizes = messages(plan, costs)
    taken = {
        ends: [(seconds_of(costs, ends, size, bits), bits) for bits in options(costs)]
        for ends, size in sizes.items()
    }
    limits = sorted({seconds for each in taken.values() for seconds, _ in each})
    found = []
    for limit in limits:
        codecs = []
        for ends, each in taken.items():
            below = [bits for seconds, bits in each if seconds <= limit * (1 + 1e-12)]
            bits = below[0] if below else min(each, key=lambda one: one[0])[1]
            codecs += [] if bits is None else [LinkCodec(*ends, bits)]
        if not found or found[-1] != tuple(codecs):
            found.append(tuple(codecs))
    return found


@settings(max_examples=60, deadline=None)
@given(choices())
def test_a_step_is_within_two_percent_of_the_shortest_of_all_combinations(choice: Choice) -> None:
    plan, costs = choice
    best = min(step_seconds(plan, costs, codecs) for codecs in every_combination(plan, costs))
    found = step_seconds(plan, costs, choose_codecs(plan, costs))
    assert found <= WORTH_BITS * best * ROUNDING


@settings(deadline=None)
@given(choices(LONG_TIMES, always=None))
def test_one_more_notch_would_take_too_long(choice: Choice) -> None:
    plan, costs = choice
    steps = notches(plan, costs)
    chosen = choose_codecs(plan, costs)
    longest = WORTH_BITS * step_seconds(plan, costs, steps[0])
    index = [set(codecs) for codecs in steps].index(set(chosen))
    assert step_seconds(plan, costs, chosen) <= longest * ROUNDING
    if index + 1 < len(steps):
        assert step_seconds(plan, costs, steps[index + 1]) > longest / ROUNDING


@settings(deadline=None)
@given(choices(LONG_TIMES))
def test_no_step_is_longer_than_without_codecs(choice: Choice) -> None:
    plan, costs = choice
    found = step_seconds(plan, costs, choose_codecs(plan, costs))
    assert found <= step_seconds(plan, costs, ()) * ROUNDING


def test_the_random_plans_are_of_all_sorts() -> None:
    """What would make the tests above vacuous: codecs everywhere, or nowhere."""
    seen: set[str] = set()

    @settings(max_examples=200, deadline=None, database=None, derandomize=True)
    @given(choices(LONG_TIMES))
    def look(choice: Choice) -> None:
        plan, costs = choice
        n_links, chosen = len(messages(plan, costs)), choose_codecs(plan, costs)
        seen.add("none" if not chosen else "some" if len(chosen) < n_links else "all")
        if len({codec.bits for codec in chosen}) > 1:
            seen.add("several widths")
        if chosen and step_seconds(plan, costs, chosen) < 0.7 * step_seconds(plan, costs, ()):
            seen.add("much faster")

    look()
    assert seen == {"none", "some", "all", "several widths", "much faster"}


def two_devices(link: Link, *, always: bool = False) -> tuple[Plan, Costs]:
    """100 bytes there and back, for each second of computing."""
    costs = equal_costs(2, 2, link=link, cut=Cut(100, 100))
    costs = replace(costs, coding=Coding((16, 8, 4), always, overhead_bits=0.0))
    return one_unit_each(costs, n_microbatches=8), costs


def test_nothing_is_chosen_where_links_are_fast() -> None:
    assert choose_codecs(*two_devices(Link(1e6, 0.0))) == ()
    assert choose_codecs(*two_devices(Link(1e6, 5.0))) == ()


def test_always_means_every_link_with_the_most_bits_where_they_are_fast() -> None:
    plan, costs = two_devices(Link(1e6, 0.0), always=True)
    assert choose_codecs(plan, costs) == (LinkCodec("d0", "d1", 16), LinkCodec("d1", "d0", 16))


def test_a_slow_link_gets_the_fewest_bits_there_are() -> None:
    plan, costs = two_devices(Link(1.0, 0.0))
    assert choose_codecs(plan, costs) == (LinkCodec("d0", "d1", 4), LinkCodec("d1", "d0", 4))


@pytest.mark.parametrize(
    ("bytes_per_second", "bits"), [(200.0, None), (26.0, 16), (13.0, 8), (6.5, 4)]
)
def test_a_link_gets_as_many_bits_as_it_has_time_for(
    bytes_per_second: float, bits: int | None
) -> None:
    # One microbatch a device takes 2 s: the link, too, may take them, if enough are in flight.
    costs = equal_costs(2, 2, link=Link(1e9, 0.0), cut=Cut(100, 0))
    costs = replace(
        costs,
        links={"d0": {"d1": Link(bytes_per_second, 0.0)}},
        coding=Coding((16, 8, 4), overhead_bits=0.0),
    )
    plan = one_unit_each(costs, n_microbatches=400, extra_in_flight=10)
    expected = () if bits is None else (LinkCodec("d0", "d1", bits),)
    assert choose_codecs(plan, costs) == expected


def test_what_a_plan_had_before_does_not_matter() -> None:
    plan, costs = two_devices(Link(30.0, 0.0))
    before = replace(plan, codecs=(LinkCodec("d0", "d1", 4),))
    assert choose_codecs(before, costs) == choose_codecs(plan, costs) != before.codecs


def test_a_link_that_carries_nothing_has_no_codec_even_if_all_are_to_be_coded() -> None:
    costs = replace(equal_costs(2, 2, cut=Cut(9, 0)), coding=Coding((8,), always=True))
    assert choose_codecs(one_unit_each(costs), costs) == (LinkCodec("d0", "d1", 8),)
    alone = plan_of(costs, ("d0",), (0, 2))
    assert choose_codecs(alone, costs) == ()


def test_without_coding_there_is_nothing_to_choose() -> None:
    plan, costs = two_devices(Link(1.0, 0.0))
    assert choose_codecs(plan, replace(costs, coding=None)) == ()


@settings(max_examples=60, deadline=None)
@given(coded_costs(LONG_TIMES, always=None), st.integers(1, 5), st.integers(0, 1))
def test_a_coded_partition_equals_brute_force_over_placements_with_all_links_coded(
    costs: Costs, n_microbatches: int, extra: int
) -> None:
    fast = coded(costs)
    placements = [
        each for each in every_placement(costs) if each.fits(costs, "1f1b", n_microbatches, extra)
    ]
    assume(placements)
    shape = {"n_microbatches": n_microbatches, "extra_in_flight": extra}
    best = min(
        simulate(plan_of(fast, each.devices, each.bounds, **shape), fast).step_seconds
        for each in placements
    )
    plan = partition(costs, **shape)
    assert plan.step_seconds <= WORTH_BITS * best * ROUNDING
    assert plan.step_seconds == simulate(plan, costs).step_seconds
    assert plan.codecs == choose_codecs(plan, costs)
    if costs.coding is not None and costs.coding.always:
        assert {codec.ends for codec in plan.codecs} == messages(plan, costs).keys()


def test_codecs_make_a_split_worth_its_while_that_was_not() -> None:
    costs = equal_costs(4, 2, link=Link(10.0, 0.0), cut=Cut(100, 100))
    alone = partition(costs, n_microbatches=8)
    plan = partition(replace(costs, coding=Coding((8,))), n_microbatches=8)
    assert (len(alone.stages), len(plan.stages)) == (1, 2)
    assert {codec.ends for codec in plan.codecs} == {plan.devices, plan.devices[::-1]}
    assert plan.step_seconds < 0.8 * alone.step_seconds


def test_the_period_of_a_coded_plan_is_that_of_its_coded_links() -> None:
    costs = equal_costs(2, 2, link=Link(10.0, 0.0), cut=Cut(100, 0))
    coding = Coding((8,), always=True, overhead_bits=0.0)
    plan = partition(replace(costs, coding=coding), n_microbatches=8, use="all")
    assert plan.period_seconds == 2.5


def test_an_explanation_names_coded_links() -> None:
    costs = replace(equal_costs(4, 2, link=Link(10.0, 0.0), cut=Cut(100, 100)), coding=Coding((8,)))
    plan = partition(costs, n_microbatches=8)
    front, behind = plan.devices
    shown = "\n".join(explain(plan, costs).lines())
    assert (
        "Values are coded on their way: "
        f"{front} -> {behind} (8 bits), {behind} -> {front} (8 bits)."
    ) in shown
    plain = replace(costs, coding=None)
    assert "coded" not in "\n".join(explain(partition(plain, n_microbatches=8), plain).lines())
