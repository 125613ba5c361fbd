"""What plans take if devices take something else than predicted: seeded draws, and intervals.

    seconds = predicted * exp(deviation * (sqrt(c) * of_device + sqrt(1 - c) * of_unit))

``of_device`` and ``of_unit`` are standard normal; ``c`` is the correlation of a device's errors.
Devices are taken to err independently of each other. What predictions have wrong about a network is
partly wrong on all of them, so intervals of comparisons between plans err on the wide side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, sqrt
from random import Random

from edgeweave.plan.costs import Costs, DeviceCosts

__all__ = ["Interval", "drawn_costs"]

_OUTSIDE = 0.1
"""An interval leaves out this share, half at each end."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Where nine of ten draws lie."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """The middle nine tenths of at least one value.

        >>> Interval.of([float(n) for n in range(101)])
        Interval(low=5.0, high=95.0)
        """
        ordered, last = sorted(values), len(values) - 1
        low = round(last * _OUTSIDE / 2)
        return cls(ordered[low], ordered[last - low])


def drawn_costs(costs: Costs, n_draws: int, *, seed: int) -> list[Costs]:
    """What the devices may turn out to take; nothing to draw where all of them were measured."""
    if all(device.deviation is None for device in costs.devices):
        return []
    rng = Random(seed)
    return [
        replace(costs, devices=tuple(_drawn(device, rng) for device in costs.devices))
        for _ in range(n_draws)
    ]


def _drawn(device: DeviceCosts, rng: Random) -> DeviceCosts:
    deviation = device.deviation
    if deviation is None:
        return device
    common = sqrt(deviation.correlation) * rng.gauss(0.0, 1.0)
    own = sqrt(1 - deviation.correlation)

    def drawn(seconds: tuple[float, ...], deviations: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(
            each * exp(far * (common + own * rng.gauss(0.0, 1.0)))
            for each, far in zip(seconds, deviations, strict=True)
        )

    return replace(
        device,
        forward_seconds=drawn(device.forward_seconds, deviation.forward),
        backward_seconds=drawn(device.backward_seconds, deviation.backward),
    )
