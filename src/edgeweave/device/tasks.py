"""The agent's heavy, rare work as functions of bytes, so that a nursery can run them elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import torch

from edgeweave.core.clock import SystemClock
from edgeweave.device.messages import Weigh, decode_message, encode_message
from edgeweave.device.nursery import Task
from edgeweave.device.optimizer import state_bytes_per_trainable_byte
from edgeweave.device.probes.handling import handling_seconds
from edgeweave.device.probes.messages import ProbeWork, Profile
from edgeweave.device.probes.prober import probe, still_holds
from edgeweave.device.probes.profiler import profile
from edgeweave.device.settings import AgentSettings
from edgeweave.device.throttle import Throttle
from edgeweave.predict.probe import probe_programs
from edgeweave.program import Program, check, decode_program, decode_state, unit_bytes

__all__ = ["preparation", "tasks"]

_ROOMY_BYTES: Final = 3 << 30
_CHECKING: Final = ("check", "weigh", "profile")


def tasks(settings: AgentSettings) -> Mapping[str, Task]:
    """``check`` raises for an unsound program, ``weigh`` answers with a number of bytes (big
    endian), ``profile`` with ``UnitTimings``, ``probe`` with a ``Probe``.
    """
    return {
        "check": _check,
        "weigh": _weigh,
        "profile": lambda data: _profile(settings, data),
        "probe": lambda data: _probe(settings, data),
    }


def preparation(memory_bytes: int) -> Callable[[str], None]:
    """What a nursery does before it forks for a task, on a machine with so much memory.

    Whoever checks a program first loads what torch infers shapes with: a second of computing here,
    several on a board, and 110 MB with the pages that are shared no more. With at least 3 GiB the
    nursery does that once, and a recovery, in which every device checks its new stage, is that much
    shorter; with less, each child loads it and takes it along when it ends.
    """
    if memory_bytes < _ROOMY_BYTES:
        return lambda _task: None
    return lambda task: _load_checks() if task in _CHECKING else None


@functools.cache
def _load_checks() -> None:
    """By checking the smallest program that comes with the package."""
    check(min((each.program for each in probe_programs()), key=lambda each: len(each.nodes)))


def _check(data: bytes) -> bytes:
    check(decode_message(data, Program))
    return b""


def _weigh(data: bytes) -> bytes:
    """Weights and their older versions, buffers, gradients, optimizer state and activations."""
    message = decode_message(data, Weigh)
    units = unit_bytes(message.program, message.microbatch_size).values()
    trainable = sum(unit.trainable for unit in units)
    needed = sum(
        unit.parameters + unit.buffers + message.in_flight * unit.activations for unit in units
    )
    needed += round(trainable * (1 + state_bytes_per_trainable_byte(message.optimizer)))
    needed += message.older_versions * trainable
    return needed.to_bytes(8, "big")


def _profile(settings: AgentSettings, data: bytes) -> bytes:
    message = decode_message(data, Profile)
    torch.set_num_threads(settings.choose_threads()[0])
    program = decode_program(message.graph)
    specs = tuple(spec for spec in program.state if spec.kind != "parameter")
    timings = profile(
        program,
        decode_state(message.tensors, specs),
        microbatch_size=message.microbatch_size,
        repetitions=message.repetitions,
        optimizer=message.optimizer,
        throttle=Throttle(settings.speed, SystemClock()),
        device=settings.torch_device(),
        memory_limit_bytes=settings.memory_limit_bytes,
    )
    handling = handling_seconds(SystemClock().now)
    return encode_message(msgspec.structs.replace(timings, message_seconds=handling))


def _probe(settings: AgentSettings, data: bytes) -> bytes:
    message = decode_message(data, ProbeWork)
    torch.set_num_threads(settings.choose_threads()[0])
    clock, networks, device = SystemClock(), probe_programs(), settings.torch_device()
    throttle, facts, known = Throttle(settings.speed, clock), message.facts, message.known
    if known is not None and still_holds(known, facts, networks, throttle=throttle, device=device):
        return encode_message(known)
    return encode_message(probe(facts, networks, throttle=throttle, clock=clock, device=device))
