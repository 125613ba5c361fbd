"""Members get the devices whose links lose least of what they say: against brute force."""

from __future__ import annotations

from itertools import permutations
from random import Random

import numpy as np
import pytest
import torch
from torch import nn

from edgeweave.core.errors import PlanError
from edgeweave.plan import fitness, map_members, traffic
from edgeweave.program import Group, capture, slice_program


def drawn(n_members: int, n_devices: int, seed: int):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    sent = rng.integers(0, 100, (n_members, n_members)).astype(float)
    np.fill_diagonal(sent, 0)
    names = [f"pi-{index}" for index in range(n_devices)]
    reception = {(a, b): float(rng.uniform(0.5, 1)) for a in names for b in names if a != b}
    return sent, names, reception


def value(placement, sent, reception) -> float:  # type: ignore[no-untyped-def]
    return sum(
        sent[i, j] * reception[a, b]
        for i, a in enumerate(placement)
        for j, b in enumerate(placement)
        if i != j
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n_members", "n_devices"), [(4, 4), (3, 5)])
def test_up_to_eight_devices_nothing_is_better(n_members: int, n_devices: int, seed: int) -> None:
    sent, names, reception = drawn(n_members, n_devices, seed)
    placement = map_members(sent, names, reception, Random(0))
    best = max(value(order, sent, reception) for order in permutations(names, n_members))
    assert value(placement, sent, reception) == pytest.approx(best)


def test_above_eight_the_search_comes_near_and_repeats_itself() -> None:
    sent, names, reception = drawn(9, 9, 1)
    placement = map_members(sent, names, reception, Random(3))
    assert placement == map_members(sent, names, reception, Random(3))
    assert sorted(placement) == sorted(names)
    rng = Random(5)
    tried = [value(rng.sample(names, 9), sent, reception) for _ in range(2000)]
    assert value(placement, sent, reception) > max(tried)


def test_fitness_is_the_papers_sum() -> None:
    sent, names, reception = drawn(4, 4, 2)
    matrix = np.array([[reception.get((a, b), 1.0) for b in names] for a in names])
    order = [2, 0, 3, 1]
    expected = value([names[i] for i in order], sent, reception)
    assert fitness(order, sent, matrix) == pytest.approx(expected)


def test_more_slices_than_devices_are_refused() -> None:
    sent, _, reception = drawn(4, 4, 2)
    with pytest.raises(PlanError, match=r"4 slices need as many devices \(got 2\)"):
        map_members(sent, ["pi-0", "pi-1"], reception, Random(0))


def test_traffic_is_counted_by_hand() -> None:
    """12-8-8-5, two devices, batch 3: two exchanges of 4 neurons each way and back, and sums."""
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))
    batch = torch.randn(3, 12), torch.randint(5, (3,))
    program = capture(model, nn.functional.cross_entropy, *batch).program
    n_units = program.unit_numbers[-1] + 1
    sent = traffic(slice_program(program, [Group(0, n_units, 2)]), 3)
    one_way = 3 * 4 * 4  # samples, neurons, bytes
    sums = 3 * 5 * 4
    assert sent.tolist() == [[0, 2 * one_way + 2 * sums], [2 * one_way + 2 * sums, 0]]
