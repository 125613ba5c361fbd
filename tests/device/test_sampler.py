"""Orders are drawn from any seed."""

from __future__ import annotations

import pytest
import torch

from edgeweave.data import Split, deal
from edgeweave.device.sampler import Sampler


@pytest.mark.parametrize("seed", [0, 2**31 - 1, 2**40])
def test_every_epoch_has_everything_once_whatever_the_seed(seed: int) -> None:
    """Bug: what a run's seed of 10 digits became was too large for torch and numpy."""
    sampler = Sampler(10, 4, seed=seed * 65_537 + 3)
    for epoch in range(2):
        drawn = torch.cat([sampler.at(3 * epoch + place) for place in range(3)])
        assert sorted(drawn.tolist()) == list(range(10))
    parts = deal(torch.zeros(6, dtype=torch.int64).numpy(), 2, Split(seed=seed))
    assert sorted(number for part in parts for number in part.tolist()) == list(range(6))
