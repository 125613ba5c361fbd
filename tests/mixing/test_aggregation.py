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
from edgeweave.mixing import aggregate, last_layer_scores, weighted, whole_groups


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


SCORES = st.lists(
    st.one_of(st.floats(0.0, 1e6), st.sampled_from([float("nan"), float("inf")])),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(SCORES, st.integers(1, 400), st.integers(0, 99))
def test_a_weighted_choice_has_the_number_asked_for_and_no_weight_above_two(
    scores: list[float], n: int, seed: int
) -> None:
    labels = torch.arange(len(scores)).repeat_interleave(8)
    groups = aggregate(torch.randn(len(labels), 3), labels, 8)
    found, again = (weighted(groups, torch.tensor(scores), n, seed=seed) for _ in range(2))
    assert len(set(found.indices.tolist())) == len(found.indices) == min(n, len(labels))
    assert found.weights is not None
    assert ((found.weights > 0) & (found.weights < 2.001)).all()
    assert found.indices.tolist() == again.indices.tolist()


def test_more_is_chosen_where_scores_are_higher_and_the_same_where_none_is_known() -> None:
    labels = torch.arange(4).repeat_interleave(8)
    groups = aggregate(torch.randn(32, 3), labels, 8)
    for scores, wanted in (
        ([9.0, 1.0, 1.0, 1.0], [8, 3, 3, 2]),
        ([float("nan")] * 4, [4, 4, 4, 4]),
        ([0.0] * 4, [4, 4, 4, 4]),
    ):
        found = weighted(groups, torch.tensor(scores), 16, seed=3)
        counts = np.bincount(labels[torch.from_numpy(found.indices)], minlength=4)
        assert np.abs(counts - np.array(wanted)).max() <= 1


def test_every_class_is_chosen_from_in_its_proportion() -> None:
    """A random choice of 40 has between none and eight of a class of a tenth."""
    labels = torch.arange(10).repeat_interleave(100)
    groups = aggregate(torch.randn(1000, 3), labels, 8)
    for seed in range(50):
        found = weighted(groups, torch.ones(len(groups)), 40, seed=seed)
        counts = np.bincount(labels[torch.from_numpy(found.indices)], minlength=10)
        assert counts.min() >= 3
        assert counts.max() <= 5


def test_a_weighted_choice_is_worth_all_samples_in_the_mean_and_varies_less_than_chance() -> None:
    """What is hard is chosen more often, and counts less for it: no mean is shifted to it."""
    random = np.random.default_rng(0)
    labels = torch.arange(16).repeat_interleave(4)
    groups = aggregate(torch.randn(64, 3), labels, 4)
    spread = np.repeat(np.geomspace(0.02, 10.0, 16), 4)
    values = spread + spread * random.normal(size=64)  # a gradient of each sample, say
    scores = torch.from_numpy(np.geomspace(0.02, 10.0, 16))
    means: dict[str, list[float]] = {"weighted": [], "bare": [], "random": []}
    for seed in range(3000):
        found = weighted(groups, scores, 20, seed=seed)
        assert found.weights is not None
        own = values[found.indices]
        means["weighted"].append(float((found.weights.numpy() * own).mean()))
        means["bare"].append(float(own.mean()))
        means["random"].append(float(values[random.permutation(64)[:20]].mean()))
    whole = values.mean()
    error = np.std(means["weighted"]) / 3000**0.5
    assert abs(np.mean(means["weighted"]) - whole) < 4 * error
    assert np.mean(means["bare"]) > 1.3 * whole
    assert np.std(means["weighted"]) < 0.75 * np.std(means["random"])


def test_whole_groups_are_taken_in_the_order_of_their_scores() -> None:
    labels = torch.arange(4).repeat_interleave(4)
    groups = aggregate(torch.randn(16, 3), labels, 4)
    for scores in ([1.0, 4.0, 3.0, 2.0], [float("nan"), 4.0, 3.0, 2.0]):
        found = whole_groups(groups, range(4), torch.tensor(scores), 10)
        counts = np.bincount(labels[torch.from_numpy(found.indices)], minlength=4)
        assert counts.tolist() == [0, 4, 4, 2]
        assert found.weights is None
    assert len(whole_groups(groups, [2], torch.tensor([1.0]), 10).indices) == 4
