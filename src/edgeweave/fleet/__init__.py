"""Fleets of devices, emulated here or real on the network."""

from edgeweave.fleet.chaos import Chaos, ChaosEvent
from edgeweave.fleet.chaos_runner import ChaosRecord
from edgeweave.fleet.description import PRESETS, FleetDescription, load_fleet, load_preset
from edgeweave.fleet.fleet import Fleet
from edgeweave.fleet.spec import Device

__all__ = [
    "PRESETS",
    "Chaos",
    "ChaosEvent",
    "ChaosRecord",
    "Device",
    "Fleet",
    "FleetDescription",
    "load_fleet",
    "load_preset",
]
