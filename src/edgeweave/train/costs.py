"""What a plan is made from: sizes from the graph, links as measured, and what units take.

measure="profile"   every device runs every unit
measure="probe"     no device runs any: predicted from what it took for the probe's networks
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from edgeweave.device import Optimizer, state_bytes_per_trainable_byte
from edgeweave.fleet import Fleet
from edgeweave.plan import Costs, Cut, DeviceCosts, Feed, Link, Skip, UnitFacts
from edgeweave.program import (
    Captured,
    Program,
    cut_bytes,
    input_bytes,
    skip_bytes,
    unit_bytes,
    without_outputs,
)
from edgeweave.train.links import measure_links
from edgeweave.train.predictions import device_latencies, predict_devices
from edgeweave.train.probes import probe_devices
from edgeweave.train.profiles import profile_devices

__all__ = ["Measure", "costs_of", "measure_costs"]

Measure = Literal["profile", "probe"]

_UNSEEN = Link(bytes_per_second=1e8, latency_seconds=1e-3)


def measure_costs(
    fleet: Fleet,
    captured: Captured,
    *,
    microbatch_size: int,
    optimizer: Optimizer,
    measure: Measure = "profile",
    repetitions: int = 8,
    devices: Sequence[str] = (),
) -> Costs:
    """What every unit takes on every device, and every link between two of them and from here.

    ``"profile"`` lets each device run the whole program for ``repetitions + 1`` microbatches.
    ``"probe"`` takes two seconds whatever the model, which no device gets to see; the seconds are
    predictions, and say how far they may be off (``DeviceCosts.deviation``). Devices of a local
    fleet share this machine: one of them measures for all. Real ones measure at the same time.
    """
    names = tuple(devices) or fleet.devices
    if measure == "probe":
        latencies = device_latencies(probe_devices(fleet, names))
        found = predict_devices(captured.program, microbatch_size, optimizer, latencies)
    else:
        found = profile_devices(
            fleet,
            captured,
            names,
            microbatch_size=microbatch_size,
            optimizer=optimizer,
            repetitions=repetitions,
        )
    limited = (
        replace(found[name], memory_limit_bytes=fleet.greet(name).memory_limit_bytes)
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
