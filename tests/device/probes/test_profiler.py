"""Profiling: a number for each unit, whose sums are those of the whole program."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from edgeweave.core.clock import VirtualClock
from edgeweave.core.errors import PlanError
from edgeweave.device import Optimizer
from edgeweave.device.probes.profiler import profile
from edgeweave.device.throttle import Throttle
from edgeweave.program import Captured, StageProgram, capture
from tests.device.stages.examples import captured_mlp

SGD = Optimizer("SGD", lr=0.1, momentum=0.9)


def profiled(captured: Captured, throttle: Throttle, **options: object):
    buffers = {
        s.name: captured.state[s.name] for s in captured.program.state if s.kind != "parameter"
    }
    return profile(
        captured.program,
        buffers,
        microbatch_size=4,
        repetitions=2,
        optimizer=SGD,
        throttle=throttle,
        device=torch.device("cpu"),
        memory_limit_bytes=options.get("memory_limit_bytes"),  # type: ignore[arg-type]
    )


@pytest.fixture
def mlp() -> Captured:
    return captured_mlp()


def ticking() -> Callable[[], float]:
    """A CPU counter that moves on by one second whenever it is read."""
    ticks = itertools.count()
    return lambda: float(next(ticks))


def test_every_unit_has_its_time_forward_and_backward(mlp: Captured) -> None:
    found = profiled(mlp, Throttle(1.0, VirtualClock(), cpu_seconds=ticking()))
    n_units = len(mlp.program.unit_numbers)
    assert len(found.forward_seconds) == len(found.backward_seconds) == n_units
    assert min(found.forward_seconds) > 0
    assert min(found.backward_seconds) >= 0
    trainable = sum(parameter.nbytes for parameter in mlp.state.values())
    assert found.update_seconds_per_byte == pytest.approx(1 / trainable)


def test_a_slower_device_takes_longer_in_proportion(mlp: Captured) -> None:
    full, quarter = (
        profiled(mlp, Throttle(speed, VirtualClock(), cpu_seconds=ticking()))
        for speed in (1.0, 0.25)
    )
    assert quarter.forward_seconds == tuple(4 * seconds for seconds in full.forward_seconds)
    assert quarter.backward_seconds == tuple(4 * seconds for seconds in full.backward_seconds)
    assert quarter.update_seconds_per_byte == 4 * full.update_seconds_per_byte


def test_profiling_leaves_nothing_changed(mlp: Captured) -> None:
    before = {name: tensor.clone() for name, tensor in mlp.state.items()}
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    profiled(mlp, Throttle(1.0, VirtualClock(), cpu_seconds=ticking()))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(mlp.state[name], before[name]) for name in before)


def test_a_program_without_anything_to_train_has_no_update() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    for parameter in model[0].parameters():
        parameter.requires_grad = False
    for parameter in model[2].parameters():
        parameter.requires_grad = False
    x = torch.randn(4, 3)
    captured = capture(model, nn.functional.mse_loss, x, torch.randn(4, 1))
    found = profiled(captured, Throttle(1.0, VirtualClock(), cpu_seconds=ticking()))
    assert found.update_seconds_per_byte == 0.0


def test_a_program_beyond_the_limit_is_refused_with_numbers(mlp: Captured) -> None:
    throttle = Throttle(None, VirtualClock())
    with pytest.raises(PlanError, match=r"^profiling needs about .* \(limit: 1.0 KiB\)\. Raise"):
        profiled(mlp, throttle, memory_limit_bytes=1024)


def test_whole_numbers_among_the_parameters_are_made_up_too() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 1)
            self.shift = nn.Parameter(torch.tensor([1, 2, 3]), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x + self.shift)

    captured = capture(Shifted(), nn.functional.mse_loss, torch.randn(4, 3), torch.randn(4, 1))
    assert StageProgram(captured.program, captured.state).parameters["shift"].dtype == torch.int64
    profiled(captured, Throttle(1.0, VirtualClock(), cpu_seconds=ticking()))
