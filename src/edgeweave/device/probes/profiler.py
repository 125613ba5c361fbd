"""Time every unit of a program on this device, forward and backward, as a run would meet them.

Weights are made up: nothing but the graph has to reach the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

import torch

from edgeweave.core.errors import PlanError
from edgeweave.core.units import format_bytes
from edgeweave.device.optimizer import Optimizer, StageOptimizer
from edgeweave.device.probes.messages import UnitTimings
from edgeweave.device.throttle import Throttle
from edgeweave.program import Program, StageProgram, StateSpec, cut, without_outputs
from edgeweave.program.operators import DTYPES

__all__ = ["made_up_state", "profile"]


def profile(
    program: Program,
    state: Mapping[str, torch.Tensor],
    *,
    microbatch_size: int,
    repetitions: int,
    optimizer: Optimizer,
    throttle: Throttle,
    device: torch.device,
    memory_limit_bytes: int | None,
) -> UnitTimings:
    """Typical seconds of each unit over ``repetitions`` passes, after one to warm up.

    ``state`` holds what is not a parameter. The whole program runs as it would in training, with
    its units told apart by ``edgeweave.program.watch``.
    """
    program = without_outputs(program)
    parameters = [spec for spec in program.state if spec.kind == "parameter"]
    complete = {**state, **made_up_state(parameters)}
    _check_memory(complete, memory_limit_bytes)
    stage = StageProgram(cut(program, ())[0], complete, device=device, take_over=True)
    passes = [
        stage.time_units(microbatch_size, throttle.stopwatch()) for _ in range(repetitions + 1)
    ][1:]
    return UnitTimings(
        forward_seconds=_typical([each.forward_seconds for each in passes], throttle),
        backward_seconds=_typical([each.backward_seconds for each in passes], throttle),
        update_seconds_per_byte=_update_seconds_per_byte(stage, optimizer, throttle),
    )


def made_up_state(specs: Iterable[StateSpec]) -> dict[str, torch.Tensor]:
    """Small floats, and zeros for whole numbers; the same whenever it is asked for."""
    generator = torch.Generator().manual_seed(0)
    made = {spec.name: torch.zeros(spec.shape, dtype=DTYPES[spec.dtype]) for spec in specs}
    for tensor in made.values():
        if tensor.is_floating_point():
            tensor.uniform_(-0.05, 0.05, generator=generator)
    return made


def _check_memory(state: Mapping[str, torch.Tensor], limit_bytes: int | None) -> None:
    needed = 2 * sum(tensor.nbytes for tensor in state.values())  # weights and gradients
    if limit_bytes is not None and needed > limit_bytes:
        raise PlanError(
            f"profiling needs about {format_bytes(needed)} (limit: {format_bytes(limit_bytes)}). "
            "Raise the device's memory limit or choose a smaller model."
        )


def _typical(passes: Sequence[Mapping[int, float]], throttle: Throttle) -> tuple[float, ...]:
    """Each unit's seconds on this device."""
    return tuple(throttle.slowed(median(each[unit] for each in passes)) for unit in passes[0])


def _update_seconds_per_byte(
    stage: StageProgram, optimizer: Optimizer, throttle: Throttle
) -> float:
    trained = [p for p in stage.parameters.values() if p.requires_grad]
    if not trained:
        return 0.0
    stopwatch = throttle.stopwatch()
    stepper = StageOptimizer(optimizer, stage.parameters)
    seconds = []
    for _ in range(3):
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        started = stopwatch()
        stepper.step({})
        seconds.append(stopwatch() - started)
    return throttle.slowed(median(seconds) / sum(p.nbytes for p in trained))
