"""What is learnt stays, what makes predictions worse does not."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from edgeweave.predict import DeviceLatency, Measurement
from edgeweave.predict.features import Floats
from edgeweave.predict.learning import (
    MOST_KEPT,
    MOST_WAITING,
    Lessons,
    Verdict,
    learn,
    spread,
)
from tests.predict.test_device import CONV, MATMUL, model, operator

MODEL = model()
PROBED_LAYERS = [operator(CONV, 10.0**power)[None] for power in np.linspace(5, 8, 20)]
LAYERS = [operator(CONV, 10.0**power)[None] for power in np.linspace(5.2, 7.8, 6)]


def took(pieces: list[Floats], factor: float = 1.0) -> tuple[Measurement, ...]:
    """On a device that takes ``factor`` times what nobody would be surprised by, more or less."""
    expected = factor * DeviceLatency(MODEL).predict(pieces).seconds
    noise = 0.03 * np.random.default_rng(len(pieces)).standard_normal(expected.shape)
    seconds = expected * np.exp(noise)
    return tuple(
        Measurement(piece, forward, backward)
        for piece, (forward, backward) in zip(pieces, seconds.tolist(), strict=True)
    )


@functools.cache
def probed(factor: float = 1.0) -> DeviceLatency:
    return DeviceLatency(MODEL, took(PROBED_LAYERS, factor))


def forward(latency: DeviceLatency, pieces: list[Floats]) -> Floats:
    return np.asarray(latency.predict(pieces).seconds[:, 0])


def test_what_agrees_with_the_probe_is_kept_and_waits_no_more() -> None:
    batch = took(LAYERS, 2.0)
    learnt = learn(probed(2.0), Lessons().noted(batch))
    assert learnt.lessons.kept == batch
    assert learnt.lessons.waiting == ()
    assert learnt.verdicts == ()
    assert learnt.latency.measurements[len(PROBED_LAYERS) :] == batch


def test_a_family_that_the_probe_does_not_have_is_learnt_too() -> None:
    layers = [operator(MATMUL, 10.0**power)[None] for power in (5, 6, 7)]
    learnt = learn(probed(), Lessons().noted(took(layers, 1.6)))
    assert learnt.verdicts == ()
    ratio = forward(learnt.latency, layers) / forward(probed(), layers)
    assert ratio == pytest.approx(1.6, rel=0.15)


def test_a_stage_of_a_device_that_slept_is_rolled_back() -> None:
    stage = [np.concatenate(LAYERS)]
    lessons = Lessons(kept=took(LAYERS)).noted(took(stage, 30.0))
    learnt = learn(probed(), lessons)
    assert learnt.lessons.kept == lessons.kept
    assert learnt.lessons.waiting == ()
    assert learnt.verdicts == (Verdict("all others predict something else", 1, 1),)
    without = probed().given(lessons.kept).predict(PROBED_LAYERS).seconds
    assert (learnt.latency.predict(PROBED_LAYERS).seconds == without).all()


def test_a_wrong_one_among_right_ones_goes_alone() -> None:
    right = took(LAYERS)
    wrong = took(LAYERS[2:3], 30.0)
    learnt = learn(probed(), Lessons().noted((*right[:2], *wrong, *right[3:])))
    assert learnt.lessons.kept == (*right[:2], *right[3:])
    assert [verdict.n_refused for verdict in learnt.verdicts] == [1]


def test_a_profile_during_which_everything_was_slow_is_rolled_back() -> None:
    learnt = learn(probed(), Lessons().noted(took(LAYERS, 3.0)))
    assert learnt.lessons == Lessons()
    assert sum(verdict.n_refused for verdict in learnt.verdicts) == len(LAYERS)


def test_what_contradicts_a_new_probe_is_set_aside_and_used_again_when_it_fits() -> None:
    lessons = Lessons(kept=took(LAYERS))
    hot = learn(probed(3.0), lessons)
    assert hot.latency.measurements == probed(3.0).measurements
    assert hot.lessons is lessons
    assert "contradict the probe" in str(hot.verdicts[0])
    cool = learn(probed(), lessons)
    assert cool.lessons is lessons
    assert len(cool.latency.measurements) == len(PROBED_LAYERS) + len(LAYERS)


def test_what_agrees_with_a_new_probe_counts_at_once_and_is_kept_when_it_proved_to_last() -> None:
    newer = took(LAYERS[:3], 3.0)
    lessons = Lessons(kept=took(LAYERS)).noted(newer)
    learnt = learn(probed(3.0), lessons)
    assert learnt.lessons is lessons
    assert learnt.latency.measurements[len(PROBED_LAYERS) :] == newer
    for _ in range(MOST_WAITING - 1):
        lessons = lessons.noted(newer[:1])
    settled = learn(probed(3.0), lessons).lessons
    assert settled.waiting == ()
    assert set(settled.kept) == set(newer)


def test_without_anything_to_learn_the_probe_is_all_there_is() -> None:
    nothing = Lessons()
    learnt = learn(probed(), nothing)
    assert learnt.lessons is nothing
    assert learnt.latency.measurements == probed().measurements


def test_only_so_much_waits_and_the_newest_does() -> None:
    lessons = Lessons()
    for number in range(MOST_WAITING + 3):
        lessons = lessons.noted(took(LAYERS[:1], 1.0 + number))
    assert len(lessons.waiting) == MOST_WAITING
    assert lessons.waiting[-1][0].forward_seconds == pytest.approx(
        took(LAYERS[:1], MOST_WAITING + 3.0)[0].forward_seconds
    )
    assert len(lessons.noted(took(LAYERS[:1]) * (MOST_KEPT + 1)).waiting[-1]) == MOST_KEPT


def test_old_work_stays_represented_when_much_other_work_comes() -> None:
    old = took([operator(MATMUL, 10.0**power)[None] for power in (5, 7)])
    new = took([operator(CONV, 10.0**power)[None] for power in np.linspace(5, 8, 40)])
    kept = spread(MODEL, (*old, *new), 6)
    assert len(kept) == 6
    assert any(each in old for each in kept)
    assert list(kept) == [each for each in (*old, *new) if each in kept]


def test_of_the_same_work_the_newest_measurement_stays() -> None:
    twice = (*took(LAYERS, 1.0), *took(LAYERS, 1.1))
    assert spread(MODEL, twice, len(LAYERS)) == twice[len(LAYERS) :]


def test_more_than_is_kept_is_thinned_out_on_learning() -> None:
    pieces = [operator(CONV, 10.0**power)[None] for power in np.linspace(5, 8, MOST_KEPT + 10)]
    lessons = Lessons(kept=took(pieces[:MOST_KEPT])).noted(took(pieces[MOST_KEPT:]))
    assert len(learn(probed(), lessons).lessons.kept) == MOST_KEPT
