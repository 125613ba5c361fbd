"""Fleets of devices, emulated here or real on the network."""

from edgeweave.fleet.fleet import Fleet
from edgeweave.fleet.spec import Device

__all__ = ["Device", "Fleet"]
