"""What devices take for a program, at sizes of microbatches that they measured and at others.

Where they are probed, nobody measures: every size is predicted.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

from edgeweave.device import Optimizer
from edgeweave.fleet import Fleet
from edgeweave.plan import Costs, DeviceCosts, Link
from edgeweave.predict import DeviceLatency
from edgeweave.program import Captured, unit_bytes, without_outputs
from edgeweave.train.costs import Measure, costs_of
from edgeweave.train.experience import Experience
from edgeweave.train.interpolation import device_costs_at
from edgeweave.train.links import measure_links
from edgeweave.train.predictions import device_latencies, predict_devices
from edgeweave.train.probes import probe_devices
from edgeweave.train.profiles import profile_devices

__all__ = ["Measurements"]


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
    ) -> None:
        self.program = program = without_outputs(captured.program)
        self._fleet = fleet
        self._captured = captured
        self._optimizer = optimizer
        self._is_probed = measure == "probe"
        self._experience = experience
        self._limits = {name: fleet.greet(name).memory_limit_bytes for name in fleet.devices}
        self._measured: dict[int, dict[str, DeviceCosts]] = {}
        self._unit_bytes = functools.cache(lambda size: unit_bytes(program, size))

    @property
    def devices(self) -> Sequence[str]:
        """Who measures: all devices of the fleet."""
        return tuple(self._limits)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of microbatches that were measured."""
        return tuple(self._measured)

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
        units = self._unit_bytes(microbatch_size).values()
        needed = sum(u.parameters + u.trainable + u.buffers + u.activations for u in units)
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
            )
            for name, limit in self._limits.items()
        )
        return costs_of(self.program, microbatch_size, self._optimizer, devices, self._links)

    @functools.cached_property
    def _latencies(self) -> dict[str, DeviceLatency]:
        return device_latencies(probe_devices(self._fleet), self._experience)

    @functools.cached_property
    def _links(self) -> dict[str, dict[str, Link]]:
        return measure_links(self._fleet, self.devices)
