"""Puts plans to work on devices and lets devices go. Decides nothing, knows what each one holds."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from edgeweave.codec import Codec
from edgeweave.core.errors import EdgeweaveError
from edgeweave.device import Release, Retire, ServingStatistics, decode_message
from edgeweave.fleet import Fleet
from edgeweave.plan import ServingPlan
from edgeweave.program import Program, encode_program
from edgeweave.serving.term import Deployed, Hearing, ServingTerm

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
        self, plan: ServingPlan, hearing: Hearing, *, makes_room: bool
    ) -> tuple[ServingTerm | None, Deployed]:
        """A term of this plan that can be sent to, if all devices could take their stages.

        A device keeps what it holds: only the rest travels. ``makes_room``: nobody needs the stages
        that devices have now.
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
        done = term.deploy(self._graph, self._state, self._held, makes_room=makes_room)
        for device in plan.devices:
            if device in done.taken:
                self._held[device] = term.weights_of(device)
            elif device in done.failed:  # it may hold a stage of before, or of now
                self._held[device] = None
            self._untold.discard(device)
        if not done.failed:
            return term, done
        term.close()
        return None, done

    def forget(self, device: str) -> None:
        """Its process has ended, and with it all that it held."""
        self._held.pop(device, None)
        self._untold.discard(device)

    def let_go(self, terms: Sequence[ServingTerm]) -> None:
        """Retire the stages that none of these terms needs, and release who has none of them."""
        newest = {device: term for term in terms for device in term.plan.devices}
        numbers = [term.number for term in terms] or [self._number]
        retire = Retire(self.run, min(numbers), max(numbers))
        release = Release(self.run, before=self._number)
        answers = self._asked(
            {
                device: ("retire", retire) if device in newest else ("release", release)
                for device in sorted(self._held)
            }
        )
        for device, answer in answers.items():
            if device in newest:
                is_told = answer is not None
                self._held[device] = newest[device].weights_of(device) if is_told else None
                continue
            del self._held[device]
            if answer is None:
                self._untold.add(device)

    def release_all(self) -> None:
        """Let everybody go that is there."""
        there = set(self._fleet.present()) & (self._held.keys() | self._untold)
        self._asked({device: ("release", Release(self.run)) for device in sorted(there)})
        self._held.clear()
        self._untold.clear()

    def statistics(self, devices: Collection[str]) -> dict[str, ServingStatistics]:
        """What these devices did so far; without those that do not answer."""
        answers = self._asked({device: ("serving", Release(self.run)) for device in devices})
        return {
            device: decode_message(answer, ServingStatistics)
            for device, answer in answers.items()
            if answer is not None
        }

    def _asked(
        self, messages: Mapping[str, tuple[str, Retire | Release]]
    ) -> dict[str, bytes | None]:
        """The answers to what devices are asked, all at once; None of one that is gone or silent.

        However many they are, it takes ``Timeouts.stop`` at most.
        """

        def ask(device: str) -> bytes | None:
            verb, message = messages[device]
            seconds = self._fleet.timeouts.stop
            try:
                return self._fleet.ask(device, verb, message, timeout_seconds=seconds)
            except EdgeweaveError as error:
                _log.warning("%s did not answer to %s: %s", device, verb, error)
                return None

        with ThreadPoolExecutor(max_workers=max(len(messages), 1)) as pool:
            return dict(zip(messages, pool.map(ask, messages), strict=True))
