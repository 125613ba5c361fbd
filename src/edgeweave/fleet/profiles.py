"""Ask every device to run the whole program and to tell what its units take."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import torch

from edgeweave.core.errors import PlanError
from edgeweave.device import Optimizer, Profile, UnitTimings, decode_message
from edgeweave.fleet import Fleet
from edgeweave.plan import DeviceCosts
from edgeweave.program import Captured, encode_program, encode_state, without_outputs

__all__ = ["profile_devices", "without_weights"]

_LOCAL_REPETITIONS = 2
"""One device measures for all of its host, so it may take longer over it."""


def profile_devices(
    fleet: Fleet,
    captured: Captured,
    names: Sequence[str],
    *,
    microbatch_size: int,
    optimizer: Optimizer,
    repetitions: int,
) -> dict[str, DeviceCosts]:
    """What every unit takes on each of the devices, whose memory is not looked at.

    Real devices measure at the same time. Emulated ones share a host: one measures for all. Who
    measures runs the whole program for ``repetitions + 1`` microbatches.
    """
    graph, tensors = without_weights(captured)
    if fleet.is_local:
        repetitions *= _LOCAL_REPETITIONS
    message = Profile(graph, tensors, microbatch_size, repetitions, optimizer)

    def ask(name: str, message: Profile = message) -> bytes:
        try:
            return fleet.ask(name, "profile", message, timeout_seconds=fleet.timeouts.work)
        except PlanError as error:
            raise PlanError(f"{name}: {error}") from error

    if fleet.is_local:
        timings = _profile_once(fleet, names, ask, message)
    else:
        answers = fleet.for_each(names, ask, one_at_a_time=False)
        timings = {name: decode_message(answer, UnitTimings) for name, answer in answers.items()}
    return {
        name: DeviceCosts(
            device=name,
            forward_seconds=timings[name].forward_seconds,
            backward_seconds=timings[name].backward_seconds,
            memory_limit_bytes=None,
            update_seconds_per_byte=timings[name].update_seconds_per_byte,
            message_seconds=timings[name].message_seconds,
        )
        for name in names
    }


def _profile_once(
    fleet: Fleet,
    names: Sequence[str],
    ask: Callable[[str, Profile], bytes],
    message: Profile,
) -> dict[str, UnitTimings]:
    """Emulated devices share a host: one measures for all, each takes it at its own speed."""
    greetings = {name: fleet.greet(name) for name in names}
    speeds = {name: greeting.speed or 1.0 for name, greeting in greetings.items()}
    limits = {name: each.memory_limit_bytes or math.inf for name, each in greetings.items()}
    first = max(names, key=lambda name: (limits[name], speeds[name]))
    measured = decode_message(ask(first, message), UnitTimings)
    taken_over = msgspec.structs.replace(message, full_speed=measured.stretched(speeds[first]))
    return {
        name: measured if name == first else decode_message(ask(name, taken_over), UnitTimings)
        for name in names
    }


def without_weights(captured: Captured) -> tuple[bytes, bytes]:
    """The graph, and the buffers and constants alone: weights do not change what a unit costs."""
    program = without_outputs(captured.program)
    kept: dict[str, torch.Tensor] = {
        spec.name: captured.state[spec.name] for spec in program.state if spec.kind != "parameter"
    }
    return encode_program(program), encode_state(kept)
