"""What devices may take is drawn from how far predictions are said to be off."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import stdev

import pytest

from edgeweave.core.errors import ConfigError
from edgeweave.plan import Costs, Deviation, Interval, drawn_costs

from .worlds import equal_costs


def predicted(n_units: int, n_devices: int, *, correlation: float, deviation: float = 0.3) -> Costs:
    costs = equal_costs(n_units, n_devices)
    each = (deviation,) * n_units
    devices = (
        replace(device, deviation=Deviation(each, each, correlation)) for device in costs.devices
    )
    return replace(costs, devices=tuple(devices))


def test_nothing_is_drawn_where_everything_was_measured() -> None:
    assert drawn_costs(equal_costs(3, 2), 5, seed=0) == []


def test_a_device_that_was_measured_is_the_same_in_every_draw() -> None:
    costs = predicted(3, 2, correlation=0.5)
    measured = replace(costs.devices[0], deviation=None)
    drawn = drawn_costs(replace(costs, devices=(measured, costs.devices[1])), 4, seed=0)
    assert {each.devices[0] for each in drawn} == {measured}
    assert len({each.devices[1] for each in drawn}) == 4


def test_the_same_seed_draws_the_same() -> None:
    costs = predicted(3, 2, correlation=0.5)
    assert drawn_costs(costs, 3, seed=7) == drawn_costs(costs, 3, seed=7)
    assert drawn_costs(costs, 3, seed=7) != drawn_costs(costs, 3, seed=8)


def test_all_units_of_a_device_err_alike_where_the_correlation_is_one() -> None:
    for drawn in drawn_costs(predicted(5, 2, correlation=1.0), 3, seed=0):
        ways = [device.forward_seconds + device.backward_seconds for device in drawn.devices]
        assert [way == pytest.approx([way[0]] * 10) for way in ways] == [True, True]
        assert ways[0][0] != ways[1][0]


@pytest.mark.parametrize("correlation", [0.0, 0.4, 1.0])
def test_draws_deviate_as_far_as_was_said(correlation: float) -> None:
    drawn = drawn_costs(predicted(8, 1, correlation=correlation), 2000, seed=0)
    forward = [each.devices[0].forward_seconds for each in drawn]
    assert stdev(math.log(each[3]) for each in forward) == pytest.approx(0.3, rel=0.1)
    means = [sum(map(math.log, each)) / 8 for each in forward]
    expected = 0.3 * math.sqrt(correlation + (1 - correlation) / 8)
    assert stdev(means) == pytest.approx(expected, rel=0.1)


def test_an_interval_leaves_out_a_twentieth_at_each_end() -> None:
    assert Interval.of([float(n) for n in range(21)]) == Interval(1.0, 19.0)
    assert Interval.of([4.0]) == Interval(4.0, 4.0)


@pytest.mark.parametrize(
    ("deviation", "message"),
    [
        (((0.1,), (0.1, 0.1), 0.5), "device 'd0' must have a deviation for each of its times"),
        (((0.1, -0.1), (0.1, 0.1), 0.5), "the deviation of a unit must"),
        (((0.1, 0.1), (0.1, 0.1), 1.5), "the correlation of a device's errors is 0 to 1"),
    ],
)
def test_a_deviation_that_means_nothing_is_refused(
    deviation: tuple[tuple[float, ...], tuple[float, ...], float], message: str
) -> None:
    costs = equal_costs(2, 1)
    with pytest.raises(ConfigError) as refused:
        replace(costs, devices=(replace(costs.devices[0], deviation=Deviation(*deviation)),))
    assert str(refused.value).startswith(message)
