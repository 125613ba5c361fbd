"""Samples of a step follow from the step alone, and every epoch has all of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.data import Split, deal
from edgeweave.device.peers.sampler import Sampler


@given(st.integers(1, 200), st.integers(1, 64), st.integers(0, 9))
def test_an_epoch_has_everything_once_and_steps_can_be_asked_in_any_order(
    n: int, size: int, seed: int
) -> None:
    sampler = Sampler(n, size, seed=seed)
    steps = range(sampler.steps_per_epoch)
    epoch = [sampler.at(step) for step in steps]
    assert torch.cat(epoch).sort().values.tolist() == list(range(n))
    again = Sampler(n, size, seed=seed)
    again.at(5 * sampler.steps_per_epoch)
    assert all(torch.equal(again.at(step), epoch[step]) for step in reversed(steps))


@given(st.integers(1, 200), st.integers(1, 64))
def test_whole_pieces_are_all_of_one_size(n: int, size: int) -> None:
    sampler = Sampler(n, size, seed=0, whole_only=True)
    pieces = [sampler.at(step) for step in range(3 * sampler.steps_per_epoch)]
    assert {len(piece) for piece in pieces} == {min(n, size)}


def test_epochs_have_orders_of_their_own() -> None:
    sampler = Sampler(100, 100, seed=0)
    assert not torch.equal(sampler.at(0), sampler.at(1))


@pytest.mark.parametrize("seed", [0, 2**31 - 1, 2**40])
def test_every_epoch_has_everything_once_whatever_the_seed(seed: int) -> None:
    """Bug: what a run's seed of 10 digits became was too large for torch and numpy."""
    sampler = Sampler(10, 4, seed=seed * 65_537 + 3)
    for epoch in range(2):
        drawn = torch.cat([sampler.at(3 * epoch + place) for place in range(3)])
        assert sorted(drawn.tolist()) == list(range(10))
    parts = deal(torch.zeros(6, dtype=torch.int64).numpy(), 2, Split(seed=seed))
    assert sorted(number for part in parts for number in part.tolist()) == list(range(6))
