from __future__ import annotations

import pytest

from edgeweave.plan import DeviceCosts
from edgeweave.train.measuring.interpolation import device_costs_at


def timed(size: int, *, overhead: float = 3.0) -> DeviceCosts:
    return DeviceCosts(
        "pi", (overhead + size, 2.0 * size), (overhead + 2 * size, 0.5), None, 1e-9 * size
    )


@pytest.mark.parametrize("size", [1, 4, 6, 16, 200])
def test_units_of_a_fixed_time_and_one_for_each_sample_are_told_exactly(size: int) -> None:
    found = device_costs_at({4: timed(4), 16: timed(16)}, size)
    assert found.forward_seconds == pytest.approx(timed(size).forward_seconds)
    assert found.backward_seconds == pytest.approx(timed(size).backward_seconds)


def test_the_two_nearest_sizes_decide() -> None:
    measured = {4: timed(4), 16: timed(16), 64: timed(64, overhead=100.0)}
    assert device_costs_at(measured, 8).forward_seconds == timed(8).forward_seconds
    assert device_costs_at(measured, 40).forward_seconds[0] == pytest.approx((19 + 164) / 2)


def test_what_was_measured_is_not_touched() -> None:
    measured = {4: timed(4), 8: timed(8, overhead=50.0), 16: timed(16)}
    assert device_costs_at(measured, 8) is measured[8]


def test_one_size_tells_of_others_in_proportion() -> None:
    found = device_costs_at({4: timed(4)}, 8)
    assert found.forward_seconds == (14.0, 16.0)
    assert found.update_seconds_per_byte == 4e-9


def test_no_line_ends_below_zero() -> None:
    measured = {4: timed(4, overhead=0.0), 8: timed(4, overhead=-3.0)}
    assert device_costs_at(measured, 64).forward_seconds[0] == 0.0
