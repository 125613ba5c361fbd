"""A wait that lasts too long, and what pulses say about it. Moments come in as arguments.

    suspected          asked, asked again in doubling distances
        |-- p? -- p? ------ p? ------------ p? ------|   no answer: silent, lost
        |-- p? p! ------ p? p! ------ p? p! ------ ...   answers: alive, however slow
                                                         ... and computes one action for ever: stuck
        all answer and wait ----- p? over neighbours ----------|   none comes: that link is dead

Any answer is a sign of life, also a late one to an early pulse: on a link that loses packets, a
second pulse overtakes nothing, as what is reliable comes in order. Therefore a device that does not
answer at once is also asked over others, as in SWIM (Das et al., 2002, section 4.1): a burst of
losses on one link, which may take longer than anybody can wait, is no death. A silence counts only
while somebody looked: when whoever asks was itself held up (a laptop that slept, a host that
swaps), that time proves nothing.

Of two that live and cannot reach each other one is *cut off*: that which fewer others reach.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from edgeweave.device import Pulse

__all__ = ["Ask", "Suspicion", "Verdict"]

_LOOKS: Final = 32
"""How often one looks in the time that a silent device has."""
_LEAST_UNANSWERED: Final = 3
"""Pulses, whatever the time: one may be lost with the request that carried it."""
_FIRST_RETRY: Final = 1 / 16
"""At the latest, of the time that a silent device has."""

_MOST_RELAYS: Final = 2
"""Others over whom one silent device is asked at once."""

_LINK_ASKS: Final = 8
"""Pulses over a link, in the time that a silent one has."""

_STUCK_TIMES: Final = 10.0
_STUCK_SECONDS: Final = 3.0
"""An action that takes longer than this, and than so many times what it took before, is stuck."""


class Ask(NamedTuple):
    """A pulse to be asked for, directly or over another device."""

    device: str
    via: str | None
    timeout_seconds: float
    """How long an answer is of use."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Who is lost, and why."""

    device: str
    why: Literal["silent", "stuck", "cut off"]
    seconds: float
    """How long it was silent, or was seen computing one action, or nothing came over its link."""
    n_pulses: int
    """Unanswered, or answered during that action."""
    pulse: Pulse | None = None
    """The last one, if any came."""
    peer: str | None = None
    """Whom it cannot reach, if it is cut off."""


class _Patient:
    """What is known of one device since the suspicion began."""

    def __init__(self, retry_seconds: float, now: float) -> None:
        self.first_retry_seconds = self.retry_seconds = retry_seconds
        self.ask_at = now
        self.silent_seconds = 0.0
        self.n_unanswered = 0
        self.pulse: Pulse | None = None
        self.action_seconds = 0.0
        self.n_same_action = 0
        self.answered_at = now


class _Way:
    """What is known of the link between two devices since the suspicion began."""

    def __init__(self, ask_at: float) -> None:
        self.ask_at = ask_at
        self.silent_seconds = 0.0
        self.n_unanswered = 0
        self.is_heard = False


class Suspicion:
    """Begins when a wait has lasted too long, and ends with it or with a verdict.

    ``patience_seconds`` is how long a device may be silent; ``retry_seconds`` how long the answer
    to a pulse may take before the next is asked for. ``links`` are those that frames travel, the
    earlier stage first; once nobody is silent they are tried too, and may be silent for
    ``link_seconds``. Not safe from several threads by itself.
    """

    def __init__(
        self,
        now: float,
        patience_seconds: float,
        retry_seconds: Mapping[str, float],
        *,
        links: Sequence[tuple[str, str]] = (),
        link_seconds: float = 0.0,
    ) -> None:
        self._patience_seconds = patience_seconds
        most = patience_seconds * _FIRST_RETRY
        self._patients = {d: _Patient(min(s, most), now) for d, s in retry_seconds.items()}
        self._link_seconds = link_seconds
        self._ways = {ends: _Way(now + 2 * patience_seconds) for ends in links}
        self._looked_at = now

    @property
    def look_seconds(self) -> float:
        """How long from one look to the next, at most."""
        return self._patience_seconds / _LOOKS

    def due(self, now: float) -> list[Ask]:
        """Who is to be asked for a pulse now; whoever is in it counts as asked."""
        asks: list[Ask] = []
        for device, patient in self._patients.items():
            if now < patient.ask_at:
                continue
            left = max(self._patience_seconds - patient.silent_seconds, self.look_seconds)
            asks.append(Ask(device, None, left))
            if patient.n_unanswered:
                asks += [Ask(device, via, left) for via in self._relays(patient.n_unanswered)]
            patient.ask_at = now + patient.retry_seconds
            patient.retry_seconds = min(2 * patient.retry_seconds, self._distance_seconds)
            patient.n_unanswered += 1
        for (source, target), way in self._ways.items():
            if now >= way.ask_at:
                asks.append(Ask(target, source, self._link_seconds / 2))
                way.ask_at = now + self._link_seconds / _LINK_ASKS
                way.n_unanswered += 1
        return asks

    def answered(self, device: str, pulse: Pulse, now: float, *, via: str | None = None) -> None:
        """A pulse came, asked for at any time in this suspicion, directly or over another one."""
        for ends in ((via, device), (device, via)):
            way = self._ways.get(ends)  # type: ignore[arg-type]  # None is nobody's name
            if way is not None:
                way.silent_seconds, way.n_unanswered, way.is_heard = 0.0, 0, True
        patient = self._patients[device]
        same = patient.pulse is not None and _is_same_action(patient.pulse, pulse)
        seen = min(now - patient.answered_at, 2 * self._distance_seconds)
        patient.action_seconds = patient.action_seconds + seen if same else 0.0
        patient.n_same_action = patient.n_same_action + 1 if same else 1
        patient.pulse, patient.answered_at = pulse, now
        patient.silent_seconds, patient.n_unanswered = 0.0, 0
        patient.retry_seconds = patient.first_retry_seconds
        patient.ask_at = now + self._distance_seconds

    def look(self, now: float) -> Verdict | None:
        """The verdict of this moment; call it at least every ``look_seconds``."""
        seen = min(now - self._looked_at, 2 * self.look_seconds)
        self._looked_at = now
        asked: list[_Patient | _Way] = [*self._patients.values(), *self._ways.values()]
        for each in asked:
            if each.n_unanswered:
                each.silent_seconds += seen
        return self._silent() or self._stuck() or self._cut_off()

    @property
    def _distance_seconds(self) -> float:
        """From a pulse that came to the next, and the most between two that did not."""
        return self._patience_seconds / 4

    def _relays(self, turn: int) -> list[str]:
        """Devices that answer, other ones each turn if there are many."""
        alive = [d for d, each in self._patients.items() if each.pulse and not each.n_unanswered]
        start = turn * _MOST_RELAYS % max(len(alive), 1)
        return (alive[start:] + alive[:start])[:_MOST_RELAYS]

    def _silent(self) -> Verdict | None:
        for device, patient in self._patients.items():
            silent = patient.silent_seconds
            if silent >= self._patience_seconds and patient.n_unanswered >= _LEAST_UNANSWERED:
                return Verdict(device, "silent", silent, patient.n_unanswered, patient.pulse)
        return None

    def _stuck(self) -> Verdict | None:
        """A stage whose thread computes one action for ever, while all others wait."""
        stuck = [device for device, patient in self._patients.items() if _is_stuck(patient)]
        others = [patient for device, patient in self._patients.items() if device not in stuck]
        if not stuck or not all(_waits(patient) for patient in others):
            return None
        patient = self._patients[stuck[0]]
        return Verdict(
            stuck[0], "stuck", patient.action_seconds, patient.n_same_action, patient.pulse
        )

    def _cut_off(self) -> Verdict | None:
        """Who cannot reach a neighbour, while everybody answers and waits."""
        dead = {
            ends: way
            for ends, way in self._ways.items()
            if way.silent_seconds >= self._link_seconds and way.n_unanswered >= _LEAST_UNANSWERED
        }
        if not dead or not all(_waits(patient) for patient in self._patients.values()):
            return None
        (source, target), way = next(iter(dead.items()))
        device, peer = target, source
        if self._n_heard(source) < self._n_heard(target):
            device, peer = source, target
        pulse = self._patients[device].pulse
        return Verdict(device, "cut off", way.silent_seconds, way.n_unanswered, pulse, peer)

    def _n_heard(self, device: str) -> int:
        """Over how many of its links something came."""
        return sum(way.is_heard for ends, way in self._ways.items() if device in ends)


def _is_same_action(before: Pulse, now: Pulse) -> bool:
    return (before.run, before.doing, before.action) == (now.run, "computes", now.action)


def _is_stuck(patient: _Patient) -> bool:
    """Seen at it all the time, not only said so: a device that was stopped counted on."""
    pulse = patient.pulse
    if pulse is None or pulse.doing != "computes" or pulse.usual_seconds is None:
        return False
    return patient.action_seconds > max(_STUCK_TIMES * pulse.usual_seconds, _STUCK_SECONDS)


def _waits(patient: _Patient) -> bool:
    return patient.pulse is not None and patient.pulse.doing in ("waits", "idles")
