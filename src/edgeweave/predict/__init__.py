"""Seconds per unit on a device that never ran it: features in, predictions with intervals out."""

from edgeweave.predict.device import DeviceLatency, Measurement, Predicted
from edgeweave.predict.features import FAMILIES, FEATURES, unit_features
from edgeweave.predict.model import LatencyModel

__all__ = [
    "FAMILIES",
    "FEATURES",
    "DeviceLatency",
    "LatencyModel",
    "Measurement",
    "Predicted",
    "unit_features",
]
