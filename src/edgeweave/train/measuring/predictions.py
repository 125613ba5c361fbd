"""What devices would take for a model's units, predicted and never run there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from edgeweave.device import Optimizer, step_bytes_per_trainable_byte
from edgeweave.plan import Deviation, DeviceCosts
from edgeweave.predict import DeviceLatency, Predicted, unit_features
from edgeweave.predict.features import Floats
from edgeweave.predict.probe import Probe, rates_of
from edgeweave.program import Program, cut, without_outputs
from edgeweave.program.watch import units_with_backward
from edgeweave.train.measuring.experience import Experience

__all__ = ["device_latencies", "predict_devices", "predict_units"]


def device_latencies(
    probes: Mapping[str, Probe], experience: Experience | None = None
) -> dict[str, DeviceLatency]:
    """What is known of each probed device: its probe, and what earlier profiles and runs taught."""
    learnt = experience or Experience(None)
    return {name: learnt.latency(name, probe) for name, probe in probes.items()}


def predict_units(
    program: Program, microbatch_size: int, latencies: Mapping[str, DeviceLatency]
) -> dict[str, Predicted]:
    """For each device, seconds ``[unit, direction]`` of one microbatch.

    A unit through which no gradient flows has a backward of zero. How wrong predictions are on
    devices and networks that nothing is known of: docs/reference-benchmarks.md, ``predictor``.
    """
    pieces = list(unit_features(program, microbatch_size).values())
    some = _directions(program)
    predicted = {name: latency.predict(pieces) for name, latency in latencies.items()}
    return {name: replace(each, seconds=each.seconds * some) for name, each in predicted.items()}


def predict_devices(
    program: Program,
    microbatch_size: int,
    optimizer: Optimizer,
    latencies: Mapping[str, DeviceLatency],
) -> dict[str, DeviceCosts]:
    """What every unit takes on each of the devices, and how far that may be off.

    A device's errors are taken to be correlated, by as much as makes all units together deviate as
    far as is predicted for them as one. A step of the optimizer takes what its bytes do at the rate
    that fits all that is known of the device. Memory is not looked at.
    """
    units = list(unit_features(program, microbatch_size).values())
    pieces, n = [*units, np.concatenate(units)], len(units)
    some, moved = _directions(program), step_bytes_per_trainable_byte(optimizer)
    found = {}
    for name, latency in latencies.items():
        predicted = latency.predict(pieces)
        seconds, deviation = predicted.seconds[:n], predicted.deviation[:n]
        errors = seconds * deviation / seconds.sum(axis=0)
        forward, backward = (tuple(each.tolist()) for each in (seconds * some).T)
        bytes_per_second = rates_of(latency.measurements).bytes_per_second
        found[name] = DeviceCosts(
            device=name,
            forward_seconds=forward,
            backward_seconds=backward,
            memory_limit_bytes=None,
            update_seconds_per_byte=0.0 if bytes_per_second is None else moved / bytes_per_second,
            deviation=Deviation(
                forward=tuple(deviation[:, 0].tolist()),
                backward=tuple(deviation[:, 1].tolist()),
                correlation=_correlation(errors, predicted.deviation[n]),
            ),
        )
    return found


def _directions(program: Program) -> Floats:
    """``[unit, direction]``: 1 where time is spent, 0 for a backward that there is none of."""
    (whole,) = cut(without_outputs(program), ())
    backward = units_with_backward(whole)
    return np.array([[1.0, float(unit in backward)] for unit in program.unit_numbers])


def _correlation(errors: Floats, together: Floats) -> float:
    """That of any two of a device's errors, given the deviation of all units together.

    ``errors`` are the parts of it, ``[unit, direction]``: if units err independently, their squares
    add up; if they err alike, they do themselves. One unit errs like itself.
    """
    apart, alike = (errors**2).sum(axis=0), errors.sum(axis=0) ** 2
    if len(errors) == 1:
        return 1.0
    return float(np.clip((together**2 - apart).sum() / (alike - apart).sum(), 0.0, 1.0))
