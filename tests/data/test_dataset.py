"""Samples kept as two arrays: what they become when they are read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from edgeweave.core.errors import ConfigError
from edgeweave.data.dataset import ArrayDataset, Normalisation


def pictures(n: int = 6) -> ArrayDataset:
    pixels = torch.arange(n * 4, dtype=torch.uint8).reshape(n, 1, 2, 2)
    return ArrayDataset(pixels, torch.arange(n, dtype=torch.uint8))


@given(indices=st.lists(st.integers(0, 5), max_size=12))
def test_a_batch_is_its_samples_stacked(indices: list[int]) -> None:
    data = pictures()
    inputs, targets = data.batch(torch.tensor(indices, dtype=torch.int64))
    assert inputs.shape == (len(indices), 1, 2, 2)
    for position, index in enumerate(indices):
        assert torch.equal(inputs[position], data[index][0])
        assert torch.equal(targets[position], data[index][1])


def test_pixels_become_floats_from_0_to_1_and_targets_stay_whole() -> None:
    data = ArrayDataset(
        torch.tensor([[0, 51, 255]], dtype=torch.uint8), torch.tensor([255], dtype=torch.uint8)
    )
    inputs, target = data[0]
    assert torch.equal(inputs, torch.tensor([0.0, 0.2, 1.0]))
    assert (target.dtype, int(target)) == (torch.int64, 255)


@pytest.mark.parametrize(
    ("kept", "read"),
    [
        (torch.uint8, torch.float32),
        (torch.bool, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float32),
        (torch.int16, torch.int64),
        (torch.int64, torch.int64),
    ],
)
def test_inputs_are_read_as_float32_or_int64(kept: torch.dtype, read: torch.dtype) -> None:
    data = ArrayDataset(torch.ones(3, 2).to(kept), torch.zeros(3, dtype=torch.float64))
    inputs, targets = data.batch(torch.tensor([2, 0]))
    assert inputs.dtype == read
    assert targets.dtype == torch.float32


def test_changing_a_batch_leaves_the_data_as_they_were() -> None:
    data = ArrayDataset(torch.ones(3, 2), torch.zeros(3))
    inputs, targets = data.batch(torch.tensor([0, 1]))
    inputs.zero_()
    targets.fill_(9)
    assert torch.equal(data[0][0], torch.ones(2))
    assert float(data[0][1]) == 0


def test_normalisation_shifts_and_scales_each_channel() -> None:
    inputs = torch.full((2, 3, 1, 1), 255, dtype=torch.uint8)
    data = ArrayDataset(
        inputs, torch.zeros(2), normalisation=Normalisation((0.0, 0.5, 1.0), (1.0, 0.5, 0.25))
    )
    assert data[1][0].flatten().tolist() == [1.0, 1.0, 0.0]


def test_it_counts_from_the_end_and_ends_like_any_sequence() -> None:
    data = pictures(3)
    assert torch.equal(data[-1][0], data[2][0])
    assert len(list(iter(data[i] for i in range(len(data))))) == len(data) == 3
    with pytest.raises(IndexError, match=r"has 3 samples \(asked for number 3\)"):
        data[3]
    with pytest.raises(IndexError, match=r"has 3 samples \(asked for numbers -1 to 3\)"):
        data.batch(torch.tensor([-1, 3]))


def test_torchs_own_loader_reads_it() -> None:
    inputs, targets = next(iter(DataLoader(pictures(), batch_size=4)))
    assert inputs.shape == (4, 1, 2, 2)
    assert targets.tolist() == [0, 1, 2, 3]


def test_inputs_and_targets_of_different_lengths_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"one target \(got arrays of the shapes \(2, 3\) and"):
        ArrayDataset(torch.ones(2, 3), torch.ones(3))


def test_a_normalisation_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"fits the channels of the inputs \(1 numbers"):
        ArrayDataset(
            torch.ones(2, 3, 4, 4), torch.ones(2), normalisation=Normalisation((0.1,), (1.0,))
        )
    with pytest.raises(ConfigError, match="one positive std for each channel"):
        Normalisation((0.1,), (0.0,))
