"""What the latency model is made from: networks that run, samples that keep, a fit that finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.latency.blocks import SamePadded
from benchmarks.latency.drawing import Example
from benchmarks.latency.kinds import undisturbed, wants_more
from benchmarks.latency.known import KNOWN
from benchmarks.latency.networks import SORTS, random_examples
from benchmarks.latency.samples import Samples, assembled, in_rounds
from benchmarks.latency.scales import Noise, fit_shared
from benchmarks.latency.solving import Solver
from benchmarks.latency.teaching import Teaching, teaching
from edgeweave.predict import FAMILIES, FEATURES
from edgeweave.predict.embedding import Alikeness, Embedding
from edgeweave.predict.features import Floats

CONV, CHEAP = FAMILIES.index("conv"), FAMILIES.index("cheap")
MACS = 1 + FEATURES.index("macs")


@pytest.mark.parametrize("sort", SORTS)
def test_every_sort_of_random_network_computes_its_loss(sort: str) -> None:
    for make in random_examples({sort: 3}):
        example = make()
        assert example.loss(example.model(example.inputs), example.targets).isfinite()


@pytest.mark.parametrize("make", [*random_examples({"encoder": 10, "tokens": 2}), KNOWN[-1]])
def test_what_a_model_reads_is_not_what_it_is_judged_by(make: Callable[[], Example]) -> None:
    # capture() takes one tensor for one value: units could not be told from the loss.
    example = make()
    assert example.inputs is not example.targets


@pytest.mark.parametrize(("size", "kernel", "stride"), [(1, 3, 1), (4, 5, 1), (7, 3, 2), (8, 3, 2)])
def test_padding_beforehand_leaves_one_position_of_each_stride(
    size: int, kernel: int, stride: int
) -> None:
    layers = nn.Sequential(SamePadded(kernel, stride), nn.Conv2d(2, 2, kernel, stride, groups=2))
    assert layers(torch.zeros(1, 2, size, size)).shape[2:] == (-(-size // stride),) * 2


def test_a_random_network_depends_on_its_name_alone() -> None:
    first, again = (random_examples({"trunk": 2})[1]() for _ in range(2))
    assert first.name == again.name == "trunk-1"
    assert str(first.model) == str(again.model)


PARTS = {"a": "random", "b": "random", "c": "random", "d": "random", "known": "known"}


def test_random_networks_are_in_one_round_and_known_ones_in_all() -> None:
    rounds = in_rounds(PARTS, PARTS)  # type: ignore[arg-type]
    assert rounds == [["a", "d", "known"], ["b", "known"], ["c", "known"]]


def operators(families: Floats, macs: Floats) -> Floats:
    rows = np.zeros((len(families), 1 + len(FEATURES)))
    rows[:, 0], rows[:, MACS] = families, macs
    return rows


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> Samples:
    monkeypatch.setattr("benchmarks.latency.samples.KINDS", ("fast", "slow"))
    row = operators(np.array([CONV]), np.array([10.0]))
    once = {"a": np.array([[1.0, 2.0]]), "known": np.array([[3.0, 4.0]])}
    again = {"known": np.array([[5.0, 4.0]])}
    slow = [{name: 2 * each for name, each in found.items()} for found in (once, again)]
    return assembled(
        {"a": [row], "known": [row]},
        {"a": "random", "known": "known"},
        [{"fast": once, "slow": slow[0]}, {"fast": again, "slow": slow[1]}],
    )


def test_medians_of_the_rounds_count_and_single_rounds_are_kept(samples: Samples) -> None:
    assert samples.seconds["fast"].tolist() == [[1.0, 2.0], [4.0, 4.0]]
    assert samples.rounds["slow"][:, 1].tolist() == [[6.0, 8.0], [10.0, 8.0]]
    assert np.isnan(samples.rounds["slow"][:, 0]).all()


def test_samples_are_the_same_after_a_file(samples: Samples, tmp_path: Path) -> None:
    samples.save(tmp_path / "samples.npz")
    again = Samples.load(tmp_path / "samples.npz")
    assert (again.networks, again.parts) == (samples.networks, samples.parts)
    for kind in samples.seconds:
        np.testing.assert_allclose(again.seconds[kind], samples.seconds[kind])
        np.testing.assert_allclose(again.rounds[kind], samples.rounds[kind])


def test_units_that_a_kind_did_not_time_teach_it_what_other_kinds_tell() -> None:
    first = np.exp(np.random.default_rng(0).normal(size=(6, 2)))
    second = 3 * first**0.5
    second[4:] = np.nan
    rows = operators(np.full(6, CONV), np.arange(6.0))
    seconds = {"first": first, "second": second}
    samples = Samples(tuple("abcdef"), ("random",) * 6, rows, np.arange(6), seconds)
    found = teaching(samples, ["first", "second"]).log_seconds["second"]
    np.testing.assert_allclose(found, np.log(3 * first**0.5))


def test_known_networks_do_not_teach(samples: Samples) -> None:
    taught = teaching(samples, ["slow"])
    assert taught.n_units == 1
    assert taught.log_seconds["slow"].tolist() == [[pytest.approx(np.log(2)), np.log(4)]]


def taught() -> tuple[Teaching, Floats]:
    """Units of a convolution and something cheap; how much longer than believed operators take."""
    chance = np.random.default_rng(0)
    n_units = 150
    families = np.tile([CONV, CHEAP], n_units).astype(float)
    rows = operators(families, chance.uniform(0, 6, 2 * n_units))
    longer = np.where(families == CONV, np.sin(rows[:, MACS]), 0.5)
    owners = np.repeat(np.arange(n_units), 2)
    took = np.log(np.bincount(owners, weights=1e-3 * np.exp(longer)))
    return Teaching(rows, owners, {"a": np.stack([took, took], axis=1)}), longer


def alikeness() -> Alikeness:
    n_families = len(FAMILIES)
    scales = np.ones((n_families, len(FEATURES)))
    return Alikeness(scales, np.ones(n_families), np.ones(n_families), 0.1)


def test_what_units_take_is_found_again_despite_some_that_are_far_off() -> None:
    known, _ = taught()
    right = known.typical()[:, 0]
    known.log_seconds["a"][::15] += 2.0
    points = operators(np.full(25, CONV), np.linspace(0, 6, 25))[:, 1:]
    solver = Solver(known, Embedding({"conv": points}, alikeness()))
    seconds = np.full(len(known.rows), 1e-3)
    found = solver.coefficients(seconds, known.typical()[:, 0], Noise(0.05, 0.0), n_steps=6)
    again = np.log(known.totals(seconds * np.exp(solver.values(found))))
    assert np.abs(again - right).mean() < 0.05


def test_features_that_do_not_matter_get_long_scales() -> None:
    known, longer = taught()
    known.rows[:, 1 + FEATURES.index("batch")] = np.random.default_rng(1).uniform(0, 6, len(longer))
    found, noise = fit_shared(known, np.full((2, len(longer)), 1e-3), seed=0)
    scales = dict(zip(FEATURES, found.scales[CONV], strict=True))
    assert scales["batch"] > 3 * scales["macs"]
    assert noise.all < 0.2


def test_passes_that_waited_for_a_core_count_only_where_there_are_too_few_others() -> None:
    quiet, busy = [0.0] * 5, [0.3, 0.5]
    assert undisturbed([0.3, *quiet, 0.5]).tolist() == [1, 2, 3, 4, 5]
    assert undisturbed([*busy, 0.0, 0.1, 0.2, 0.4]).tolist() == [2, 3, 4, 0, 5]


def test_more_passes_are_tried_while_too_few_were_quiet() -> None:
    assert wants_more([0.0] * 4, 0.5)
    assert not wants_more([0.0] * 5, 0.5)
    assert wants_more([0.3] * 8, 0.5)
    assert not wants_more([0.3] * 8, 5.0)
