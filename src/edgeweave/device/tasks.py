"""The agent's heavy, rare work as functions of bytes, so that a nursery can run them elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from edgeweave.core.clock import SystemClock
from edgeweave.device.messages import ProbeWork, Profile, Weigh, decode_message, encode_message
from edgeweave.device.nursery import Task
from edgeweave.device.optimizer import state_bytes_per_trainable_byte
from edgeweave.device.prober import probe, still_holds
from edgeweave.device.profiler import profile
from edgeweave.device.settings import AgentSettings
from edgeweave.device.throttle import Throttle
from edgeweave.predict.probe import probe_programs
from edgeweave.program import Program, check, decode_program, decode_state, unit_bytes

__all__ = ["tasks"]


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
    return encode_message(timings)


def _probe(settings: AgentSettings, data: bytes) -> bytes:
    message = decode_message(data, ProbeWork)
    torch.set_num_threads(settings.choose_threads()[0])
    clock, networks, device = SystemClock(), probe_programs(), settings.torch_device()
    throttle, facts, known = Throttle(settings.speed, clock), message.facts, message.known
    if known is not None and still_holds(known, facts, networks, throttle=throttle, device=device):
        return encode_message(known)
    return encode_message(probe(facts, networks, throttle=throttle, clock=clock, device=device))
