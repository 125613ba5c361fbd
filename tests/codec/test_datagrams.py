"""What a lost datagram costs, and that rescaling makes up for it on average."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.codec import PAYLOAD_BYTES, dealt, kept, n_datagrams, put_together, row_length

SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)


@given(SHAPES, st.integers(1, 12), st.integers(0, 2**12 - 1))
def test_what_is_put_together_is_what_the_mask_keeps(
    shape: tuple[int, ...], count: int, fates: int
) -> None:
    tensor = torch.arange(1.0, 1.0 + math.prod(shape)).reshape(shape)
    arrived = torch.tensor([bool(fates >> i & 1) for i in range(count)])
    rows = dealt(tensor, count)
    assert rows.shape == (count, row_length(tensor.numel(), count))
    found = put_together(shape, tensor.dtype, count, arrived.nonzero()[:, 0], rows[arrived])
    assert torch.equal(found, tensor * kept(shape, arrived))


@given(SHAPES, st.sampled_from([2, 4, 8]))
def test_no_datagram_is_too_long_and_none_takes_the_same_neurons_of_all_samples(
    shape, item
) -> None:  # type: ignore[no-untyped-def]
    shape = (64, *shape)
    count = n_datagrams(shape, item)
    longest = -(-math.prod(shape) // count)
    assert longest * item <= PAYLOAD_BYTES
    assert count == 1 or math.gcd(count, math.prod(shape[1:])) == 1


def test_a_lost_datagram_costs_every_sample_some_of_its_neurons() -> None:
    shape = (64, 32)
    count = n_datagrams(shape, 4)
    arrived = torch.ones(count, dtype=torch.bool)
    arrived[3] = False
    left = kept(shape, arrived)
    assert left.float().mean() == pytest.approx(1 - 1 / count, abs=1e-3)
    assert left.any(0).all()
    assert left.any(1).all()


@given(st.integers(1, 6), st.sampled_from([0.3, 0.5, 0.9]))
def test_the_expectation_over_all_fates_is_the_tensor_itself(count: int, share: float) -> None:
    tensor = torch.linspace(-2, 3, 14, dtype=torch.float64).reshape(7, 2)
    expected = torch.zeros_like(tensor)
    for fates in itertools.product((False, True), repeat=count):
        chance = math.prod(share if arrives else 1 - share for arrives in fates)
        expected += chance * tensor * kept(tensor.shape, torch.tensor(fates)) / share
    torch.testing.assert_close(expected, tensor)
