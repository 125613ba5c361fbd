"""Puts plans to work on devices and lets devices go. Decides nothing, knows what each one holds."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Collection, Mapping, Sequence

import torch

from edgeweave.codec import Codec
from edgeweave.core.errors import EdgeweaveError
from edgeweave.device import Release, Retire, ServingStatistics, decode_message
from edgeweave.fleet import Fleet
from edgeweave.plan import ServingPlan
from edgeweave.program import Program, encode_program
from edgeweave.serving.term import Hearing, ServingTerm

__all__ = ["Hands"]

_log = logging.getLogger(__name__)


class Hands:
    """One serving run on the devices of a fleet. One thread at a time."""

    def __init__(
        self,
        fleet: Fleet,
        program: Program,
        state: Mapping[str, torch.Tensor],
        *,
        most_samples: int,
        codec: Codec | None = None,
    ) -> None:
        self.run = f"serve-{secrets.token_hex(4)}"
        self._fleet = fleet
        self._program = program
        self._graph = encode_program(program)
        self._state = state
        self._most_samples = most_samples
        self._codec = codec
        self._held: dict[str, frozenset[str] | None] = {}
        """By device that may be hired, the names of what it holds; None if that is not known."""
        self._untold: set[str] = set()
        """Those that did not take their release."""
        self._number = 0

    def deploy(
        self, plan: ServingPlan, hearing: Hearing
    ) -> tuple[ServingTerm | None, dict[str, EdgeweaveError]]:
        """A term of this plan that can be sent to, or who could not take its stage, and why.

        A device keeps what it holds: only the rest travels.
        """
        number, self._number = self._number, self._number + 1
        term = ServingTerm(
            self._fleet,
            self.run,
            number,
            self._program,
            plan,
            most_samples=self._most_samples,
            hearing=hearing,
            codec=self._codec,
        )
        term.listen()
        failed = term.deploy(self._graph, self._state, self._held)
        for device in plan.devices:  # one that failed may hold a stage of before, or of now
            self._held[device] = None if device in failed else term.weights_of(device)
            self._untold.discard(device)
        if not failed:
            return term, failed
        term.close()
        return None, failed

    def forget(self, device: str) -> None:
        """Its process has ended, and with it all that it held."""
        self._held.pop(device, None)
        self._untold.discard(device)

    def let_go(self, terms: Sequence[ServingTerm]) -> None:
        """Retire the stages that none of these terms needs, and release who has none of them."""
        newest = {device: term for term in terms for device in term.plan.devices}
        numbers = [term.number for term in terms] or [self._number]
        for device in sorted(self._held):
            term = newest.get(device)
            if term is not None:
                message = Retire(self.run, min(numbers), max(numbers))
                is_told = self._is_told(device, "retire", message)
                self._held[device] = term.weights_of(device) if is_told else None
                continue
            del self._held[device]
            if not self._is_told(device, "release", Release(self.run, before=self._number)):
                self._untold.add(device)

    def release_all(self) -> None:
        """Let everybody go that is there."""
        for device in sorted(set(self._fleet.present()) & (self._held.keys() | self._untold)):
            self._is_told(device, "release", Release(self.run))
        self._held.clear()
        self._untold.clear()

    def statistics(self, devices: Collection[str]) -> dict[str, ServingStatistics]:
        """What these devices did so far; without those that do not answer."""
        found = {}
        for device in devices:
            try:
                answer = self._fleet.ask(
                    device,
                    "serving",
                    Release(self.run),
                    timeout_seconds=self._fleet.timeouts.stop,
                )
            except EdgeweaveError as error:
                _log.warning("%s does not say what it did: %s", device, error)
            else:
                found[device] = decode_message(answer, ServingStatistics)
        return found

    def _is_told(self, device: str, verb: str, message: Retire | Release) -> bool:
        """Whether it took it; one that is gone or silent cannot be told."""
        try:
            seconds = self._fleet.timeouts.stop
            self._fleet.ask(device, verb, message, timeout_seconds=seconds)
        except EdgeweaveError as error:
            _log.warning("%s did not take its %s: %s", device, verb, error)
            return False
        return True
