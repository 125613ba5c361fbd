"""Waiting until the devices a fleet needs are there. Knows liveliness tokens, starts nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from edgeweave.core.clock import Clock
from edgeweave.core.errors import FleetError
from edgeweave.core.names import COORDINATOR_PREFIX
from edgeweave.net import Transport, control_pattern, device_of

__all__ = ["OnWaiting", "Wanted", "wait_devices"]

_POLL_SECONDS = 0.25

OnWaiting = Callable[[tuple[str, ...], tuple[str, ...]], None]
"""Told the endpoints at which the coordinator can be reached, and the devices there so far."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Whom to wait for: these ``names``, or ``n_devices`` of any name."""

    fleet: str
    names: tuple[str, ...]
    n_devices: int
    wait_seconds: float

    def is_met(self, there: set[str]) -> bool:
        return there.issuperset(self.names) and len(there) >= self.n_devices

    def absent(self, there: set[str], endpoints: tuple[str, ...]) -> FleetError:
        """Who is missing, and what to run there."""
        missing = sorted(set(self.names) - there)
        wanted = ", ".join(missing) if missing else f"{self.n_devices} devices"
        joined = ", ".join(sorted(there)) or "none"
        options = "".join(f" --connect {endpoint}" for endpoint in endpoints)
        return FleetError(
            f"the fleet {self.fleet!r} lacks {wanted} after {self.wait_seconds:.0f} s "
            f"(there: {joined}). On each device run: edgeweave join --fleet {self.fleet}{options}"
        )


def wait_devices(
    wanted: Wanted,
    transport: Transport,
    clock: Clock,
    *,
    endpoints: tuple[str, ...],
    check: Callable[[], None],
    on_waiting: OnWaiting,
) -> tuple[str, ...]:
    """The devices that are there: those wanted by name in their order, else all by name.

    ``check`` is called while waiting, to raise what makes waiting useless. ``FleetError`` at the
    deadline.
    """
    if not wanted.n_devices and not wanted.names:
        return ()
    changed = threading.Condition()
    there: set[str] = set()

    def note(key: str, alive: bool) -> None:
        device = device_of(key)
        if not device.startswith(COORDINATOR_PREFIX):
            with changed:
                (there.add if alive else there.discard)(device)
                changed.notify_all()

    deadline = clock.now() + wanted.wait_seconds
    told: tuple[str, ...] | None = None
    watch = transport.watch(control_pattern(wanted.fleet, "alive"), note)
    try:
        while True:
            with changed:
                complete, now = wanted.is_met(there), tuple(sorted(there))
            if now != told:  # outside the lock: the hook is not ours
                told = now
                on_waiting(endpoints, now)
            if complete:
                return wanted.names or now
            check()
            if clock.now() > deadline:
                raise wanted.absent(set(now), endpoints)
            with changed:
                changed.wait_for(lambda: wanted.is_met(there), _POLL_SECONDS)
    finally:
        watch.close()
