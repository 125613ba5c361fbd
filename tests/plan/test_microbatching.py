from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.core.errors import ConfigError, PlanError
from edgeweave.plan import (
    Costs,
    best_microbatching,
    microbatch_sizes,
    partition,
    worthwhile_sizes,
)

from .worlds import equal_costs


def with_overhead(size: int, *, overhead: float = 1.0, n_devices: int = 2) -> Costs:
    """A unit takes a fixed time and a second for each sample."""
    costs = equal_costs(
        4, n_devices, forward_seconds=overhead + size, backward_seconds=overhead + size
    )
    units = tuple(replace(unit, activation_bytes=100 * size) for unit in costs.units)
    return replace(costs, units=units)


@given(st.integers(1, 500))
def test_sizes_are_those_of_doubled_counts_from_the_whole_batch_to_one_sample(
    batch_size: int,
) -> None:
    sizes = microbatch_sizes(batch_size)
    assert (sizes[0], sizes[-1]) == (batch_size, 1)
    assert all(below == -(-above // 2) for above, below in pairwise(sizes))


@given(st.integers(1, 500), st.integers(1, 9), st.integers(1, 40))
def test_worthwhile_sizes_keep_to_their_bounds(batch: int, n_stages: int, at_least: int) -> None:
    sizes = worthwhile_sizes(batch, n_stages, at_least=at_least)
    assert sizes[0] == batch
    assert set(sizes[1:]) == {
        size
        for size in microbatch_sizes(batch)[1:]
        if min(size, batch % size or size) >= at_least and -(-batch // size) <= 8 * n_stages
    }


def test_what_was_tried_is_told_with_what_does_not_fit() -> None:
    def costs_at(size: int) -> Costs:
        costs = with_overhead(size, n_devices=1)
        (device,) = costs.devices
        return replace(costs, devices=(replace(device, memory_limit_bytes=4 * (21 + 400)),))

    found = best_microbatching(costs_at, 16)
    assert [(each.n_microbatches, each.microbatch_size) for each in found.tried] == [
        (1, 16),
        (2, 8),
        (4, 4),
        (8, 2),
    ]
    fits = [each.step_seconds is not None for each in found.tried]
    assert fits == [False, False, True, True]
    steps = [each.step_seconds for each in found.tried if each.step_seconds is not None]
    assert found.plan.step_seconds in steps
    assert found.plan.step_seconds <= 1.03 * min(steps)


def test_no_size_below_the_least_is_tried() -> None:
    assert best_microbatching(partial(with_overhead, overhead=0.0), 64).microbatch_size < 16
    found = best_microbatching(partial(with_overhead, overhead=0.0), 64, at_least=16)
    assert found.microbatch_size == 16

    def small(size: int) -> Costs:
        costs = with_overhead(size, overhead=0.0)
        devices = [replace(each, memory_limit_bytes=4 * (21 + 800)) for each in costs.devices]
        return replace(costs, devices=tuple(devices))

    assert best_microbatching(small, 64).microbatch_size < 16
    with pytest.raises(PlanError, match="no split of 4 units fits"):
        best_microbatching(small, 64, at_least=16)
    assert best_microbatching(small, 8, at_least=16).microbatch_size == 8


@pytest.mark.parametrize("overhead", [0.0, 0.5, 4.0, 100.0])
def test_the_size_is_the_largest_within_3_percent_of_the_shortest_step(overhead: float) -> None:
    found = best_microbatching(lambda size: with_overhead(size, overhead=overhead), 16)
    steps = {
        size: partition(
            with_overhead(size, overhead=overhead), n_microbatches=16 // size
        ).step_seconds
        for size in (16, 8, 4, 2, 1)
    }
    good = [size for size, step in steps.items() if step <= 1.03 * min(steps.values())]
    assert found.microbatch_size == max(good)
    assert found.plan.step_seconds == steps[found.microbatch_size]
    assert found.plan.n_microbatches == 16 // found.microbatch_size


def test_a_large_overhead_asks_for_large_microbatches() -> None:
    sizes = [
        best_microbatching(lambda s, o=overhead: with_overhead(s, overhead=o), 16).microbatch_size
        for overhead in (0.0, 4.0, 1000.0)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] == 16


def test_costs_are_asked_once_for_each_size_up_to_eight_microbatches_a_device() -> None:
    asked: list[int] = []

    def costs_at(size: int) -> Costs:
        asked.append(size)
        return with_overhead(size)

    best_microbatching(costs_at, 64)
    assert asked == [64, 32, 16, 8, 4]


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
