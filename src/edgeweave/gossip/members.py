"""The devices of one run, asked over the network: enrolled, begun, watched, fetched, released.

Whoever holds this is not needed by the run: it may vanish at any time, and another one may watch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch

from edgeweave.core.errors import ConfigError, DeviceFailed, EdgeweaveError, FleetError
from edgeweave.device import (
    Admit,
    BeginGossip,
    Enrol,
    Enrolled,
    ModelRequest,
    PeerStatus,
    Release,
    SourceData,
    StopGossip,
    decode_message,
    received_state,
)
from edgeweave.fleet import Fleet
from edgeweave.net import control_key

__all__ = ["Members", "running", "wait_members"]

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
_LATE_SECONDS = 5.0
"""How long the first device that is seen is ahead of the last, where the network is new to us."""
_NEIGHBOURS = 2
"""Of a device that joins later."""

OnStatus = Callable[[Mapping[str, PeerStatus]], None]


def running(fleet: Fleet) -> dict[str, PeerStatus]:
    """What every device of the fleet that is there does in a gossip run, if it is in one."""
    found = {}
    for device in fleet.present():
        try:
            status = _status(fleet, device)
        except EdgeweaveError as error:
            _log.info("%s does not say what it does: %s", device, error)
            continue
        if status.run is not None:
            found[device] = status
    return found


def wait_members(fleet: Fleet, run: str | None, *, seconds: float) -> Members:
    """The devices of a run, as ``Members.of_run``, for whoever has just come to the network.

    Waits until all of its peers are seen: for ``seconds`` where nobody is, and a few seconds longer
    than for the first device where some are, because those that have died are seen never.
    """
    clock = fleet.clock
    deadline = clock.now() + seconds
    somebody_came = False
    while True:
        found = running(fleet)
        own = {name: each for name, each in found.items() if run in (None, each.run)}
        peers = {peer for each in own.values() for peer in each.peers}
        if not somebody_came and fleet.present():
            somebody_came, deadline = True, clock.now() + _LATE_SECONDS
        if (own and own.keys() >= peers) or clock.now() >= deadline:
            return Members.of_run(fleet, run)
        clock.sleep(_LOOK_SECONDS)


class Members:
    """The devices of the run ``run``."""

    def __init__(self, fleet: Fleet, run: str, devices: Sequence[str]) -> None:
        self.run = run
        self.devices = tuple(devices)
        self._fleet = fleet

    @classmethod
    def of_run(cls, fleet: Fleet, run: str | None) -> Members:
        """Those of a run that goes on, or has ended: of ``run``, or of the only one there is."""
        found = running(fleet)
        runs = sorted({status.run for status in found.values() if status.run is not None})
        if (run is None and len(runs) != 1) or (run is not None and run not in runs):
            raise FleetError(
                f"there is one gossip run to go on with ({', '.join(runs) or 'none'} in the fleet "
                f"{fleet.name!r}). Name it, or start one."
            )
        name = run or runs[0]
        return cls(fleet, name, [d for d, status in found.items() if status.run == name])

    def enrol(self, messages: Mapping[str, Enrol]) -> dict[str, Enrolled]:
        """Give every device the program and its settings. The first error releases them all."""
        seconds = self._fleet.timeouts.work
        try:
            answers = self._fleet.for_each(
                self.devices,
                lambda device: self._ask(device, "enrol", messages[device], seconds),
                one_at_a_time=False,
            )
        except BaseException:
            self.release()
            raise
        return {device: decode_message(data, Enrolled) for device, data in answers.items()}

    def begin(self, steps: int) -> None:
        """Let all of them work, for so many steps."""
        if steps < 1:
            raise ConfigError(f"a run has one step or more (got {steps}). Raise epochs.")
        message = BeginGossip(self.run, steps)
        seconds = self._fleet.timeouts.request
        self._fleet.for_each(
            self.devices,
            lambda device: self._ask(device, "begin", message, seconds),
            one_at_a_time=False,
        )

    def statuses(self) -> dict[str, PeerStatus]:
        """What those that answer do now. Devices that joined since are counted in."""
        there = self._fleet.present()
        others = sorted(set(there) - set(self.devices))
        found = {}
        for device in (*self.devices, *others):
            if device not in there:
                continue
            try:
                status = _status(self._fleet, device)
            except EdgeweaveError as error:
                _log.info("%s does not say what it does: %s", device, error)
                continue
            if status.run == self.run:
                found[device] = status
        self.devices = (*self.devices, *(device for device in others if device in found))
        return found

    def wait_until_done(self, on_status: OnStatus) -> dict[str, PeerStatus]:
        """Look every half second until all that are there have done their steps.

        Raises ``FleetError`` if nobody is left, or some were not told to begin for as long as
        ``Timeouts.work``; ``DeviceFailed`` if none of those left can go on.
        """
        clock, patience = self._fleet.clock, self._fleet.timeouts.work
        all_begun = clock.now()
        while True:
            found = self.statuses()
            on_status(found)
            unbegun = [d for d, s in found.items() if s.phase == "enrolled" and s.error is None]
            if not unbegun:
                all_begun = clock.now()
            elif clock.now() - all_begun > patience:
                raise FleetError(
                    f"{', '.join(unbegun)} of run {self.run} were not told to begin for "
                    f"{patience:.0f} s: who enrolled them has gone. Start a run anew."
                )
            if not found:
                raise FleetError(
                    f"nobody is left of run {self.run} (it had {', '.join(self.devices)}). "
                    "Start it again."
                )
            working = [s for s in found.values() if s.phase != "finished" and s.error is None]
            if not working:
                self._check_any_done(found)
                return found
            self._fleet.clock.sleep(_LOOK_SECONDS)

    def models(self, devices: Sequence[str]) -> dict[str, dict[str, torch.Tensor]]:
        """The models of those that still give them."""
        found = {}
        request, seconds = ModelRequest(self.run), self._fleet.timeouts.work
        for device in devices:
            try:
                data = self._fleet.ask(device, "model", request, timeout_seconds=seconds)
                found[device] = received_state(data, device)
            except EdgeweaveError as error:
                _log.warning("the model of %s is left out: %s", device, error)
        return found

    def admit(self, device: str, data: SourceData) -> tuple[str, ...]:
        """Let in a device that is no peer yet, as a neighbour of two that are; which two.

        It trains on ``data``, files of its own, from the step and the model of one of them on.
        """
        working = [name for name, each in self.statuses().items() if each.phase == "works"]
        if not working:
            raise FleetError(f"nobody of run {self.run} is at work any more. Start another run.")
        near = tuple(working[:_NEIGHBOURS])
        message = Admit(self.run, device, near, data)
        self._fleet.ask(near[0], "admit", message, timeout_seconds=2 * self._fleet.timeouts.work)
        return near

    def stop(self) -> tuple[str, ...]:
        """Let those that are there do no more steps, and keep their models as at the end.

        Who was told. A device that is not there goes on when it comes back: stop it again then.
        """
        message, seconds = StopGossip(self.run), self._fleet.timeouts.request
        told = []
        for device in self.statuses():
            try:
                self._fleet.ask(device, "stop", message, timeout_seconds=seconds)
            except EdgeweaveError as error:
                _log.warning("%s could not be stopped: %s", device, error)
            else:
                told.append(device)
        return tuple(told)

    def release(self) -> None:
        """End the run on every device that is there; a model not fetched before is gone."""

        def let_go(device: str) -> bytes:
            seconds = self._fleet.timeouts.request
            try:
                self._fleet.ask(device, "release", Release(self.run), timeout_seconds=seconds)
            except EdgeweaveError as error:
                _log.info("%s could not be released: %s", device, error)
            return b""

        self._fleet.for_each(self.devices, let_go, one_at_a_time=False)

    def _ask(self, device: str, verb: str, message: Enrol | BeginGossip, seconds: float) -> bytes:
        """Ask for what may be asked twice. A device that a bad link has lost is asked again when
        it is seen again, within ``Timeouts.connect``.
        """
        fleet = self._fleet
        deadline = fleet.clock.now() + fleet.timeouts.connect
        while True:
            try:
                return fleet.ask(device, verb, message, timeout_seconds=seconds)
            except FleetError as error:
                if device in fleet.present():
                    raise
                _log.info("%s is not there just now: %s", device, error)
                while device not in fleet.present():
                    if fleet.clock.now() >= deadline:
                        raise
                    fleet.clock.sleep(_LOOK_SECONDS)

    def _check_any_done(self, found: Mapping[str, PeerStatus]) -> None:
        errors = {device: status.error for device, status in found.items() if status.error}
        for device, error in errors.items():
            _log.warning("%s could not go on: %s", device, error)
        if len(errors) == len(found):
            device, error = next(iter(errors.items()))
            raise DeviceFailed(f"no peer of run {self.run} can go on ({error}).", device=device)


def _status(fleet: Fleet, device: str) -> PeerStatus:
    answer = fleet.transport.request(
        control_key(fleet.name, device, "peer"),
        b"",
        device=device,
        timeout_seconds=fleet.timeouts.request,
    )
    return decode_message(answer, PeerStatus)
