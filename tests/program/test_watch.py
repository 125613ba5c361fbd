"""Units are told apart inside a whole pass, and nothing is counted twice."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from edgeweave.program import StageProgram, capture, cut, without_outputs
from edgeweave.program.watch import units_with_backward


class Ticks:
    """A stopwatch on which every reading takes one second."""

    def __init__(self) -> None:
        self.readings = 0

    def __call__(self) -> float:
        self.readings += 1
        return float(self.readings)


@pytest.fixture
def stage() -> StageProgram:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    captured = capture(model, mse_loss, torch.zeros(3, 4), torch.zeros(3, 2))
    program = without_outputs(captured.program)
    return StageProgram(cut(program, ())[0], captured.state)


def test_every_unit_is_entered_once_forward_and_once_backward(stage: StageProgram) -> None:
    watch = stage.time_units(3, Ticks())
    units = stage.program.unit_numbers
    # One reading opens a pass, one follows each change of unit, one closes it.
    assert watch.forward_seconds == {unit: 1.0 + (unit == 0) for unit in units}
    assert watch.backward_seconds == dict.fromkeys(units, 1.0)


def test_the_units_add_up_to_the_pass(stage: StageProgram) -> None:
    clock = Ticks()
    watch = stage.time_units(3, clock)
    total = sum(watch.forward_seconds.values()) + sum(watch.backward_seconds.values())
    assert total == clock.readings - 2  # the two readings that open the passes take no time


@pytest.mark.parametrize("frozen", [0, 1, 2, 3])
def test_a_unit_without_gradients_has_no_backward(frozen: int) -> None:
    model = nn.Sequential(*(nn.Linear(8 if i else 4, 8) for i in range(3)), nn.Linear(8, 2))
    model[:frozen].requires_grad_(False)
    captured = capture(model, mse_loss, torch.zeros(3, 4), torch.zeros(3, 2))
    stage = StageProgram(cut(without_outputs(captured.program), ())[0], captured.state)
    watch = stage.time_units(3, Ticks())
    spent = {unit for unit, seconds in watch.backward_seconds.items() if seconds}
    assert spent == set(stage.program.unit_numbers[frozen:])
    assert units_with_backward(stage.program) == spent


def test_watching_leaves_weights_buffers_and_gradients_as_they_were(stage: StageProgram) -> None:
    before = {name: tensor.clone() for name, tensor in stage.state_dict().items()}
    stage.time_units(3, Ticks())
    assert all(torch.equal(before[name], tensor) for name, tensor in stage.state_dict().items())
    assert all(parameter.grad is None for parameter in stage.parameters.values())
    assert stage.n_in_flight == 0
