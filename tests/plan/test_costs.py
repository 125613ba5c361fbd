from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from edgeweave.core.errors import ConfigError
from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.plan import Costs, Cut, DeviceCosts, Feed, Link, UnitFacts
from edgeweave.plan.costs import crossings, feeding, stage_seconds

from .worlds import equal_costs, with_links


def message_of(build: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        build()
    return str(caught.value)


def test_a_stage_takes_the_sum_of_its_units_and_updates_what_it_trains() -> None:
    costs = equal_costs(3, 1, forward_seconds=1.0, backward_seconds=2.0)
    device = replace(costs.devices[0], update_seconds_per_byte=0.5)
    seconds = stage_seconds(replace(costs, devices=(device,)), "d0", 1, 3)
    assert (seconds.forward, seconds.backward, seconds.update) == (2.0, 4.0, 10.0)
    assert seconds.microbatch == 6.0


def test_the_two_directions_of_a_cut_use_their_own_links_and_bytes() -> None:
    costs = replace(equal_costs(2, 2), cuts=(Cut(10, 30),))
    costs = with_links(costs, {("d0", "d1"): Link(10, 0.5), ("d1", "d0"): Link(5, 0.25)})
    there, back = crossings(costs, "d0", "d1", 0)
    assert (there.src, there.dst, there.transfer_seconds) == ("d0", "d1", 1.5)
    assert (back.src, back.dst, back.transfer_seconds) == ("d1", "d0", 6.25)


def test_a_stage_is_fed_what_any_of_its_units_uses_once() -> None:
    feeds = (Feed("input:0", 30, (0, 1)), Feed("target:0", 10, (2,)))
    costs = replace(equal_costs(3, 1), feeds=feeds)
    costs = with_links(costs, {(COORDINATOR_NAME, "d0"): Link(10, 0.5)})
    whole, front = feeding(costs, "d0", 0, 3), feeding(costs, "d0", 0, 2)
    assert whole is not None
    assert (whole.src, whole.occupied_seconds, whole.arrival_seconds) == ("coordinator", 4.0, 0.5)
    assert front is not None
    assert front.transfer_seconds == 3.5
    assert feeding(replace(costs, feeds=feeds[1:]), "d0", 0, 2) is None


def test_costs_that_were_saved_without_feeds_have_none() -> None:
    costs = equal_costs(2, 2)
    saved = msgspec.json.decode(msgspec.json.encode(costs))
    del saved["feeds"]
    assert msgspec.json.decode(msgspec.json.encode(saved), type=Costs) == costs


def test_a_feed_of_a_unit_that_is_not_there_is_refused() -> None:
    feeds = (Feed("target:0", 1, (1, 2)),)
    assert message_of(lambda: replace(equal_costs(2, 1), feeds=feeds)) == (
        "'target:0' must be used by some of the units 0 to 1 (got (1, 2)). Measure the model again."
    )


def test_a_link_that_is_not_listed_is_the_default_link() -> None:
    costs = with_links(equal_costs(2, 3), {("d0", "d1"): Link(1, 2)})
    assert costs.link("d0", "d1") == Link(1, 2)
    assert costs.link("d1", "d0") == costs.default_link
    assert costs.link("d2", "d0") == costs.default_link


def test_only_keeps_the_named_devices_in_their_order() -> None:
    kept = equal_costs(2, 3).only(["d2", "d0"])
    assert [device.device for device in kept.devices] == ["d0", "d2"]


def test_costs_travel_as_json() -> None:
    costs = with_links(equal_costs(2, 2), {("d0", "d1"): Link(1, 2)})
    assert msgspec.json.decode(msgspec.json.encode(costs), type=Costs) == costs


def test_an_unknown_device_is_named_with_the_known_ones() -> None:
    assert message_of(lambda: equal_costs(1, 2).device("pi")) == (
        "no costs for device 'pi' (known: d0, d1). Measure it first."
    )


def test_more_trainable_than_parameter_bytes_is_refused() -> None:
    assert message_of(lambda: UnitFacts("conv", 1, 2, 0, 0)) == (
        "trainable_bytes of unit 'conv' must be part of its parameter_bytes (2 > 1). "
        "Measure the unit again."
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_times_must_be_finite_and_not_negative(bad: float) -> None:
    rule = f"must be finite and not negative (got {bad}). Measure again."
    assert message_of(lambda: DeviceCosts("pi", (bad,), (1.0,), None)) == (
        f"forward_seconds of device 'pi' {rule}"
    )
    assert message_of(lambda: DeviceCosts("pi", (1.0,), (bad,), None)) == (
        f"backward_seconds of device 'pi' {rule}"
    )
    assert message_of(lambda: DeviceCosts("pi", (), (), None, bad)) == (
        f"update_seconds_per_byte of device 'pi' {rule}"
    )


def test_negative_bytes_are_refused_everywhere() -> None:
    rule = "must be finite and not negative (got -1). Measure again."
    assert message_of(lambda: UnitFacts("conv", 0, 0, 0, -1)) == (
        f"activation_bytes of unit 'conv' {rule}"
    )
    assert message_of(lambda: Cut(0, -1)) == f"backward_bytes of a cut {rule}"
    assert message_of(lambda: DeviceCosts("pi", (), (), -1)) == (
        f"memory_limit_bytes of device 'pi' {rule}"
    )
    assert message_of(lambda: Link(1, -1)) == f"latency_seconds of a link {rule}"


def test_a_link_without_rate_is_refused() -> None:
    assert message_of(lambda: Link(0, 0)) == (
        "bytes_per_second of a link must be above zero (got 0). Leave the device out."
    )


def test_the_parts_of_costs_must_have_matching_lengths() -> None:
    good = equal_costs(2, 1)
    assert message_of(lambda: replace(good, cuts=())) == (
        "there is one cut between two neighbouring units (got 0 cuts for 2 units). "
        "Measure the model again."
    )
    short = DeviceCosts("d0", (1.0,), (1.0, 1.0), None)
    assert message_of(lambda: replace(good, devices=(short,))) == (
        "device 'd0' must have a forward and a backward time for each unit "
        "(got 1 and 2 for 2 units). Measure it again."
    )
    assert message_of(lambda: replace(good, devices=())) == (
        "a plan needs at least one unit and one device (got 2 and 0). Join a device first."
    )


def test_two_devices_with_one_name_are_refused() -> None:
    good = equal_costs(1, 1)
    assert message_of(lambda: replace(good, devices=good.devices * 2)) == (
        "device names must differ (twice: d0). Rename one of them."
    )
