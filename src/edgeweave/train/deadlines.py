"""How long to wait for the next result, learnt from how long such waits took. Reads no clock.

A deadline is the mean of past waits and four of their mean deviations, both exponentially weighted,
as TCP computes its timeout for retransmission (RFC 6298, section 2). Deviations from that RFC: the
floor is 50 ms, not a second, because a deadline that passes costs a few small messages here; and a
deadline that proved too short doubles as there, but returns to what waits say over some fifty of
them, not with the next.

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

__all__ = ["Deadline", "Deadlines"]

_FLOOR_SECONDS: Final = 0.05
_FIRST_SECONDS: Final = 1.0
"""Before anything is learnt, as in RFC 6298."""
_DEVIATIONS: Final = 4.0
_MEAN_GAIN: Final = 1 / 8
_DEVIATION_GAIN: Final = 1 / 4
_MOST_PATIENCE: Final = 8.0
_PATIENCE_KEPT: Final = 0.98

_STEPS_OF_A_WAIT: Final = 2.0
"""Of the three in which a stopped device is noticed; see the drawing."""
_SLACK_OF_A_WAIT: Final = 0.9
"""Of the slack; the rest is for looking at the clock, ending the run and telling."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """What was learnt of one kind of wait.

    >>> Deadline().heard(0.5).seconds
    1.5
    >>> Deadline().heard(0.5).heard(0.5).seconds
    1.25
    """

    mean_seconds: float = 0.0
    deviation_seconds: float = 0.0
    n_heard: int = 0
    patience: float = 1.0
    """Times the deadline: above 1 after it proved too short."""

    @property
    def seconds(self) -> float:
        """When to suspect that nothing comes any more."""
        if not self.n_heard:
            return _FIRST_SECONDS * self.patience
        expected = self.mean_seconds + _DEVIATIONS * self.deviation_seconds
        return max(expected, _FLOOR_SECONDS) * self.patience

    def heard(self, waited_seconds: float) -> Deadline:
        """It came, after so long. Longer than ``seconds``, the next deadline is longer than that.

        A wait that is negative or not finite is refused with ``ValueError``.
        """
        if not 0 <= waited_seconds < float("inf"):
            raise ValueError(f"a wait takes 0 seconds or more (got {waited_seconds}).")
        if not self.n_heard:
            mean, deviation = waited_seconds, waited_seconds / 2
        else:
            error = waited_seconds - self.mean_seconds
            mean = self.mean_seconds + _MEAN_GAIN * error
            deviation = self.deviation_seconds + _DEVIATION_GAIN * (
                abs(error) - self.deviation_seconds
            )
        patience = 1.0 + _PATIENCE_KEPT * (self.patience - 1.0)
        return Deadline(mean, deviation, self.n_heard + 1, patience)

    def was_too_short(self) -> Deadline:
        """The suspicion was false: be twice as patient, up to eight times."""
        return replace(self, patience=min(2 * self.patience, _MOST_PATIENCE))


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
