"""One device's times: what is noise, what is a shift, and how soon it is told apart."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeweave.core.errors import ConfigError
from edgeweave.plan.drift import Drift

SHIFTED_AT = 100
SPIKES = 0.03


def times(
    seed: int, noise: float, n: int = 160, ratio: Callable[[int], float] = lambda _step: 1.0
) -> list[float]:
    """Lognormal, and now and then twice to ten times as long."""
    rng = random.Random(seed)
    return [
        ratio(step)
        * rng.lognormvariate(0, noise)
        * (rng.uniform(2, 10) if rng.random() < SPIKES else 1)
        for step in range(n)
    ]


def shifted(ratio: float) -> Callable[[int], float]:
    return lambda step: ratio if step >= SHIFTED_AT else 1.0


def noticed(drift: Drift, ratios: list[float]) -> list[int]:
    return [step for step, ratio in enumerate(ratios) if drift.observe(ratio)]


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.1, 0.2])
def test_noise_and_spikes_alone_are_no_shift(noise: float) -> None:
    assert [noticed(Drift(), times(seed, noise, 300)) for seed in range(50)] == [[]] * 50


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.1])
@pytest.mark.parametrize("ratio", [3.0, 1 / 3])
def test_a_shift_to_a_third_is_noticed_once_within_ten_steps_and_sized(
    noise: float, ratio: float
) -> None:
    found = []
    for seed in range(50):
        drift = Drift()
        (step,) = noticed(drift, times(seed, noise, ratio=shifted(ratio)))
        assert SHIFTED_AT <= step < SHIFTED_AT + 10
        assert drift.ratio == pytest.approx(ratio, rel=max(2.5 * noise, 1e-9))
        found.append(drift.ratio)
    assert median(found) == pytest.approx(ratio, rel=max(0.5 * noise, 1e-9))


def test_a_device_that_heats_up_slowly_is_noticed_as_well() -> None:
    drift = Drift()
    steps = noticed(drift, times(0, 0.05, 300, lambda step: 1 + max(step - 100, 0) / 200))
    assert steps
    assert min(steps) > 100
    assert drift.ratio == pytest.approx(2.0, rel=0.2)


def test_less_than_a_tenth_is_never_noticed_though_there_is_no_noise() -> None:
    assert noticed(Drift(), times(0, 0.0, ratio=shifted(1.09))) == []


def test_a_burst_of_four_slow_steps_is_not_noticed() -> None:
    assert noticed(Drift(), [5.0 if step in range(50, 54) else 1.0 for step in range(100)]) == []


def test_a_prediction_that_was_wrong_from_the_start_is_told_from_a_change() -> None:
    drift = Drift()
    assert noticed(drift, times(0, 0.05, 60, lambda _step: 0.5)) == [16]
    assert drift.ratio == drift.ratio_at_first == pytest.approx(0.5, rel=0.1)
    later = Drift()
    assert noticed(later, times(0, 0.05, ratio=shifted(2.0)))
    assert (later.ratio_at_first, later.ratio > 1.5) == (1.0, True)


def test_who_is_out_is_suspect_until_believed_or_back() -> None:
    drift = Drift()
    assert noticed(drift, [1.0] * 30) == []
    suspect = []
    for _ in range(8):
        assert not drift.observe(2.0)
        suspect.append(drift.is_suspect)
    assert suspect == [False] * 4 + [True] * 4
    assert drift.observe(2.0)
    assert not drift.is_suspect


@given(st.floats(0.01, 100), st.lists(st.floats(0.1, 10), min_size=40, max_size=80))
def test_slower_and_faster_are_treated_alike(scale: float, ratios: list[float]) -> None:
    slower, faster = Drift(), Drift()
    ratios = [scale * ratio for ratio in ratios]
    assert noticed(slower, ratios) == noticed(faster, [1 / ratio for ratio in ratios])
    assert slower.ratio == pytest.approx(1 / faster.ratio)


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_multiple_is_refused(ratio: float) -> None:
    with pytest.raises(ConfigError) as refused:
        Drift().observe(ratio)
    assert str(refused.value) == (
        f"a measured time is a positive multiple of the predicted one (got {ratio}). "
        "Leave the step out."
    )
