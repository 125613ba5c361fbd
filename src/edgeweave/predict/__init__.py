"""Seconds per unit on a device that never ran it: features in, predictions with intervals out."""

from edgeweave.predict.features import FAMILIES, FEATURES, unit_features

__all__ = ["FAMILIES", "FEATURES", "unit_features"]
