"""What a serving plan is made from: units as devices measured them, links, and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, floor

from edgeweave.codec import Codec
from edgeweave.core.errors import ConfigError
from edgeweave.core.units import format_bytes
from edgeweave.device import Optimizer
from edgeweave.device.serving.hosting import NOTHING_TRAINS
from edgeweave.fleet import Fleet
from edgeweave.fleet.links import measure_links, measure_links_of
from edgeweave.fleet.profiles import profile_devices
from edgeweave.plan import UNSEEN_LINK, Costs, Cut, DeviceCosts, Link, Sizes, Skip, UnitFacts
from edgeweave.program import Captured, Inference, value_bytes

__all__ = ["Measuring"]

_REPETITIONS = 8
_VALUE_BITS, _OVERHEAD_BITS = 32, 0.25
"""Of a value before coding, and what the scale of its block adds to it then."""


class Measuring:
    """Asks the devices of a fleet what requests of ``batch_size`` samples take."""

    def __init__(
        self, fleet: Fleet, inference: Inference, batch_size: int, codec: Codec | None
    ) -> None:
        """``codec`` is what devices hand on in; what coding takes is not measured."""
        self._fleet = fleet
        self._captured = Captured(inference.program, inference.state)
        self.batch_size = batch_size
        self._share = 1.0 if codec is None else (codec.bits + _OVERHEAD_BITS) / _VALUE_BITS
        values = inference.program.values()
        self.result_bytes = sum(
            value_bytes(values[name], batch_size) for name in inference.program.outputs
        )

    def costs(self, devices: Sequence[str], *, known: Costs | None = None) -> Costs:
        """Of all these devices, which run the whole model some times for it.

        ``known`` spares it those that are in there. ``ConfigError`` if it is of something else.
        """
        sizes = Sizes.serving(self._captured.program, self.batch_size)
        if known is not None:
            return self._completed(known, sizes, devices)
        return Costs(
            units=sizes.units,
            cuts=tuple(Cut(ceil(self._share * cut.forward_bytes), 0) for cut in sizes.cuts),
            skips=tuple(
                Skip(skip.units, floor(self._share * skip.forward_bytes), 0) for skip in sizes.skips
            ),
            devices=tuple(self._devices(devices)),
            links=measure_links(self._fleet, devices),
            default_link=UNSEEN_LINK,
            optimizer_bytes_per_trainable_byte=0.0,
            feeds=sizes.feeds,
        )

    def device(
        self, name: str, others: Sequence[str]
    ) -> tuple[DeviceCosts, dict[tuple[str, str], Link]]:
        """Of one device more, and its links with ``others``."""
        (measured,) = self._devices([name])
        return measured, measure_links_of(self._fleet, name, others)

    def _completed(self, costs: Costs, sizes: Sizes, devices: Sequence[str]) -> Costs:
        """The costs with what they lack of these devices."""
        if costs.units != sizes.units:
            raise ConfigError(
                "costs are those of this model, for requests of as many samples and with the same "
                f"kernels (they have {len(costs.units)} units, {_weights(costs.units)} of weights "
                f"and {_made(costs.units)} computed; here it is {len(sizes.units)} units, "
                f"{_weights(sizes.units)} and {_made(sizes.units)}). Leave costs out, and the "
                "devices are measured."
            )
        names = {each.device for each in costs.devices}
        if devices and names.isdisjoint(devices):
            raise ConfigError(
                f"costs are those of this fleet (they are of {', '.join(sorted(names))}; here are "
                f"{', '.join(devices)}). Leave costs out, and the devices are measured."
            )
        for device in devices:
            if device not in names:
                others = [each for each in devices if each != device]
                costs = costs.with_device(*self.device(device, others))
        return costs

    def _devices(self, names: Sequence[str]) -> list[DeviceCosts]:
        found = profile_devices(
            self._fleet,
            self._captured,
            names,
            microbatch_size=self.batch_size,
            optimizer=Optimizer(NOTHING_TRAINS),
            repetitions=_REPETITIONS,
        )
        limits = {name: self._fleet.greet(name).memory_limit_bytes for name in names}
        return [
            replace(
                each,
                backward_seconds=(0.0,) * len(each.forward_seconds),
                memory_limit_bytes=limits[each.device],
            )
            for each in found.values()
        ]


def _weights(units: Sequence[UnitFacts]) -> str:
    return format_bytes(sum(unit.parameter_bytes + unit.buffer_bytes for unit in units))


def _made(units: Sequence[UnitFacts]) -> str:
    return format_bytes(sum(unit.activation_bytes for unit in units))
