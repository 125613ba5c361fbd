"""A device as a user describes it, and which of them can be a fleet together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeweave.core.errors import ConfigError
from edgeweave.core.names import COORDINATOR_NAME, COORDINATOR_PREFIX
from edgeweave.core.units import parse_bytes
from edgeweave.core.words import suggest
from edgeweave.net import Links, check_device_name

__all__ = ["Device", "check_devices", "check_links"]


@dataclass(frozen=True, slots=True)
class Device:
    """One emulated device of a local fleet.

    ``speed`` is the fraction of one core of this machine that it computes with, held by pacing;
    ``memory`` (``"512MiB"`` or bytes) limits the stage that may be put on it.

    >>> Device("pi-a", speed=0.5, memory="512MiB").memory_bytes
    536870912
    """

    name: str
    speed: float = 1.0
    memory: str | int | None = None

    def __post_init__(self) -> None:
        check_device_name(self.name)
        if not 0 < self.speed <= 1:
            raise ConfigError(
                f"speed is a fraction of one core, above 0 and at most 1 (got {self.speed} for "
                f"{self.name!r}). Emulate a faster device on a faster host."
            )
        if self.memory is not None:
            parse_bytes(self.memory)

    @property
    def memory_bytes(self) -> int | None:
        return None if self.memory is None else parse_bytes(self.memory)


def check_devices(devices: Sequence[Device]) -> None:
    """``ConfigError`` if these cannot be the devices of one emulated fleet."""
    if not isinstance(devices, Sequence) or not all(isinstance(each, Device) for each in devices):
        raise ConfigError(
            f"a local fleet is a list of ew.Device (got {devices!r:.60}). Give one for each "
            "device: ew.Device('pi-a', speed=0.5)."
        )
    names = [device.name for device in devices]
    if not names or len(set(names)) != len(names):
        raise ConfigError(
            f"a local fleet has at least one device and unique names (got {names}). Give each one "
            "a name of its own."
        )
    for name in names:
        if name == COORDINATOR_NAME or name.startswith(COORDINATOR_PREFIX):
            raise ConfigError(
                f"{name!r} is how links name the one who drives the fleet. Name the device "
                "otherwise."
            )


def check_links(links: Links, devices: Sequence[str]) -> None:
    """``ConfigError`` if a link has an end that is not in the fleet."""
    known = [COORDINATOR_NAME, *devices]
    for source, target, _shape in links.pairs:
        for name in (source, target):
            if name not in known:
                raise ConfigError(
                    f"a link has its ends in the fleet ({source} -> {target}: {name!r} is not "
                    f"one of {', '.join(known)}). {suggest(name, known)}"
                )
