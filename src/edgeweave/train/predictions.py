"""What devices would take for a model's units, predicted from their probes and never run there."""

from __future__ import annotations

from collections.abc import Mapping

from edgeweave.predict import DeviceLatency, LatencyModel, Predicted, unit_features
from edgeweave.predict.probe import Probe
from edgeweave.program import Program

__all__ = ["predict_units"]


def predict_units(
    program: Program, microbatch_size: int, probes: Mapping[str, Probe]
) -> dict[str, Predicted]:
    """For each probed device, seconds ``[unit, direction]`` of one microbatch.

    How wrong that is on devices and networks it knows nothing of:
    docs/reference-benchmarks.md, ``predictor``.
    """
    model = LatencyModel.shipped()
    pieces = list(unit_features(program, microbatch_size).values())
    return {
        name: DeviceLatency(model, probe.measurements()).predict(pieces)
        for name, probe in probes.items()
    }
