"""Stages tell what they took: each step's medians, handed on from stage to stage."""

from __future__ import annotations

import math

import pytest

from edgeweave.core.errors import WireError
from edgeweave.device import StageTiming, told_rates, told_replicas, told_timings
from edgeweave.device.timings import StepTimings


def step_of(timings: StepTimings, forward: float, backward: float, n_samples: int = 8) -> None:
    timings.add("forward", n_samples, forward)
    timings.add("backward", n_samples, backward)


def test_a_step_tells_the_medians_of_its_microbatches_once() -> None:
    timings = StepTimings(0, 8)
    for forward, backward in [(1.0, 2.0), (9.0, 3.0), (2.0, 30.0)]:
        step_of(timings, forward, backward)
    assert timings.tell() == {}
    timings.end_step({})
    assert timings.tell() == {"forward:0": 2.0, "backward:0": 3.0}
    assert timings.tell() == {}


def test_smaller_microbatches_evaluation_and_updates_tell_nothing() -> None:
    timings = StepTimings(0, 8)
    step_of(timings, 1.0, 1.0, n_samples=7)
    timings.add("evaluate", 8, 1.0)
    timings.add("update", 0, 1.0)
    timings.end_step({})
    assert timings.tell() == {}


def test_a_stage_hands_on_what_it_heard_of_those_before_it_and_of_nobody_else() -> None:
    first, second, third = (StepTimings(stage, 8) for stage in range(3))
    for stage, timings in enumerate((first, second, third)):
        step_of(timings, stage + 1.0, stage + 2.0)
        timings.end_step({})
    second.hear({**first.tell(), "forward:2": 9.0, "forward:77": 9.0, "samples": 8.0})
    third.hear(second.tell())
    assert told_timings({**third.tell(), "loss": 0.5}, 3) == {
        0: StageTiming(1.0, 2.0),
        1: StageTiming(2.0, 3.0),
        2: StageTiming(3.0, 4.0),
    }
    assert StageTiming(1.0, 2.0).seconds == 3.0


def test_a_stage_of_which_half_is_told_is_left_out() -> None:
    assert told_timings({"forward:0": 1.0, "forward:1": 1.0, "backward:1": 2.0}, 2) == {
        1: StageTiming(1.0, 2.0)
    }


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_a_time_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(WireError) as refused:
        told_timings({"forward:1": 1.0, "backward:1": seconds}, 2)
    assert str(refused.value) == (
        f"the time that stage 1 took is finite and not negative (got {[1.0, seconds]})."
    )


def test_rates_are_told_by_who_received_and_handed_on() -> None:
    first, second, third = (StepTimings(stage, 8) for stage in range(3))
    first.end_step({1: 4e6})
    second.end_step({0: 1e6, 2: 2e6})
    third.end_step({1: 3e6})
    second.hear({**first.tell(), "rate:0:2": 9.0, "rate:7:8": 9.0})
    third.hear(second.tell())
    told = third.tell()
    assert told_rates(told, 3) == {(1, 0): 4e6, (0, 1): 1e6, (2, 1): 2e6, (1, 2): 3e6}
    assert third.tell() == {}


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(WireError, match="the rate from stage 0 to stage 1"):
        told_rates({"rate:0:1": rate}, 2)


def test_the_newest_replica_of_each_stage_is_told_and_handed_on() -> None:
    first, second = StepTimings(0, 8), StepTimings(1, 8)
    first.end_step({}, 40)
    second.end_step({}, 30)
    second.hear({**first.tell(), "replica:1": 99.0, "replica:5": 99.0})
    assert told_replicas(second.tell(), 2) == {0: 40, 1: 30}
    first.end_step({})
    assert told_replicas(first.tell(), 2) == {}


@pytest.mark.parametrize("step", [-1.0, 0.5, math.nan, math.inf])
def test_a_replica_of_no_step_is_refused(step: float) -> None:
    with pytest.raises(WireError) as refused:
        told_replicas({"replica:1": step}, 2)
    assert str(refused.value) == (f"the step of the replica on stage 1 is 0 or more (got {step}).")
