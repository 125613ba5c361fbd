"""What a device has of one run, from its first ``Deploy`` until it is released.

    working --halt, stage failed--> halted --deploy of a later term--> working
       |                               |
       +------coordinator gone---------+----> orphaned --deploy of a later term--> working

A stage is at work for one term. What is kept of its states outlives it, because a later term may
begin with them, here or on another device.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from edgeweave.core.errors import DeviceBusy, FleetError
from edgeweave.device import memory
from edgeweave.device.coordinator_watch import CoordinatorWatch
from edgeweave.device.messages import Pulse
from edgeweave.device.stages.messages import Deploy, Fetch, Halt, Holdings, Replicate
from edgeweave.device.stages.running import Running
from edgeweave.device.stages.snapshots import Snapshots
from edgeweave.device.workplace import Workplace
from edgeweave.program import encode_state

__all__ = ["Membership"]

_log = logging.getLogger(__name__)


class Membership:
    """One run's place on this device. ``on_orphaned`` is called when its coordinator vanishes."""

    def __init__(self, run: str, place: Workplace, *, on_orphaned: Callable[[], None]) -> None:
        self.run = run
        self._place = place
        self._on_orphaned = on_orphaned
        self._snapshots = Snapshots(place.settings.name)
        self._changing = threading.RLock()
        self._running: Running | None = None
        self._newest_term = 0
        self._watch = CoordinatorWatch(place, self._orphan)

    @property
    def running(self) -> Running:
        """The stage at work; ``FleetError`` if there is none."""
        running = self._running
        if running is None:
            raise FleetError(
                f"{self._place.settings.name} has no stage of run {self.run} at work (it was "
                "halted). Deploy one."
            )
        return running

    def pulse(self) -> Pulse:
        """What the stage does now. Waits for nothing."""
        running = self._running
        return Pulse(None) if running is None else running.pulse()

    def deploy(self, message: Deploy) -> None:
        """Put a stage to work, in place of the one before."""
        with self._changing:
            self._stop()
            self._snapshots.reopen()
            self._newest_term = max(self._newest_term, message.assignment.term)
            self._running = Running(message, self._place, self._snapshots)
            self._watch.follow(message.assignment.coordinator)

    def halt(self, message: Halt) -> Holdings:
        """Stop the stage, after some rounds or at once, and tell what is kept.

        ``DeviceBusy`` if it works for another coordinator, which is there.
        """
        with self._changing:
            running = self._running
            if running is not None and message.coordinator != self._watch.coordinator:
                raise DeviceBusy(
                    f"{self._place.settings.name} works for run {self.run} of "
                    f"{self._watch.coordinator}, which is there. Stop that process first.",
                    device=self._place.settings.name,
                )
            if running is not None and message.rounds is not None:
                running.wait_rounds(message.rounds)
            self._stop()
            if running is not None and message.rounds is not None:
                self._snapshots.room_bytes = None  # the stage's memory is free, until the next one
                self._snapshots.add(message.step, running.state())
            held, fixed = self._snapshots.held(), tuple(sorted(self._snapshots.fixed))
            return Holdings(held, fixed, self._newest_term)

    def fetch(self, message: Fetch) -> bytes:
        """A part of a state, as safetensors."""
        return encode_state(self._snapshots.take(message.step, message.names))

    def replicate(self, message: Replicate) -> bytes:
        """The state of the stage at work, as safetensors, once it has come so far."""
        running = self.running
        if running.assignment.term != message.term:
            raise FleetError(
                f"{self._place.settings.name} works in term {running.assignment.term} of run "
                f"{self.run} (a state of term {message.term} was asked for). It is another's now."
            )
        return running.replica(message.step)

    def close(self) -> None:
        """Let everything go."""
        self._snapshots.end()
        with self._changing:
            self._watch.close()
            self._stop()
        memory.release_freed()

    def _stop(self) -> None:
        self._snapshots.end()
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def _orphan(self, coordinator: str) -> None:
        with self._changing:
            if coordinator != self._watch.coordinator:
                return
            self._stop()
        _log.info("run %s: its coordinator %s vanished; states are kept", self.run, coordinator)
        self._on_orphaned()
