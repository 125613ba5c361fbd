"""How long after a change of plan none follows: longer where what was changed for did not last."""

from __future__ import annotations

__all__ = ["Pause"]


class Pause:
    """Counts in steps, or in whatever else is observed again and again.

    It doubles when something changes again within it, or before the last change has paid for
    itself, and is as short as at first after a change that lasted.

    >>> pause = Pause(10)
    >>> pause.begin(0)
    >>> pause.is_on(9), pause.is_on(10)
    (True, False)
    >>> pause.noticed(5)
    >>> pause.is_on(19), pause.is_on(20)
    (True, False)
    """

    def __init__(self, least_steps: int) -> None:
        self._least_steps = least_steps
        self._steps = least_steps
        self._until = 0
        self._last: tuple[int, int] | None = None
        """When the last change was, and after how many steps it has paid for itself."""

    def is_on(self, step: int) -> bool:
        """Whether nothing is to be changed in this step."""
        return step < self._until

    def begin(self, step: int, *, pays_after_steps: int = 0) -> None:
        """The plan is changed."""
        self._last = (step, pays_after_steps)
        self._until = step + self._steps

    def noticed(self, step: int) -> None:
        """Something has left what was believed of it: did the last change last?"""
        last, self._last = self._last, None
        if last is None:
            return
        changed, pays_after_steps = last
        if step < changed + max(self._steps, pays_after_steps):
            self._steps *= 2
            self._until = changed + self._steps
        else:
            self._steps = self._least_steps

    def taken_back(self, step: int) -> None:
        """The last change made things worse and is undone: the next waits twice as long."""
        self._last = None
        self._steps *= 2
        self._until = step + self._steps
