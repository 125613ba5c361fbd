"""When to stop waiting for something that came before, learnt from how long it took. No clock here.

A deadline is the mean of past waits and four of their mean deviations, both exponentially weighted,
as TCP computes its timeout for retransmission (RFC 6298, section 2). Deviations from that RFC: the
floor is 50 ms, not a second, because a deadline that passes costs a few small messages here; and a
deadline that proved too short doubles as there, but returns to what waits say over some fifty of
them, not with the next.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

__all__ = ["Deadline"]

_FLOOR_SECONDS: Final = 0.05
_FIRST_SECONDS: Final = 1.0
"""As in RFC 6298."""
_DEVIATIONS: Final = 4.0
_MEAN_GAIN: Final = 1 / 8
_DEVIATION_GAIN: Final = 1 / 4
_MOST_PATIENCE: Final = 8.0
_PATIENCE_KEPT: Final = 0.98


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
    first_seconds: float = _FIRST_SECONDS
    """Before anything is learnt."""
    floor_seconds: float = _FLOOR_SECONDS
    """It is never shorter."""

    @property
    def seconds(self) -> float:
        """When to suspect that nothing comes any more."""
        if not self.n_heard:
            return self.first_seconds * self.patience
        expected = self.mean_seconds + _DEVIATIONS * self.deviation_seconds
        return max(expected, self.floor_seconds) * self.patience

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
        return replace(
            self,
            mean_seconds=mean,
            deviation_seconds=deviation,
            n_heard=self.n_heard + 1,
            patience=patience,
        )

    def was_too_short(self) -> Deadline:
        """The suspicion was false: be twice as patient, up to eight times."""
        return replace(self, patience=min(2 * self.patience, _MOST_PATIENCE))
