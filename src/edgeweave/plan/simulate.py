"""Run a plan on a virtual clock: when does each device compute, send and wait?

The actions come from the same schedule generators that the devices run. A device executes them in
order; ``Forward`` waits for the output of the stage before, ``Backward`` for the gradient from the
stage behind. Sending goes on beside computing, and a link carries one message at a time in each
direction::

    device 0   [ F0 ][ F1 ][ F2 ]                    [ B0 ]
                     \\     \\                         /
    link 0->1         [==0==][==1==][==2==]          /      busy for bytes / rate
                             \\                      /
    device 1                  ..[ F0 ][ B0 ]       /        there after the latency too
                                            \\     /
    link 1->0                                [==0==]

A device begins its next step when its own ``Update`` is done: inputs are prefetched and nobody
waits for all. Not modelled: ``Reduce``, coding, and devices that slow each other down.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from edgeweave.core.errors import ConfigError
from edgeweave.plan.costs import Costs, Crossing, StageSeconds, crossings, stage_seconds
from edgeweave.plan.schedule import Action, Backward, Forward, actions
from edgeweave.plan.stages import Plan

__all__ = ["Event", "Timeline", "simulate", "with_simulated_step"]

Kind = Literal["forward", "backward", "update", "send"]
_Key = tuple[Kind, int, int | None]
_Task = tuple[Kind, int, int | None, float]
_Row = tuple[str, int, Kind, int, int | None, float, float, str | None]


@dataclass(frozen=True, slots=True)
class Event:
    """A device computes, or the link from it to ``receiver`` carries a message.

    A send stops when the link is free again; the message is there one latency later. ``kind`` says
    nothing about a send's direction, ``receiver`` does.
    """

    device: str
    stage: int
    kind: Kind
    step: int
    microbatch: int | None
    start_seconds: float
    stop_seconds: float
    receiver: str | None = None


@dataclass(frozen=True, slots=True)
class Timeline:
    """What ``simulate`` saw, in order of time.

    ``step_seconds`` is the time between the last two updates of the first stage, the device at
    which a step begins and, but for slow optimizers, ends. With one step it is the time until its
    only update.
    """

    events: tuple[Event, ...]
    devices: tuple[str, ...]
    n_steps: int
    step_seconds: float

    @property
    def stop_seconds(self) -> float:
        """When everything is done."""
        return max(event.stop_seconds for event in self.events)

    @property
    def bubble(self) -> float:
        """The share of a step in which the devices of the plan wait, on average."""
        return sum(self.idle_share(device) for device in self.devices) / len(self.devices)

    def busy_seconds(self, device: str) -> float:
        """How long a device computes in all steps together; sending is not computing."""
        return sum(
            event.stop_seconds - event.start_seconds
            for event in self.events
            if event.device == device and event.kind != "send"
        )

    def idle_share(self, device: str) -> float:
        """The share of a step in which a device waits; 0 where nothing takes any time."""
        if self.step_seconds == 0:
            return 0.0
        return max(0.0, 1 - self.busy_seconds(device) / self.n_steps / self.step_seconds)


def simulate(plan: Plan, costs: Costs, *, n_steps: int = 2) -> Timeline:
    """Predict the timeline of ``n_steps`` steps from an empty pipeline.

    Times come from ``costs``, the plan says who does what: an old plan can be looked at with newer
    costs.
    """
    if n_steps < 1:
        raise ConfigError(f"n_steps must be positive (got {n_steps}). Simulate at least one.")
    workers = _run(plan, costs, n_steps)
    rows = sorted((row for worker in workers for row in worker.rows), key=_row_order)
    return Timeline(
        events=tuple(Event(*row) for row in rows),
        devices=plan.devices,
        n_steps=n_steps,
        step_seconds=_last_interval(workers[0].update_stops),
    )


def with_simulated_step(plan: Plan, costs: Costs) -> Plan:
    """The plan with the ``step_seconds`` that ``simulate`` finds, for those who need no event."""
    step_seconds = _last_interval(_run(plan, costs, n_steps=2)[0].update_stops)
    return replace(plan, step_seconds=step_seconds)


class _Wire:
    """One direction between neighbours, which carries a message at a time."""

    def __init__(self, crossing: Crossing, receiver: _Worker) -> None:
        self.receiver = receiver
        self._occupied_seconds = crossing.occupied_seconds
        self._latency_seconds = crossing.latency_seconds
        self._free_at = 0.0

    def carry(self, key: _Key, ready_at: float) -> tuple[float, float]:
        start = max(ready_at, self._free_at)
        self._free_at = start + self._occupied_seconds
        self.receiver.arrivals[key] = self._free_at + self._latency_seconds
        return start, self._free_at


class _Worker:
    """One stage's device: its tasks in order, and how far it is."""

    def __init__(self, stage: int, device: str, tasks: list[_Task]) -> None:
        self.arrivals: dict[_Key, float] = {}
        self.rows: list[_Row] = []
        self.update_stops: list[float] = []
        self.wires: dict[Kind, _Wire] = {}
        self.waits_for: set[Kind] = set()
        self._stage = stage
        self.device = device
        self._tasks = tasks
        self._position = 0
        self._now = 0.0

    @property
    def done(self) -> bool:
        return self._position == len(self._tasks)

    def advance(self) -> bool:
        """Compute until something is missing; say whether there was anything to compute."""
        began_at = self._position
        while not self.done:
            kind, step, microbatch, seconds = self._tasks[self._position]
            start = self._now
            if kind in self.waits_for:
                arrival = self.arrivals.pop((kind, step, microbatch), None)
                if arrival is None:
                    break
                start = max(start, arrival)
            self._now = stop = start + seconds
            self.rows.append((self.device, self._stage, kind, step, microbatch, start, stop, None))
            self._finish(kind, step, microbatch)
            self._position += 1
        return self._position > began_at

    def _finish(self, kind: Kind, step: int, microbatch: int | None) -> None:
        wire = self.wires.get(kind)
        if wire is not None:
            start, stop = wire.carry((kind, step, microbatch), self._now)
            receiver = wire.receiver.device
            self.rows.append(
                (self.device, self._stage, "send", step, microbatch, start, stop, receiver)
            )
        elif kind == "update":
            self.update_stops.append(self._now)


def _run(plan: Plan, costs: Costs, n_steps: int) -> list[_Worker]:
    workers = [
        _Worker(index, stage.device, _tasks(plan, costs, index, n_steps))
        for index, stage in enumerate(plan.stages)
    ]
    for (front, behind), stage in zip(pairwise(workers), plan.stages, strict=False):
        _connect(front, behind, costs, cut=stage.stop_unit - 1)
    there_and_back = [*workers, *reversed(workers)]
    while sum(worker.advance() for worker in there_and_back):
        pass
    assert all(worker.done for worker in workers), "the schedule waits for itself"
    return workers


def _connect(front: _Worker, behind: _Worker, costs: Costs, *, cut: int) -> None:
    """What the front's forward makes the one behind waits for, and the other way round."""
    there, back = crossings(costs, front.device, behind.device, cut)
    front.wires["forward"] = _Wire(there, behind)
    behind.wires["backward"] = _Wire(back, front)
    behind.waits_for.add("forward")
    front.waits_for.add("backward")


def _tasks(plan: Plan, costs: Costs, index: int, n_steps: int) -> list[_Task]:
    stage = plan.stages[index]
    seconds = stage_seconds(costs, stage.device, stage.first_unit, stage.stop_unit)
    order = list(
        actions(
            plan.schedule,
            index,
            len(plan.stages),
            plan.n_microbatches,
            extra_in_flight=plan.extra_in_flight,
        )
    )
    return [_task(action, step, seconds) for step in range(n_steps) for action in order]


def _task(action: Action, step: int, seconds: StageSeconds) -> _Task:
    if isinstance(action, Forward):
        return ("forward", step, action.microbatch, seconds.forward)
    if isinstance(action, Backward):
        return ("backward", step, action.microbatch, seconds.backward)
    return ("update", step, None, seconds.update)


def _row_order(row: _Row) -> tuple[float, int, float]:
    return row[5], row[1], row[6]


def _last_interval(moments: list[float]) -> float:
    return moments[-1] - moments[-2] if len(moments) > 1 else moments[-1]
