"""The arithmetic of comparisons, and what a result refuses."""

from __future__ import annotations

import pytest

from benchmarks.claim import Metric
from benchmarks.harness import Result, interleaved, ratios, spread


def test_contestants_take_turns() -> None:
    order: list[str] = []

    def measure(name: str) -> float:
        order.append(name)
        return float(len(order))

    samples = interleaved(2, {"a": lambda: measure("a"), "b": lambda: measure("b")})
    assert order == ["a", "b", "a", "b"]
    assert samples == {"a": [1.0, 3.0], "b": [2.0, 4.0]}


def test_a_ratio_is_of_one_turn() -> None:
    assert ratios([2.0, 6.0], [1.0, 2.0]) == [2.0, 3.0]


def test_turns_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratios([2.0, 6.0], [1.0])


def test_the_spread_of_one_sample_is_that_sample() -> None:
    whole = spread([3.0])
    assert (whole.median, whole.low_quartile, whole.high_quartile, whole.n) == (3.0, 3.0, 3.0, 1)


def test_a_document_has_the_quartiles_of_every_series() -> None:
    result = _result({"efficiency": 3.0}, {"seed": 0})
    assert result.document()["series"]["fleet"] == {
        "median": 3.0,
        "quartiles": [2.0, 4.0],
        "samples": [1.0, 2.0, 3.0, 4.0, 5.0],
    }


def test_a_metric_that_no_claim_names_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown: speed; settings: seed"):
        _result({"speed": 1.0}, {"seed": 0})


def test_a_result_without_a_seed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown: none; settings: turns"):
        _result({"efficiency": 1.0}, {"turns": 3})


@pytest.mark.parametrize(
    ("metric", "value", "met"),
    [
        (Metric("x", "", least=1.0), 0.99, False),
        (Metric("x", "", least=1.0), 1.0, True),
        (Metric("x", "", most=80), 80.5, False),
        (Metric("x", "", least=0.9, most=1.1), 1.0, True),
        (Metric("x", ""), 5.0, None),
    ],
)
def test_a_target_is_met_within_its_bounds(metric: Metric, value: float, met: bool | None) -> None:
    assert metric.is_met(value) is met


def _result(metrics: dict[str, float], settings: dict[str, object]) -> Result:
    samples = {"fleet": [1.0, 2.0, 3.0, 4.0, 5.0]}
    return Result("efficiency", True, metrics, (), samples, settings, machine={})
