"""The order in which a stage computes: pure generators that the device and the simulation both run.

A schedule knows its place (stage, number of stages) and the number of microbatches, and nothing of
time: whoever runs it waits where an action needs something that has not come yet. Backward runs in
ascending order of microbatches in every schedule, because gradients add up in that order in the
run that is not split. GPipe: arXiv:1811.06965; 1F1B with flush: PipeDream-Flush, arXiv:2006.09503.

A device keeps to the order while everything comes in time; where the next forward's input is late,
``Agenda`` lets it do a backward that could follow anyway. No number changes by that, and no more
microbatches are held. The simulation does the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Protocol

from edgeweave.core.errors import ConfigError

__all__ = [
    "ASYNCHRONOUS",
    "SCHEDULES",
    "SCHEDULE_NAMES",
    "Action",
    "Agenda",
    "Backward",
    "Forward",
    "Reduce",
    "Schedule",
    "Update",
    "actions",
    "check_weight_aggregation",
    "gpipe",
    "in_flight",
    "is_flushed",
    "may_swap",
    "most_in_flight",
    "one_f_one_b",
    "window",
]

_SPARE_WINDOW = 2


@dataclass(frozen=True, slots=True)
class Forward:
    """Run the stage on a microbatch and hand the result on."""

    microbatch: int


@dataclass(frozen=True, slots=True)
class Backward:
    """Run the stage's backward pass of a microbatch, add up gradients, hand the input's on."""

    microbatch: int


@dataclass(frozen=True, slots=True)
class Reduce:
    """Wait for what other stages know of the gradients: tied parameters, the global norm."""


@dataclass(frozen=True, slots=True)
class Update:
    """Let the optimizer step: the last action of a step."""


Action = Forward | Backward | Reduce | Update


class Schedule(Protocol):
    """A generator of one stage's actions in one step."""

    def __call__(
        self,
        stage: int,
        n_stages: int,
        n_microbatches: int,
        *,
        extra_in_flight: int = 0,
        reduce: bool = False,
    ) -> Iterator[Action]: ...


def gpipe(
    stage: int,
    n_stages: int,
    n_microbatches: int,
    *,
    extra_in_flight: int = 0,
    reduce: bool = False,
) -> Iterator[Action]:
    """All forwards, then all backwards; every microbatch is in flight, whatever is asked for.

    ::

        stage 0   F0 F1 F2 F3 .  .  .  .  B0 B1 B2 B3 U
        stage 1      F0 F1 F2 F3 .  .  B0 B1 B2 B3 U        . = idle
        stage 2         F0 F1 F2 F3 B0 B1 B2 B3 U
    """
    return _bounded(n_microbatches, n_microbatches, reduce=reduce)


def one_f_one_b(
    stage: int,
    n_stages: int,
    n_microbatches: int,
    *,
    extra_in_flight: int = 0,
    reduce: bool = False,
) -> Iterator[Action]:
    """One forward, one backward, and a flush at the end of the step.

    ::

        stage 0   F0 F1 F2 .  .  B0 F3 B1 .  B2 .  B3 U
        stage 1      F0 F1 .  B0 F2 B1 F3 B2 .  B3 U        . = idle
        stage 2         F0 B0 F1 B1 F2 B2 F3 B3 U

    A stage holds at most ``n_stages - stage + extra_in_flight`` microbatches: enough to have work
    while the first of them travels to the end and back. More of them hide the time on slow links
    and cost memory. The last stage waits for nobody's gradient and always holds one.
    """
    limit = most_in_flight(stage, n_stages, extra_in_flight)
    return _bounded(min(limit, n_microbatches), n_microbatches, reduce=reduce)


SCHEDULES: Mapping[str, Schedule] = MappingProxyType({"1f1b": one_f_one_b, "gpipe": gpipe})
"""The schedules that end with every step, by the name that a plan and the command line use."""

ASYNCHRONOUS = "async-1f1b"
"""The schedule that goes on from step to step: ``stream`` has its actions."""

SCHEDULE_NAMES = (*SCHEDULES, ASYNCHRONOUS)


def is_flushed(schedule_name: str) -> bool:
    """Whether every microbatch of a step is back before the first of the next one begins."""
    return schedule_name != ASYNCHRONOUS


def check_weight_aggregation(every: int | None, schedule_name: str) -> None:
    """``ConfigError`` unless weights can be averaged every so many updates under a schedule."""
    if every is None:
        return
    if every < 1:
        raise ConfigError(
            f"weight_aggregation is a number of updates, 1 or more (got {every}). Leave it out."
        )
    if is_flushed(schedule_name):
        raise ConfigError(
            f"weight_aggregation goes with the schedule {ASYNCHRONOUS!r} (got {schedule_name!r}, "
            "which has one version of the weights). Leave it out, or take that schedule."
        )


def most_in_flight(stage: int, n_stages: int, extra_in_flight: int) -> int:
    """What a stage holds under 1F1B where a step has microbatches enough.

    >>> [most_in_flight(stage, 3, 0) for stage in range(3)]
    [3, 2, 1]
    """
    return 1 if stage == n_stages - 1 else n_stages - stage + extra_in_flight


def actions(
    schedule_name: str,
    stage: int,
    n_stages: int,
    n_microbatches: int,
    *,
    extra_in_flight: int = 0,
    reduce: bool = False,
) -> Iterator[Action]:
    """One stage's actions in one step, in order.

    >>> from itertools import islice
    >>> list(islice(actions("1f1b", 0, 2, 4), 3))
    [Forward(microbatch=0), Forward(microbatch=1), Backward(microbatch=0)]
    """
    if schedule_name not in SCHEDULES:
        raise ConfigError(
            f"unknown schedule {schedule_name!r} (known: {', '.join(SCHEDULES)}). Choose one."
        )
    if not 0 <= stage < n_stages or n_microbatches < 1 or extra_in_flight < 0:
        raise ConfigError(
            "a schedule needs 0 <= stage < n_stages, n_microbatches >= 1, extra_in_flight >= 0 "
            f"(got {stage}, {n_stages}, {n_microbatches}, {extra_in_flight}). Correct them."
        )
    schedule = SCHEDULES[schedule_name]
    return schedule(stage, n_stages, n_microbatches, extra_in_flight=extra_in_flight, reduce=reduce)


def window(n_stages: int, extra_in_flight: int) -> int:
    """The most microbatches that the coordinator has sent and not seen the result of.

    What the first stage holds at most, and some on their way to it.

    >>> window(3, 0)
    5
    """
    return n_stages + extra_in_flight + _SPARE_WINDOW


@lru_cache(maxsize=1024)
def in_flight(
    schedule_name: str, stage: int, n_stages: int, n_microbatches: int, extra_in_flight: int
) -> int:
    """The most microbatches whose activations a stage holds at the same time.

    >>> in_flight("1f1b", 0, 3, 8, 0), in_flight("gpipe", 0, 3, 8, 0)
    (3, 8)
    >>> in_flight("async-1f1b", 0, 3, 1, 0)  # of three steps
    3
    """
    if not is_flushed(schedule_name):
        return most_in_flight(stage, n_stages, extra_in_flight)
    held = peak = 0
    for action in actions(
        schedule_name, stage, n_stages, n_microbatches, extra_in_flight=extra_in_flight
    ):
        held += isinstance(action, Forward) - isinstance(action, Backward)
        peak = max(peak, held)
    return peak


def may_swap(schedule_name: str) -> bool:
    """Whether a device may leave a schedule's order as ``Agenda`` allows: GPipe is its order."""
    return schedule_name == "1f1b"


class Agenda:
    """What one stage may do next in one step, for a device that need not wait for what is late.

    >>> agenda = Agenda(one_f_one_b(0, 2, 3), may_swap=True)
    >>> for _ in range(3):
    ...     agenda.take(agenda.choices()[0])
    >>> agenda.choices()
    (Forward(microbatch=2), Backward(microbatch=1))
    """

    def __init__(self, order: Iterable[Action], *, may_swap: bool) -> None:
        self._order = tuple(order)
        self._position = 0
        self._may_swap = may_swap
        self._forwards_done = 0
        self._backwards_done = 0

    def choices(self) -> tuple[Action, ...]:
        """The next action of the order, and what may be done instead; none at the end.

        Instead of a forward: the next backward, if its forward is done. Never the other way round,
        which would hold more microbatches than the order does.
        """
        if self._position == len(self._order):
            return ()
        following = self._order[self._position]
        if (
            self._may_swap
            and isinstance(following, Forward)
            and self._backwards_done < self._forwards_done
        ):
            return following, Backward(self._backwards_done)
        return (following,)

    def take(self, action: Action) -> None:
        """Note that one of the choices is done."""
        self._forwards_done += isinstance(action, Forward)
        self._backwards_done += isinstance(action, Backward)
        if action == self._order[self._position]:
            self._position += 1
        while self._position < len(self._order):
            following = self._order[self._position]
            if not isinstance(following, Backward) or following.microbatch >= self._backwards_done:
                return
            self._position += 1


def _bounded(limit: int, n_microbatches: int, *, reduce: bool) -> Iterator[Action]:
    """Keep ``limit`` microbatches in flight for as long as there are new ones."""
    for microbatch in range(limit):
        yield Forward(microbatch)
    for microbatch in range(n_microbatches):
        yield Backward(microbatch)
        if microbatch + limit < n_microbatches:
            yield Forward(microbatch + limit)
    if reduce:
        yield Reduce()
    yield Update()
