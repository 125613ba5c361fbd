"""Which device each member of a run is on, and which devices are there, as one end of it knows it.

Members are numbered by rank, as in ``Sliced.members``. One may move to a device without a member.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from edgeweave.core.errors import FleetError

__all__ = ["Roster"]


class Roster:
    """Safe to use from several threads."""

    def __init__(self, devices: Sequence[str]) -> None:
        self._changing = threading.Lock()
        self._devices = tuple(devices)
        self._before: set[tuple[int, str]] = set()
        self._there: set[str] = set()

    @property
    def devices(self) -> tuple[str, ...]:
        """Where each member is now."""
        return self._devices

    def device_of(self, rank: int) -> str:
        """Where one is now."""
        return self._devices[rank]

    def has_been(self, rank: int, device: str) -> bool:
        """Whether a member is on that device, or was. What it sent from there may still arrive."""
        known = 0 <= rank < len(self._devices)
        return known and (self._devices[rank] == device or (rank, device) in self._before)

    def is_there(self, device: str) -> bool:
        with self._changing:
            return device in self._there

    def note(self, device: str, *, there: bool) -> int | None:
        """A device has come or vanished: the member that is on it, if one is."""
        with self._changing:
            (self._there.add if there else self._there.discard)(device)
            return self._devices.index(device) if device in self._devices else None

    def move(self, rank: int, device: str) -> None:
        """A member is on another device from now on. Nothing changes if it is on it already."""
        with self._changing:
            devices = self._devices
            known = 0 <= rank < len(devices)
            if known and devices[rank] == device:
                return
            if not known or device in devices:
                raise FleetError(
                    f"a member moves to a device without one (member {rank} to {device}; "
                    f"devices: {', '.join(devices)})."
                )
            self._before.add((rank, devices[rank]))
            self._devices = (*devices[:rank], device, *devices[rank + 1 :])
