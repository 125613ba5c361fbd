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


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0.0, 1e6), min_size=1, max_size=30),
    st.integers(1, 400),
    st.integers(0, 99),
)
def test_samples_are_chosen_in_proportion_to_scores(scores: list[float], n: int, seed: int) -> None:
    labels = torch.arange(len(scores)).repeat_interleave(8)
    groups = aggregate(torch.randn(len(labels), 3), labels, 8)
    assert len(groups) == len(scores)
    found = chosen(groups, range(len(scores)), torch.tensor(scores), n, seed=seed)
    assert len(found) == len(set(found.tolist())) == min(n, len(labels))
    counts = np.bincount(labels[torch.from_numpy(found)], minlength=len(scores))
    order = np.argsort(scores, kind="stable")
    assert (np.diff(counts[order]) >= -1).all()  # who matters more has no fewer, but for rounding
    again = chosen(groups, range(len(scores)), torch.tensor(scores), n, seed=seed)
    assert found.tolist() == again.tolist()


def test_a_group_that_is_taken_whole_leaves_the_rest_to_the_others() -> None:
    labels = torch.arange(4).repeat_interleave(8)
    groups = aggregate(torch.randn(32, 3), labels, 8)
    found = chosen(groups, range(4), torch.tensor([100.0, 2.0, 1.0, 1.0]), 16, seed=0)
    assert np.bincount(labels[torch.from_numpy(found)], minlength=4).tolist() == [8, 4, 2, 2]


def test_scores_that_are_not_finite_choose_nothing_but_harm_nothing() -> None:
    labels = torch.arange(3).repeat_interleave(4)
    groups = aggregate(torch.randn(12, 3), labels, 4)
    scores = torch.tensor([float("nan"), float("inf"), 1.0])
    assert len(chosen(groups, range(3), scores, 6, seed=0)) == 6
