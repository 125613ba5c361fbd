"""How long to wait for the next result, learnt from how long such waits took. Reads no clock.

Each kind of wait has a ``Deadline`` of its own.

    |<- wait, learnt by its kind ->|<------ pulses, in doubling distances ------>|
    waits                          suspects                                      gives up
    |<---------- two steps and most of a slack, from the wait's beginning ------>|

Who stops may have sent on what the others need for up to a step. So whoever stops is noticed within
three steps and the slack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from edgeweave.core.deadline import Deadline

__all__ = ["Deadline", "Deadlines"]

_STEPS_OF_A_WAIT: Final = 2.0
"""Of the three in which a stopped device is noticed; see the drawing."""
_SLACK_OF_A_WAIT: Final = 0.9
"""Of the slack; the rest is for looking at the clock, ending the run and telling."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """All that a run learnt of its waits: one ``Deadline`` for each kind, and how long steps take.

    Kinds are names that the caller chooses. Nothing is forgotten when a step ends.
    """

    slack_seconds: float
    """What a silent device gets beside its steps."""
    unknown_seconds: float
    """What it gets while nothing is known of steps."""
    kinds: Mapping[str, Deadline] = field(default_factory=dict)
    step: Deadline = field(default_factory=Deadline)

    def heard(self, kind: str, waited_seconds: float) -> Deadlines:
        """What was waited for came after so long."""
        return replace(self, kinds={**self.kinds, kind: self._of(kind).heard(waited_seconds)})

    def was_too_short(self, kind: str) -> Deadlines:
        """A suspicion of this kind was false."""
        return replace(self, kinds={**self.kinds, kind: self._of(kind).was_too_short()})

    def stepped(self, seconds: float) -> Deadlines:
        """A training step is over, from its first input to its last result."""
        return replace(self, step=self.step.heard(seconds))

    @property
    def step_seconds(self) -> float | None:
        """What a step takes; before the first one is over, the longest of the waits known."""
        if self.step.n_heard:
            return self.step.mean_seconds
        known = [each.mean_seconds for each in self.kinds.values() if each.n_heard]
        return max(known, default=None)

    def suspect_seconds(self, kind: str) -> float:
        """How long a wait lasts before pulses are asked for: at most half of what there is."""
        return min(self._of(kind).seconds, self.give_up_seconds() / 2)

    def give_up_seconds(self) -> float:
        """How long a wait lasts before a device that answered no pulse in it is lost."""
        step = self.step_seconds
        if step is None:
            return max(self.unknown_seconds, self.slack_seconds)
        return _STEPS_OF_A_WAIT * step + _SLACK_OF_A_WAIT * self.slack_seconds

    def _of(self, kind: str) -> Deadline:
        return self.kinds.get(kind, _UNKNOWN)


_UNKNOWN: Final = Deadline()
