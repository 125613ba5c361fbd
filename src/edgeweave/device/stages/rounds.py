"""How many rounds of a run a device has done: its compute thread counts, others wait for it."""

from __future__ import annotations

import threading

from edgeweave.core.errors import DeviceTimeout, FleetError
from edgeweave.device.place import Place

__all__ = ["Rounds"]


class Rounds:
    """Grows until the run ends here. Safe from several threads."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._changed = threading.Condition()
        self._done = 0
        self._ended = False

    @property
    def done(self) -> int:
        """Rounds finished so far."""
        return self._done

    def finish(self, number: int) -> None:
        """Round ``number``, and all before it, are done."""
        with self._changed:
            self._done = number + 1
            self._changed.notify_all()

    def end(self) -> None:
        """No other round will be."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait(self, rounds: int, *, timeout_seconds: float) -> None:
        """Return once so many are done; raises at once if they never will be."""
        me = self._place.peer(self._place.stage)
        with self._changed:
            self._changed.wait_for(lambda: self._done >= rounds or self._ended, timeout_seconds)
            if self._done >= rounds:
                return
            if self._ended:
                raise FleetError(f"{me} ended after {self._done} of {rounds} rounds.")
            raise DeviceTimeout(
                f"{me} finished {self._done} of {rounds} rounds in {timeout_seconds:.0f} s.",
                device=self._place.device,
                stage=self._place.stage,
            )
