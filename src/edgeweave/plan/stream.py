"""1F1B without a flush between steps: what one stage does, step after step.

Two stages, three microbatches a step; ``0.2`` is the last microbatch of step 0::

    stage 0   F0.0 F0.1 B0.0 F0.2 B0.1 F1.0 B0.2 U F1.1 B1.0 F1.2 ...     begins step 1 before the
    stage 1        F0.0 B0.0 F0.1 B0.1 F0.2 B0.2 U F1.0 B1.0 ...          update of step 0

A stage holds at most as many microbatches as under 1F1B, now of any step, and always does a forward
where it may. It updates right after the last backward of a step. So which updates a forward has
seen follows from the order alone, never from who was late (PipeDream, arXiv:1806.03377, "weight
stashing"): forward number ``n`` of a stream comes after backward ``n - held``, hence after the
updates of all steps that end before it. Only a backward that ends no step may be done while the
next forward waits for its input: no update moves by that.

A stream ends with a flush. Whether another step follows is told step by step (``Learn``).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from edgeweave.plan.schedule import Backward, Forward, Update, is_flushed, most_in_flight

__all__ = ["Due", "Learn", "Stream", "older_versions"]


@dataclass(frozen=True, slots=True)
class Learn:
    """Find out whether another step follows: call ``Stream.begin_step`` or ``Stream.end``."""


@dataclass(frozen=True, slots=True)
class Due:
    """An action of the stream's step number ``step``."""

    step: int
    action: Forward | Backward | Update | Learn


class Stream:
    """What one stage may do next, from a flush to the next one.

    >>> stream = Stream(0, 2)
    >>> stream.begin_step(2)
    >>> while not isinstance((due := stream.choices()[0]).action, Learn):
    ...     print(due.step, due.action)
    ...     stream.take(due)
    0 Forward(microbatch=0)
    0 Forward(microbatch=1)
    0 Backward(microbatch=0)
    """

    def __init__(self, stage: int, n_stages: int, *, extra_in_flight: int = 0) -> None:
        self._n_stages = n_stages
        self._extra_in_flight = extra_in_flight
        self._limit = most_in_flight(stage, n_stages, extra_in_flight)
        self._stops: list[int] = []
        self._ended = False
        self._forwards = 0
        self._backwards = 0
        self._updates = 0

    def begin_step(self, n_microbatches: int) -> None:
        """Another step follows, of so many microbatches."""
        assert not self._ended, "a stream that has ended has no more steps"
        self._stops.append(self._start(len(self._stops)) + n_microbatches)

    def end(self) -> None:
        """No step follows: what is under way ends, and nothing else begins."""
        self._ended = True

    def choices(self) -> tuple[Due, ...]:
        """The next action, and what may be done while it waits; none at the end."""
        if self._updates < self._step_of(self._backwards):
            return (Due(self._updates, Update()),)
        if self._held == self._limit or (self._ended and self._forwards == self._known):
            return () if not self._held else (self._next_backward(),)
        forward = self._next_forward()
        ends_step = self._backwards + 1 in self._stops
        return (forward, self._next_backward()) if self._held and not ends_step else (forward,)

    def take(self, due: Due) -> None:
        """Note that one of the choices is done; ``Learn`` is by ``begin_step`` or ``end``."""
        self._forwards += isinstance(due.action, Forward)
        self._backwards += isinstance(due.action, Backward)
        self._updates += isinstance(due.action, Update)

    def updates_seen(self, step: int, microbatch: int, stage: int) -> int:
        """Of how many steps of the stream a forward at any stage sees the update."""
        held = most_in_flight(stage, self._n_stages, self._extra_in_flight)
        return self._step_of(max(0, self._start(step) + microbatch - held + 1))

    @property
    def _held(self) -> int:
        return self._forwards - self._backwards

    @property
    def _known(self) -> int:
        return self._start(len(self._stops))

    def _start(self, step: int) -> int:
        return self._stops[step - 1] if step else 0

    def _step_of(self, number: int) -> int:
        """How many steps end with the first ``number`` microbatches."""
        return bisect_right(self._stops, number)

    def _next_forward(self) -> Due:
        step = self._step_of(self._forwards)
        if self._forwards == self._known:
            return Due(step, Learn())
        return Due(step, Forward(self._forwards - self._start(step)))

    def _next_backward(self) -> Due:
        step = self._step_of(self._backwards)
        return Due(step, Backward(self._backwards - self._start(step)))


def older_versions(
    schedule_name: str,
    n_behind: int,
    n_microbatches: int,
    extra_in_flight: int,
    *,
    aggregates: bool = False,
) -> int:
    """The most versions of its weights that a stage keeps beside the newest.

    Microbatches in flight need some: right after an update it holds one less than at most, the
    oldest of which began so many steps ago. The mean of versions needs one for each stage behind,
    which may be others.

    >>> [older_versions("async-1f1b", n_behind, 2, 0) for n_behind in range(5)]
    [0, 1, 1, 2, 2]
    """
    if is_flushed(schedule_name):
        return 0
    held = most_in_flight(0, n_behind + 1, extra_in_flight)
    return -(-(held - 1) // n_microbatches) + n_behind * aggregates
