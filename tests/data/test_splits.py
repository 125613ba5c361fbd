"""Every sample goes to exactly one device, however skewed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.core.errors import ConfigError
from edgeweave.data import Split, deal, told_split

LABELS = np.repeat(np.arange(10), 60)


@given(
    st.sampled_from(["iid", "dirichlet", "labels", "sizes"]),
    st.integers(1, 40),
    st.floats(0.05, 50.0),
    st.integers(0, 99),
)
def test_shares_partition_the_data_and_none_is_empty(
    kind: str, n: int, alpha: float, seed: int
) -> None:
    split = Split(kind, alpha=alpha, seed=seed)  # type: ignore[arg-type]
    parts = deal(LABELS, n, split)
    assert len(parts) == n
    assert sorted(np.concatenate(parts).tolist()) == list(range(600))
    assert min(map(len, parts)) >= 1
    assert [part.tolist() for part in deal(LABELS, n, split)] == [part.tolist() for part in parts]


def test_labels_give_each_device_few_classes() -> None:
    parts = deal(LABELS, 10, Split("labels", per_peer=2))
    assert max(len(np.unique(LABELS[part])) for part in parts) <= 4


def test_a_small_alpha_skews_classes_and_a_large_one_does_not() -> None:
    def most_common(alpha: float) -> float:
        parts = deal(LABELS, 8, Split("dirichlet", alpha=alpha))
        return float(np.mean([np.bincount(LABELS[p]).max() / len(p) for p in parts]))

    assert most_common(0.1) > 0.45
    assert most_common(100.0) < 0.2


def test_sizes_differ_and_classes_do_not() -> None:
    parts = deal(LABELS, 8, Split("sizes", alpha=0.5))
    assert max(map(len, parts)) > 3 * min(map(len, parts))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("iid", Split()),
        ("dirichlet(0.1)", Split("dirichlet", alpha=0.1)),
        ("labels(3)", Split("labels", per_peer=3)),
        ("sizes", Split("sizes")),
    ],
)
def test_splits_can_be_written(text: str, expected: Split) -> None:
    assert told_split(text) == expected


@pytest.mark.parametrize("text", ["", "iid(2)", "dirichlet(x)", "labels(0)", "skewed", "sizes(1"])
def test_what_is_no_split_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        told_split(text)


def test_more_devices_than_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="every device gets at least one sample"):
        deal(LABELS[:3], 4, Split())
