"""Whose fault it is that no answer comes, from what devices say of themselves."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from edgeweave.core.errors import EdgeweaveError
from edgeweave.device import Pulse
from edgeweave.fleet import Fleet
from edgeweave.serving.term import ServingTerm

__all__ = ["Stall", "StallWatch", "culprits"]

_log = logging.getLogger(__name__)

_STALLED = 3.0
"""So many times what all requests under way take, until nobody's answering is looked into."""
_PULSES = 3


@dataclass(frozen=True, slots=True)
class Stall:
    """A term does not go on."""

    seconds: float
    """For how long nothing came."""
    culprits: Mapping[str, str]
    """Who stands still, and how that is known; nobody may be found."""

    @property
    def why(self) -> str:
        """What happened, in words."""
        if self.culprits:
            return f"{', '.join(self.culprits)} stands still"
        return f"{self.seconds:.1f} s of silence"


class StallWatch:
    """Looked at now and then, says when a term stands still. Not safe from several threads."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._stalls = 0

    def look(self, term: ServingTerm, *, is_alone: bool) -> Stall | None:
        """A stall, if nothing came for much longer than it takes; asks the devices then.

        Devices that all say that they live may be slower than planned. So they are looked at once
        more before anything is said, and if there ``is_alone`` one, who has nobody to take over, it
        is nobody's fault.
        """
        plan, slack = term.plan, self._fleet.timeouts.silence
        usual = plan.latency_seconds + plan.in_flight * plan.period_seconds
        silent = term.silent_seconds()
        if silent <= _STALLED * usual + slack * (1 + self._stalls):
            self._stalls = 0 if silent == 0 else self._stalls
            return None
        self._stalls += 1
        with ThreadPoolExecutor(len(plan.devices)) as pool:
            pulses = dict(zip(plan.devices, pool.map(self.pulse, plan.devices), strict=True))
        found = culprits(plan.devices, pulses, term.n_sent)
        if None not in pulses.values() and (self._stalls == 1 or is_alone):
            found = {}
        if not found and self._stalls == 1:
            return None
        self._stalls = 0
        return Stall(silent, found)

    def pulse(self, device: str) -> Pulse | None:
        """What a device says of itself, asked up to three times; None if it says nothing."""
        for _ in range(_PULSES):
            try:
                return self._fleet.pulse(device, timeout_seconds=self._fleet.timeouts.silence)
            except EdgeweaveError as error:
                _log.debug("no pulse of %s: %s", device, error)
        return None


def culprits(
    devices: Sequence[str], pulses: Mapping[str, Pulse | None], n_sent: int
) -> dict[str, str]:
    """Devices without which requests would flow -> why, in words. All that are silent, or else one.

    ``devices`` are those of the pipeline in order, ``n_sent`` how many requests the first was sent.
    If all answer, it is the first that has not computed what was sent to it: it stands still, or
    its link does. If there is none, answers do not arrive from the last.

    >>> at = {"a": Pulse("run", rounds=7), "b": Pulse("run", rounds=5)}
    >>> culprits(["a", "b"], at, 7)
    {'b': 'it computed 5 of the 7 requests that a has handed on'}
    """
    silent = [device for device in devices if pulses.get(device) is None]
    if silent:
        return dict.fromkeys(silent, "it answers no pulse")
    before, n_before = "the coordinator", n_sent
    for device in devices:
        pulse = pulses[device]
        assert pulse is not None
        if pulse.rounds < n_before:
            facts = f"it computed {pulse.rounds} of the {n_before} requests that {before} has "
            return {device: facts + "handed on"}
        before, n_before = device, pulse.rounds
    return {devices[-1]: f"its answers do not arrive, {n_before} are computed"}
