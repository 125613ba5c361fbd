"""Who leads a run on this device, and noticing when that one vanishes."""

from __future__ import annotations

from collections.abc import Callable

from edgeweave.device.workplace import Workplace
from edgeweave.net import Subscription, control_key

__all__ = ["CoordinatorWatch"]


class CoordinatorWatch:
    """Watches one coordinator at a time, until ``close``. Not safe from several threads.

    ``on_gone(coordinator)`` is called on a thread of the network.
    """

    def __init__(self, place: Workplace, on_gone: Callable[[str], None]) -> None:
        self._place = place
        self._on_gone = on_gone
        self._subscription: Subscription | None = None
        self.coordinator: str | None = None
        """Whom it followed last."""

    def follow(self, coordinator: str) -> None:
        """From now on it is this one."""
        if coordinator == self.coordinator:
            return
        self.close()
        self.coordinator = coordinator
        key = control_key(self._place.settings.fleet, coordinator, "alive")

        def changed(_key: str, alive: bool) -> None:
            if not alive:
                self._on_gone(coordinator)

        self._subscription = self._place.transport.watch(key, changed)

    def close(self) -> None:
        """Notice nothing any more."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()
