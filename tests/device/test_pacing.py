"""An emulated device takes for a unit what it once measured, in whatever stage."""

from __future__ import annotations

from dataclasses import astuple

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from edgeweave.core.errors import WireError
from edgeweave.device.pacing import UnitMemory
from edgeweave.device.probes.messages import UnitTimings
from edgeweave.program import Program, capture, cut, without_outputs


def program_of(width: int) -> Program:
    model = nn.Sequential(
        nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.Linear(width, 2)
    )
    return capture(model, mse_loss, torch.zeros(3, 4), torch.zeros(3, 2)).program


@pytest.fixture
def memory() -> UnitMemory:
    memory = UnitMemory()
    timings = UnitTimings((1.0, 2.0, 4.0, 8.0), (0.5, 0.25, 0.125, 0.0625), 0.001)
    memory.learn(program_of(8), 16, "SGD", timings)
    return memory


def test_a_stage_takes_the_sum_of_its_units(memory: UnitMemory) -> None:
    first, last = cut(without_outputs(program_of(8)), (1,))
    found = [memory.recall(stage, 16, "SGD") for stage in (first, last)]
    assert [astuple(seconds) for seconds in found if seconds is not None] == [
        pytest.approx((1.0, 0.5, 0.001 * 4 * (4 + 1) * 8)),
        pytest.approx((14.0, 0.4375, 0.001 * 4 * (8 * 8 + 8 + 8 * 2 + 2))),
    ]


def test_another_microbatch_size_or_optimizer_is_another_measurement(memory: UnitMemory) -> None:
    (whole,) = cut(without_outputs(program_of(8)), ())
    known = memory.recall(whole, 16, "SGD")
    assert known is not None
    assert (known.forward, known.backward) == (15.0, 0.9375)
    assert memory.recall(whole, 8, "SGD") is None
    assert memory.recall(whole, 16, "AdamW") is None


def test_units_of_another_model_are_not_known(memory: UnitMemory) -> None:
    (whole,) = cut(without_outputs(program_of(6)), ())
    assert memory.recall(whole, 16, "SGD") is None


def test_a_profile_of_another_number_of_units_is_refused(memory: UnitMemory) -> None:
    with pytest.raises(WireError, match=r"one time for each of 4 units \(got \[1, 4\]\)"):
        memory.learn(program_of(8), 16, "SGD", UnitTimings((1.0,) * 4, (1.0,), 0.0))
