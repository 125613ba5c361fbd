"""A change of plan on trial: whether steps got shorter, as they were predicted to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from edgeweave.plan.decision import Decision

__all__ = ["TRIAL_STEPS", "Trial"]

TRIAL_STEPS = 8
"""Steps on both sides that are compared, by their medians: the first ones after a move are slow."""
_WORSE = 1.02


class Trial:
    """Judges one decision by steps as measured; ``before`` are the last ones of the old plan.

    Steps count by their seconds for each sample, because the last of an epoch may be smaller.
    """

    def __init__(self, decision: Decision, before: Sequence[float]) -> None:
        self._decision = decision
        self._before = tuple(before)[-TRIAL_STEPS:]
        self._after: list[float] = []

    @property
    def is_over(self) -> bool:
        return len(self._after) >= TRIAL_STEPS or not self._before

    def observe(self, step: int, seconds: float, *, steps_left: int) -> Decision | None:
        """Take in a step of the new plan. Returns the way back if it turns out to be worse."""
        if self.is_over:
            return None
        self._after.append(seconds)
        if not self.is_over or median(self._after) <= _WORSE * median(self._before):
            return None
        tried = self._decision
        return replace(
            tried,
            step=step,
            verdict="worse",
            old=tried.new,
            new=tried.old,
            old_step_seconds=tried.old_step_seconds * median(self._after) / median(self._before),
            new_step_seconds=tried.old_step_seconds,
            steps_left=steps_left,
        )
