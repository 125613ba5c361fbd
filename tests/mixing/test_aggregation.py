"""Groups partition the data, are of one class each, alike inside, and chosen by score."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from edgeweave.core.errors import ConfigError
from edgeweave.data import load_source
from edgeweave.mixing import aggregate, chosen, last_layer_scores


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 6), st.integers(1, 40), st.integers(0, 99))
def test_groups_partition_the_data_and_are_label_pure(
    n: int, n_classes: int, size: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 3, 2, generator=generator)
    labels = torch.randint(n_classes, (n,), generator=generator)
    groups = aggregate(inputs, labels, size, seed=seed)
    members = [groups.members(k) for k in range(len(groups))]
    assert sorted(np.concatenate(members).tolist()) == list(range(n))
    for number, group in enumerate(members):
        own = labels[torch.from_numpy(group)]
        assert (own == groups.labels[number]).all()
        assert len(group) <= 2 * size
        mean = inputs[torch.from_numpy(group)].mean(dim=0)
        torch.testing.assert_close(groups.points[number], mean)


def test_groups_of_a_class_are_nearly_equal_in_size() -> None:
    groups = aggregate(torch.randn(1000, 5), torch.zeros(1000, dtype=torch.int64), 20)
    sizes = {len(groups.members(k)) for k in range(len(groups))}
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) in range(14, 29)  # the power of two nearest to 1000 / 20 groups


def test_samples_of_a_group_are_more_alike_than_those_of_a_class() -> None:
    data = load_source("digits", path=None).train
    inputs, labels = data.batch(torch.arange(len(data)))
    groups = aggregate(inputs, labels, 8)
    flat = inputs.flatten(1)
    spread = sum(
        float(
            (flat[torch.from_numpy(groups.members(k))] - groups.points[k].flatten()).square().sum()
        )
        for k in range(len(groups))
    )
    whole = sum(
        float((flat[labels == c] - flat[labels == c].mean(dim=0)).square().sum()) for c in range(10)
    )
    assert spread < 0.5 * whole


def test_the_same_seed_gives_the_same_groups() -> None:
    inputs, labels = torch.randn(200, 100), torch.randint(3, (200,))
    one, two = (aggregate(inputs, labels, 10, seed=4) for _ in range(2))
    assert np.array_equal(one.order, two.order)
    assert np.array_equal(one.bounds, two.bounds)


def test_targets_that_are_no_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match="importance needs one class for each sample"):
        aggregate(torch.randn(4, 2), torch.randn(4), 2)


def test_the_closed_form_is_the_norm_that_autograd_finds() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 5, generator=generator)
    layer = torch.nn.Linear(5, 4)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    found = last_layer_scores(layer(hidden).detach(), hidden, labels)
    for k in range(6):
        layer.zero_grad()
        functional.cross_entropy(layer(hidden[k : k + 1]), labels[k : k + 1]).backward()
        assert layer.weight.grad is not None
        assert layer.bias.grad is not None
        norm = (layer.weight.grad.square().sum() + layer.bias.grad.square().sum()).sqrt()
        torch.testing.assert_close(found[k], norm)


def test_groups_of_high_scores_come_first_and_the_number_is_exact() -> None:
    groups = aggregate(torch.randn(64, 4), torch.zeros(64, dtype=torch.int64), 8)
    candidates = [5, 1, 3]
    indices = chosen(groups, candidates, torch.tensor([0.1, 2.0, 1.0]), 11)
    assert indices.tolist() == [*groups.members(1).tolist(), *groups.members(3)[:3].tolist()]
    everything = chosen(groups, candidates, torch.ones(3), 1000)
    assert len(everything) == 24
