"""The devices of one run: asking them, letting them go, and whom to blame when one is lost.

The first error ends the run. It waits in the run's inbox, where who waits for a result finds it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from edgeweave.core.errors import DeviceLost, DeviceTimeout, EdgeweaveError, FleetError
from edgeweave.device import Fault, Halt, Inbox, Release, StateRequest, decode_message
from edgeweave.fleet import Fleet
from edgeweave.net.remote import decode_error
from edgeweave.plan import Plan

__all__ = ["Crew"]

_log = logging.getLogger(__name__)

_BLAME_SECONDS = 3.0


class Crew:
    """Those who hold the stages of ``run``. ``rounds`` is how many have begun, for messages.

    Of a run that ``goes_on`` in another term, they are never told to forget what they keep.
    """

    def __init__(
        self, fleet: Fleet, plan: Plan, run: str, term: int, inbox: Inbox, *, goes_on: bool
    ) -> None:
        self.rounds = 0
        self._term = term
        self._goes_on = goes_on
        self._fleet = fleet
        self._plan = plan
        self._run = run
        self._inbox = inbox
        self._lost: dict[str, threading.Event] = {d: threading.Event() for d in plan.devices}
        self._any_lost = threading.Event()
        self._condemned: DeviceLost | None = None
        self._news = threading.Event()  # an answer came, or the run failed

    def for_each(self, work: Callable[[str], bytes]) -> None:
        """Do ``work`` for every device; in turn where they share this machine, unless it is a later
        term: its stages have units that were profiled, and training waits.
        """
        fleet, in_turn = self._fleet, self._fleet.is_local and self._term == 0
        try:
            fleet.for_each(self._plan.devices, work, one_at_a_time=in_turn)
        except EdgeweaveError as error:
            self._notice_absent()
            raise self.blamed(error) from error

    def ask_all(self, verb: str, message: StateRequest | Release) -> dict[str, bytes]:
        """Ask every stage at once. The first fault or loss ends the run, and with it the asking."""
        devices, seconds = self._plan.devices, self._fleet.timeouts.work
        with ThreadPoolExecutor(max_workers=len(devices)) as pool:
            asked = [
                pool.submit(self._fleet.ask, device, verb, message, timeout_seconds=seconds)
                for device in devices
            ]
            for future in asked:
                future.add_done_callback(lambda _future: self._news.set())
            try:
                self._wait_answers(asked)
            except BaseException as error:
                cause = self.blamed(error) if isinstance(error, EdgeweaveError) else error
                self._end()  # or else the other stages answer when their deadline is over
                raise cause from error
        return dict(zip(devices, (future.result() for future in asked), strict=True))

    @property
    def lost(self) -> frozenset[str]:
        """Those that vanished so far."""
        return frozenset(device for device, event in self._lost.items() if event.is_set())

    def release(self) -> None:
        """Let the devices go; one that is gone or silent cannot be told, and need not be."""
        self._tell("release", Release(self._run))

    def check(self) -> None:
        """Raise the error that ended the run, if one did."""
        if self._inbox.error is not None:
            raise self._inbox.error

    def fail(self, error: EdgeweaveError) -> None:
        """End the run with an error; the first one counts."""
        self._inbox.fail(error)
        self._news.set()

    def on_lost(self, device: str) -> None:
        """A device of the fleet has vanished."""
        if device in self._lost:
            self._lost[device].set()
            self._any_lost.set()
            self.fail(self._lost_error(device))

    def lose(self, error: DeviceLost, *, is_gone: bool) -> None:
        """End the run as when a device vanished; one that is gone is asked nothing any more."""
        self._condemned = error
        self.fail(error)
        if is_gone:
            self._lost[error.device].set()
            self._any_lost.set()

    def on_fault(self, payload: bytes) -> bytes:
        """A stage says that it cannot go on."""
        fault = decode_message(payload, Fault)
        if (fault.run, fault.term) == (self._run, self._term):
            error = decode_error(fault.error, fault.device)
            self.fail(self.blamed(error))
        return b""

    def blamed(self, error: EdgeweaveError) -> EdgeweaveError:
        """The cause behind an error: a device that vanished makes others fail a moment before."""
        if isinstance(error, DeviceLost):
            return error
        if type(error) in (FleetError, DeviceTimeout):
            self._any_lost.wait(_BLAME_SECONDS)
        for device, event in self._lost.items():
            if event.is_set():
                return self._condemned or self._lost_error(device)
        return self._inbox.error or error

    def _end(self) -> None:
        """Let all stages stop; what devices keep of their states the next term needs."""
        if self._goes_on:
            self._tell("halt", Halt(self._run, self._fleet.transport.name))
        else:
            self.release()

    def _tell(self, verb: str, message: Release | Halt) -> None:
        seconds = self._fleet.timeouts.stop
        for device, lost in self._lost.items():
            if lost.is_set():
                continue
            try:
                self._fleet.ask(device, verb, message, timeout_seconds=seconds)
            except EdgeweaveError as error:
                _log.warning("%s did not take its %s: %s", device, verb, error)

    def _notice_absent(self) -> None:
        """Take those for lost that vanished before anybody watched them for this term."""
        present = self._fleet.present()
        for device in self._lost:
            if device not in present:
                self.on_lost(device)

    def _wait_answers(self, asked: Sequence[Future[bytes]]) -> None:
        """Until all are there; raises the first error, of an answer or of the run."""
        while True:
            self._news.clear()
            self.check()
            answered = [future.result() for future in asked if future.done()]
            if len(answered) == len(asked):
                return
            self._news.wait(self._fleet.timeouts.work)

    def _lost_error(self, device: str) -> DeviceLost:
        stage = self._plan.devices.index(device)
        when = f"in round {self.rounds - 1}" if self.rounds else "before the first round"
        return DeviceLost(
            f"stage {stage} on {device} was lost {when} "
            "(its process or its link is gone). Bring it back or leave it out, and resume from "
            "the last checkpoint.",
            device=device,
            stage=stage,
        )
