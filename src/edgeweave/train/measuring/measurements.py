"""What devices take for a program, at sizes of microbatches that they measured and at others.

measure="profile"   every device runs every unit
measure="probe"     no device runs any: predicted from what it took for the probe's networks
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from edgeweave.device import CodingSeconds, Optimizer
from edgeweave.fleet import Fleet
from edgeweave.fleet.links import measure_links
from edgeweave.fleet.profiles import profile_devices
from edgeweave.plan import Costs, DeviceCosts, Link
from edgeweave.predict import DeviceLatency
from edgeweave.program import Captured, without_outputs
from edgeweave.train.compression import Compression, measure_coding
from edgeweave.train.measuring.costs import Sizes, costs_of
from edgeweave.train.measuring.experience import Experience
from edgeweave.train.measuring.interpolation import device_costs_at
from edgeweave.train.measuring.predictions import device_latencies, predict_devices
from edgeweave.train.measuring.probes import probe_devices

__all__ = ["Measure", "Measurements", "measure_costs"]

Measure = Literal["profile", "probe"]


class Measurements:
    """What the devices of a fleet were asked so far: links once, units by size."""

    def __init__(
        self,
        fleet: Fleet,
        captured: Captured,
        *,
        optimizer: Optimizer,
        measure: Measure = "profile",
        experience: Experience | None = None,
        compression: Compression | None = None,
        devices: Sequence[str] = (),
    ) -> None:
        self._compression = compression
        self.program = program = without_outputs(captured.program)
        self._fleet = fleet
        self._captured = captured
        self._optimizer = optimizer
        self._is_probed = measure == "probe"
        self._experience = experience
        names = tuple(devices) or fleet.devices
        self._limits = {name: fleet.greet(name).memory_limit_bytes for name in names}
        self._measured: dict[int, dict[str, DeviceCosts]] = {}
        self._sizes = functools.cache(lambda size: Sizes.of(program, size))

    @property
    def devices(self) -> Sequence[str]:
        """Who measures: the devices named, or all of the fleet."""
        return tuple(self._limits)

    @property
    def measured(self) -> Mapping[int, Mapping[str, DeviceCosts]]:
        """What was measured or predicted, by size of microbatches and device; without limits."""
        return self._measured

    def measure(self, microbatch_size: int, *, repetitions: int = 8) -> None:
        """Let every device run the program for ``repetitions + 1`` microbatches, or predict it."""
        if self._is_probed:
            self._measured[microbatch_size] = predict_devices(
                self.program, microbatch_size, self._optimizer, self._latencies
            )
            return
        self._measured[microbatch_size] = profile_devices(
            self._fleet,
            self._captured,
            self.devices,
            microbatch_size=microbatch_size,
            optimizer=self._optimizer,
            repetitions=repetitions,
        )

    def fits(self, microbatch_size: int) -> bool:
        """Whether every device can measure it: weights, gradients, activations of the whole."""
        if self._is_probed:
            return True
        needed = sum(
            unit.parameter_bytes + unit.trainable_bytes + unit.buffer_bytes + unit.activation_bytes
            for unit in self._sizes(microbatch_size).units
        )
        return all(limit is None or needed <= limit for limit in self._limits.values())

    def costs_at(self, microbatch_size: int) -> Costs:
        """What a plan for microbatches of so many samples is made from.

        Bytes and memory are those of this size, seconds as ``device_costs_at`` has them; or those
        predicted for it, which takes no time on the devices.
        """
        if self._is_probed and microbatch_size not in self._measured:
            self.measure(microbatch_size)
        devices = (
            replace(
                device_costs_at(
                    {size: profiled[name] for size, profiled in self._measured.items()},
                    microbatch_size,
                ),
                memory_limit_bytes=limit,
                encode_seconds_per_byte=self._coding_seconds[name].encode_seconds_per_byte,
                decode_seconds_per_byte=self._coding_seconds[name].decode_seconds_per_byte,
            )
            for name, limit in self._limits.items()
        )
        return costs_of(
            self._sizes(microbatch_size),
            self._optimizer,
            devices,
            self._links,
            coding=None if self._compression is None else self._compression.coding(self.program),
        )

    @functools.cached_property
    def _coding_seconds(self) -> Mapping[str, CodingSeconds]:
        if self._compression is None:
            return dict.fromkeys(self.devices, CodingSeconds(0.0, 0.0))
        return measure_coding(self._fleet, self.devices, self._compression)

    @functools.cached_property
    def _latencies(self) -> dict[str, DeviceLatency]:
        return device_latencies(probe_devices(self._fleet, self.devices), self._experience)

    @functools.cached_property
    def _links(self) -> dict[str, dict[str, Link]]:
        return measure_links(self._fleet, self.devices)


def measure_costs(
    fleet: Fleet,
    captured: Captured,
    *,
    microbatch_size: int,
    optimizer: Optimizer,
    measure: Measure = "profile",
    repetitions: int = 8,
    compression: Compression | None = None,
    devices: Sequence[str] = (),
) -> Costs:
    """What every unit takes on every device, and every link between two of them and from here.

    ``"profile"`` lets each device run the whole program for ``repetitions + 1`` microbatches.
    ``"probe"`` takes two seconds whatever the model, which no device gets to see; the seconds are
    predictions, and say how far they may be off (``DeviceCosts.deviation``). Devices of a local
    fleet share this machine: one of them measures for all. Real ones measure at the same time.
    """
    measurements = Measurements(
        fleet,
        captured,
        optimizer=optimizer,
        measure=measure,
        compression=compression,
        devices=devices,
    )
    measurements.measure(microbatch_size, repetitions=repetitions)
    return measurements.costs_at(microbatch_size)
