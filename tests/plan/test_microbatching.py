from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.core.errors import ConfigError, PlanError
from edgeweave.plan import Costs, best_microbatching, microbatch_sizes, partition

from .worlds import equal_costs


def with_overhead(size: int, *, overhead: float = 1.0, n_devices: int = 2) -> Costs:
    """A unit takes a fixed time and a second for each sample."""
    costs = equal_costs(
        4, n_devices, forward_seconds=overhead + size, backward_seconds=overhead + size
    )
    units = tuple(replace(unit, activation_bytes=100 * size) for unit in costs.units)
    return replace(costs, units=units)


@given(st.integers(1, 500))
def test_sizes_are_the_divisors_from_the_largest(batch_size: int) -> None:
    divisors = [size for size in range(1, batch_size + 1) if batch_size % size == 0]
    assert list(microbatch_sizes(batch_size)) == divisors[::-1]


@pytest.mark.parametrize("overhead", [0.0, 0.5, 4.0, 100.0])
def test_the_size_has_the_shortest_step_of_all_that_are_tried(overhead: float) -> None:
    found = best_microbatching(lambda size: with_overhead(size, overhead=overhead), 16)
    steps = {
        size: partition(
            with_overhead(size, overhead=overhead), n_microbatches=16 // size
        ).step_seconds
        for size in (16, 8, 4, 2)
    }
    assert found.plan.step_seconds == min(steps.values()) == steps[found.microbatch_size]
    assert found.plan.n_microbatches == 16 // found.microbatch_size


def test_a_large_overhead_asks_for_large_microbatches() -> None:
    sizes = [
        best_microbatching(lambda s, o=overhead: with_overhead(s, overhead=o), 16).microbatch_size
        for overhead in (0.0, 4.0, 1000.0)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] == 16


def test_costs_are_asked_once_for_each_size_up_to_four_microbatches_a_device() -> None:
    asked: list[int] = []

    def costs_at(size: int) -> Costs:
        asked.append(size)
        return with_overhead(size)

    best_microbatching(costs_at, 64)
    assert asked == [64, 32, 16, 8]


def test_smaller_microbatches_are_tried_as_long_as_nothing_fits() -> None:
    def costs_at(size: int) -> Costs:
        costs = with_overhead(size, n_devices=1)
        (device,) = costs.devices
        return replace(costs, devices=(replace(device, memory_limit_bytes=4 * (21 + 100)),))

    found = best_microbatching(costs_at, 16)
    assert found.microbatch_size == 1
    with pytest.raises(PlanError, match="no split of 4 units fits"):
        best_microbatching(costs_at, 16, sizes=[4, 8])


def test_named_sizes_need_not_divide_the_batch() -> None:
    found = best_microbatching(with_overhead, 10, sizes=[3])
    assert (found.microbatch_size, found.plan.n_microbatches) == (3, 4)


def test_sizes_and_batches_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size must be positive"):
        best_microbatching(with_overhead, 0)
    for sizes in ([], [0], [17]):
        with pytest.raises(ConfigError, match="sizes of microbatches are 1 to batch_size"):
            best_microbatching(with_overhead, 16, sizes=sizes)
