"""What devices would take for a model's units, predicted and never run there."""

from __future__ import annotations

from collections.abc import Mapping

from edgeweave.predict import DeviceLatency, Predicted, unit_features
from edgeweave.predict.probe import Probe
from edgeweave.program import Program
from edgeweave.train.experience import Experience

__all__ = ["device_latencies", "predict_units"]


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

    How wrong that is on devices and networks it knows nothing of:
    docs/reference-benchmarks.md, ``predictor``.
    """
    pieces = list(unit_features(program, microbatch_size).values())
    return {name: latency.predict(pieces) for name, latency in latencies.items()}
