"""Has a device left its prediction? One robust level and one test, both in log time.

    x     = log(measured seconds / predicted seconds)          one for each step
    level = median of the last 9 x                             a spike does not move it
    noise = median of |x - the x before| / 0.954, last 64      a shift is one difference of many
    left  = |level - believed| > max(log 1.1, 2 noise), for 5 steps in a row

A shift moves the median after 5 steps and fills the window after 9; that is when the fifth of the
tests in a row is met, so that what is believed from then on holds nothing of before. The median
of 9 has 0.41 of the noise as its own: 2 noise are five of its deviations. Nothing is said before
the 17th step, when the noise rests on 16 differences. ``tests/plan/test_drift.py`` holds these
constants to what they are for.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median

from edgeweave.core.errors import ConfigError

__all__ = ["Drift"]

_WINDOW = 9
_HISTORY = 64
_LEAST_HISTORY = 16
_IN_A_ROW = 5
_LEAST_SHIFT = math.log(1.1)
_NOISES = 2.0
_MEDIAN_DIFFERENCE = 0.954
"""The median distance of two draws from a normal distribution, in its deviations."""


class Drift:
    """What a device takes, as a multiple of what it was predicted to take.

    >>> drift = Drift()
    >>> [step for step in range(60) if drift.observe(3.0 if step >= 30 else 1.0)]
    [38]
    >>> round(drift.ratio, 9)
    3.0
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._differences: deque[float] = deque(maxlen=_HISTORY)
        self._n_observed = 0
        self._in_a_row = 0
        self._believed = 0.0
        self._at_first = 0.0

    @property
    def ratio(self) -> float:
        """The multiple believed now. It changes only when the device is noticed to have left."""
        return math.exp(self._believed)

    @property
    def ratio_at_first(self) -> float:
        """The multiple at the start: an error of the prediction rather than a change."""
        return math.exp(self._at_first)

    @property
    def is_suspect(self) -> bool:
        """Whether the device is out now, but not yet for long enough to be believed."""
        return self._in_a_row > 0

    def observe(self, ratio: float) -> bool:
        """Take in one step's multiple; True if the device has now left what was believed."""
        if not (math.isfinite(ratio) and ratio > 0):
            raise ConfigError(
                f"a measured time is a positive multiple of the predicted one (got {ratio}). "
                "Leave the step out."
            )
        x = math.log(ratio)
        if self._recent:
            self._differences.append(abs(x - self._recent[-1]))
        self._recent.append(x)
        self._n_observed += 1
        self._in_a_row = self._in_a_row + 1 if self._is_out() else 0
        may_say = self._n_observed > _LEAST_HISTORY
        if self._in_a_row < _IN_A_ROW or not may_say:
            return False
        self._believed = median(self._recent)
        self._in_a_row = 0
        if self._n_observed == _LEAST_HISTORY + 1:
            self._at_first = self._believed
        return True

    def _is_out(self) -> bool:
        if len(self._recent) < _WINDOW:
            return False
        shift = abs(median(self._recent) - self._believed)
        if shift <= _LEAST_SHIFT:
            return False
        noise = median(self._differences) / _MEDIAN_DIFFERENCE
        return shift > _NOISES * noise
