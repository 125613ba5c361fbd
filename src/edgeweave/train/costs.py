"""Ask every device what the units cost it and how its links are: what a plan is made from."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import permutations

import msgspec
import torch

from edgeweave.core.errors import PlanError
from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.device import (
    LinkProbe,
    LinkTimings,
    Optimizer,
    Profile,
    UnitTimings,
    decode_message,
    probe_link,
    state_bytes_per_trainable_byte,
)
from edgeweave.fleet import Fleet
from edgeweave.net import control_key
from edgeweave.plan import Costs, Cut, DeviceCosts, Feed, Link, Skip, UnitFacts
from edgeweave.program import (
    Captured,
    Program,
    cut_bytes,
    encode_program,
    encode_state,
    input_bytes,
    skip_bytes,
    unit_bytes,
    without_outputs,
)

__all__ = ["costs_of", "measure_costs", "measure_links", "profile_devices"]

_PROBE_BYTES = 1 << 20
_FIRST_PROBE_BYTES = 60_000
_PROBE_SECONDS = 1.0
"""Where the large probe takes longer, the small one was slow enough to tell the rate."""
_LOCAL_REPETITIONS = 2
"""One device measures for all of its host, so it may take longer over it."""
_UNSEEN = Link(bytes_per_second=1e8, latency_seconds=1e-3)


def measure_costs(
    fleet: Fleet,
    captured: Captured,
    *,
    microbatch_size: int,
    optimizer: Optimizer,
    repetitions: int = 8,
    devices: Sequence[str] = (),
) -> Costs:
    """Profile the program on every device, and every link between two of them and from here.

    Devices of a local fleet share this machine: one of them measures for all. Real ones measure at
    the same time. Who measures runs the whole program for ``repetitions + 1`` microbatches.
    """
    names = tuple(devices) or fleet.devices
    profiled = profile_devices(
        fleet,
        captured,
        names,
        microbatch_size=microbatch_size,
        optimizer=optimizer,
        repetitions=repetitions,
    )
    limited = (
        replace(profiled[name], memory_limit_bytes=fleet.greet(name).memory_limit_bytes)
        for name in names
    )
    links = measure_links(fleet, names)
    return costs_of(captured.program, microbatch_size, optimizer, limited, links)


def costs_of(
    program: Program,
    microbatch_size: int,
    optimizer: Optimizer,
    devices: Iterable[DeviceCosts],
    links: Mapping[str, Mapping[str, Link]],
) -> Costs:
    """What devices and links take, with the sizes that the graph tells."""
    program = without_outputs(program)
    return Costs(
        units=tuple(
            UnitFacts(
                name=f"unit {unit}",
                parameter_bytes=size.parameters,
                trainable_bytes=size.trainable,
                buffer_bytes=size.buffers,
                activation_bytes=size.activations,
            )
            for unit, size in unit_bytes(program, microbatch_size).items()
        ),
        cuts=tuple(
            Cut(each.forward, each.backward)
            for each in cut_bytes(program, microbatch_size).values()
        ),
        devices=tuple(devices),
        links={source: dict(targets) for source, targets in links.items()},
        default_link=_UNSEEN,
        optimizer_bytes_per_trainable_byte=state_bytes_per_trainable_byte(optimizer),
        feeds=tuple(
            Feed(name, fed.size, fed.units)
            for name, fed in input_bytes(program, microbatch_size).items()
        ),
        skips=tuple(
            Skip(each.units, each.forward, each.backward)
            for each in skip_bytes(program, microbatch_size)
        ),
    )


def profile_devices(
    fleet: Fleet,
    captured: Captured,
    names: Sequence[str],
    *,
    microbatch_size: int,
    optimizer: Optimizer,
    repetitions: int,
) -> dict[str, DeviceCosts]:
    """What every unit takes on each of the devices, whose memory is not looked at."""
    timings = _timings(fleet, captured, names, microbatch_size, optimizer, repetitions)
    return {
        name: DeviceCosts(
            device=name,
            forward_seconds=timings[name].forward_seconds,
            backward_seconds=timings[name].backward_seconds,
            memory_limit_bytes=None,
            update_seconds_per_byte=timings[name].update_seconds_per_byte,
        )
        for name in names
    }


def _timings(
    fleet: Fleet,
    captured: Captured,
    names: Sequence[str],
    microbatch_size: int,
    optimizer: Optimizer,
    repetitions: int,
) -> dict[str, UnitTimings]:
    graph, tensors = _without_weights(captured)
    if fleet.is_local:
        repetitions *= _LOCAL_REPETITIONS
    message = Profile(graph, tensors, microbatch_size, repetitions, optimizer)

    def ask(name: str, message: Profile = message) -> bytes:
        try:
            return fleet.ask(name, "profile", message, timeout_seconds=fleet.timeouts.work)
        except PlanError as error:
            raise PlanError(f"{name}: {error}") from error

    if not fleet.is_local:
        answers = fleet.for_each(names, ask, one_at_a_time=False)
        return {name: decode_message(answer, UnitTimings) for name, answer in answers.items()}
    return _profile_once(fleet, names, ask, message)


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


def _without_weights(captured: Captured) -> tuple[bytes, bytes]:
    """The graph, and the buffers and constants alone: weights do not change what a unit costs."""
    program = without_outputs(captured.program)
    kept: dict[str, torch.Tensor] = {
        spec.name: captured.state[spec.name] for spec in program.state if spec.kind != "parameter"
    }
    return encode_program(program), encode_state(kept)


def measure_links(fleet: Fleet, names: Sequence[str]) -> dict[str, dict[str, Link]]:
    """Every link between devices, and the coordinator's own.

    On the way back to the coordinator go only results, whose size is as good as nothing: its rate
    is that of the way there, its latency half of what a request takes.
    """
    links: dict[str, dict[str, Link]] = {name: {} for name in (COORDINATOR_NAME, *names)}
    for source, target in permutations(names, 2):
        links[source][target] = _link(functools.partial(_probed, fleet, source, target))
    for target in names:
        link = _link(functools.partial(_probed_from_here, fleet, target))
        links[COORDINATOR_NAME][target] = links[target][COORDINATOR_NAME] = link
    return links


def _link(probe: Callable[[int], LinkTimings]) -> Link:
    """A link by a small probe, and by a large one where that does not take long."""
    timings = probe(_FIRST_PROBE_BYTES)
    loss = timings.loss
    if timings.bytes_per_second * _PROBE_SECONDS > _PROBE_BYTES:
        timings = probe(_PROBE_BYTES)
        loss = (loss + timings.loss) / 2
    return Link(timings.bytes_per_second, timings.latency_seconds, loss)


def _probed(fleet: Fleet, source: str, target: str, size_bytes: int) -> LinkTimings:
    answer = fleet.ask(
        source, "measure", LinkProbe(target, size_bytes), timeout_seconds=fleet.timeouts.work
    )
    return decode_message(answer, LinkTimings)


def _probed_from_here(fleet: Fleet, target: str, size_bytes: int) -> LinkTimings:
    key, seconds = control_key(fleet.name, target, "echo"), fleet.timeouts.request

    def ask(payload: bytes) -> bytes:
        return fleet.transport.request(key, payload, device=target, timeout_seconds=seconds)

    return probe_link(ask, fleet.clock.now, size_bytes)
