"""Run a plan on a virtual clock: when does each device compute, send and wait?

The actions come from the same agendas that the devices run: ``Forward`` waits for the output of the
stage before, for values that go past stages (``routes``) and for what the coordinator feeds the
stage, ``Backward`` for the gradients of all it sent. Sending goes on beside computing, and a link
carries one message at a time in each direction::

    coordinator  [==0==][==1==]               [==2==]          a window of microbatches under way:
                       \\     \\              /       \\          the result of 0 lets 2 go
    device 0            [ F0 ][ F1 ]        /         [ F2 ]
                            \\     \\       /
    link 0->1                [==0==][==1==]                    busy for bytes / rate
                                  \\   /
    device 1                       [F0]...                     there after the latency too, and what
                                                               it waits for lost packets

A step begins when the coordinator has the last result of the one before; nobody waits for all
updates. Under ``async-1f1b`` the window reaches into the next step. Without feeds there is no
coordinator: a device begins its next step when its own update is done. Codecs of the plan work
beside computing and sending. Not modelled: ``Reduce``, the few bytes of results, what the
coordinator itself takes to load data, and devices that slow each other down.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from math import inf
from typing import Literal

from edgeweave.core.errors import ConfigError
from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.plan.coding import with_codecs
from edgeweave.plan.costs import (
    Costs,
    Crossing,
    feeding,
    stage_seconds,
)
from edgeweave.plan.routes import routes
from edgeweave.plan.schedule import (
    Action,
    Agenda,
    Backward,
    Forward,
    Update,
    actions,
    is_flushed,
    may_swap,
    window,
)
from edgeweave.plan.stages import Plan, steps_to_settle
from edgeweave.plan.stream import Learn, Stream

__all__ = ["Event", "Timeline", "simulate", "with_simulated_step"]

Kind = Literal["forward", "backward", "update", "send"]
_Key = tuple[str, int, int, int]
"""What a message is, of which stage, step and microbatch."""
_Row = tuple[str, int, Kind, int, int | None, float, float, str | None]
_KINDS: dict[type[Action], Kind] = {Forward: "forward", Backward: "backward", Update: "update"}


@dataclass(frozen=True, slots=True)
class Event:
    """A device computes, or the link from it to ``receiver`` carries a message.

    The coordinator, which only sends, is stage -1.

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

    ``step_seconds`` is the mean time between two updates of the first stage, the device at which a
    step begins and, but for slow optimizers, ends. With one step it is the time until its only
    update. Without a flush, steps that fill or drain the pipeline count only if there is no other.
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

    def transfer_seconds(self, device: str) -> float:
        """How long links carry what a device sends or gets, in all steps together."""
        return sum(
            event.stop_seconds - event.start_seconds
            for event in self.events
            if event.kind == "send" and device in (event.device, event.receiver)
        )

    def idle_share(self, device: str) -> float:
        """The share of a step in which a device waits; 0 where nothing takes any time."""
        if self.step_seconds == 0:
            return 0.0
        return max(0.0, 1 - self.busy_seconds(device) / self.n_steps / self.step_seconds)


def simulate(
    plan: Plan, costs: Costs, *, n_steps: int | None = None, seed: int | None = None
) -> Timeline:
    """Predict the timeline of ``n_steps`` steps from an empty pipeline.

    None are two, and without a flush three beside those that fill and drain the pipeline.

    Times come from ``costs``, the plan says who does what: an old plan can be looked at with newer
    costs. On links that lose, a message waits for lost packets as long as its size does on
    average; with a ``seed``, as chance has it. Chance takes longer: where streams meet, the latest
    counts. Ask for enough steps then.
    """
    if n_steps is None:
        n_steps = _usual_steps(plan)
    if n_steps < 1:
        raise ConfigError(f"n_steps must be positive (got {n_steps}). Simulate at least one.")
    run = _Run(plan, costs, n_steps, None if seed is None else random.Random(seed))
    return Timeline(
        events=tuple(Event(*row) for row in sorted(run.rows, key=_row_order)),
        devices=plan.devices,
        n_steps=n_steps,
        step_seconds=_mean_interval(run.update_stops, steps_to_settle(plan)),
    )


def with_simulated_step(plan: Plan, costs: Costs) -> Plan:
    """The plan with the ``step_seconds`` that ``simulate`` finds, for those who need no event."""
    run = _Run(plan, costs, _usual_steps(plan), None)
    step_seconds = _mean_interval(run.update_stops, steps_to_settle(plan))
    return replace(plan, step_seconds=step_seconds)


class _Wire:
    """A link, which carries a message at a time and hands them over in order."""

    def __init__(self, crossing: Crossing, chance: random.Random | None) -> None:
        self.receiver = crossing.dst
        self._crossing = crossing
        self._chance = chance
        self._occupied_seconds = crossing.occupied_seconds
        self._arrival_seconds = crossing.arrival_seconds
        self._free_at = 0.0
        self._last_arrival = 0.0

    def carry(self, ready_at: float) -> tuple[float, float, float]:
        """When a message begins to leave, has left, and is there."""
        start = max(ready_at, self._free_at)
        self._free_at = start + self._occupied_seconds
        arrival_seconds = self._arrival_seconds
        if self._chance is not None:
            arrival_seconds = self._crossing.drawn_arrival_seconds(self._chance.random())
        self._last_arrival = max(self._last_arrival, self._free_at + arrival_seconds)
        return start, self._free_at, self._last_arrival


class _Worker:
    """One stage's device: what it has, and what it does next."""

    def __init__(self, plan: Plan, costs: Costs, index: int, n_steps: int) -> None:
        stage = plan.stages[index]
        self.index = index
        self.device = stage.device
        self.free_at = 0.0
        self.step, self._n_steps = 0, n_steps
        self.begins: dict[int, float] = {}
        self.arrivals: dict[_Key, float] = {}
        self.feed: _Wire | None = None
        self.there: dict[int, _Wire] = {}
        self.back: dict[int, _Wire] = {}
        self._seconds = stage_seconds(costs, stage.device, stage.first_unit, stage.stop_unit)
        self._may_swap = may_swap(plan.schedule)
        name = plan.schedule if is_flushed(plan.schedule) else "1f1b"
        n, extra = plan.n_microbatches, plan.extra_in_flight
        self._order = tuple(actions(name, index, len(plan.stages), n, extra_in_flight=extra))
        self._agenda = Agenda(self._order, may_swap=self._may_swap)

    def take(self, now: float) -> tuple[int, Action, float] | None:
        """The step and action begun now, the seconds it takes; nothing if something is missing."""
        if self.begins.get(self.step, inf) > now:
            return None
        for action in self._agenda.choices():
            if self._may_begin(self.step, action, now):
                self._agenda.take(action)
                return self.step, action, self._seconds_of(action)
        return None

    def next_step(self) -> None:
        """An update is done."""
        self.step += 1
        self._agenda = Agenda(self._order, may_swap=self._may_swap)

    def _may_begin(self, step: int, action: Action, now: float) -> bool:
        return all(self.arrivals.get(key, inf) <= now for key in self._needs(step, action))

    def _needs(self, step: int, action: Action) -> list[_Key]:
        """The messages without which an action cannot begin."""
        if isinstance(action, Forward):
            fed: list[_Key] = [("feed", -1, step, action.microbatch)]
            sent: list[_Key] = [("there", s, step, action.microbatch) for s in self.back]
            return sent if self.feed is None else fed + sent
        if isinstance(action, Backward):
            return [("back", s, step, action.microbatch) for s in self.there]
        return []

    def _seconds_of(self, action: Action) -> float:
        if isinstance(action, Forward):
            return self._seconds.forward
        return self._seconds.backward if isinstance(action, Backward) else self._seconds.update


class _StreamWorker(_Worker):
    """The same without a flush."""

    def __init__(self, plan: Plan, costs: Costs, index: int, n_steps: int) -> None:
        super().__init__(plan, costs, index, n_steps)
        self._stream = Stream(index, len(plan.stages), extra_in_flight=plan.extra_in_flight)
        self._n_microbatches = plan.n_microbatches

    def take(self, now: float) -> tuple[int, Action, float] | None:
        for due in self._stream.choices():
            if not isinstance(due.action, Learn):
                if self._may_begin(due.step, due.action, now):
                    self._stream.take(due)
                    return due.step, due.action, self._seconds_of(due.action)
            elif due.step == self._n_steps:
                self._stream.end()
                return self.take(now)
            elif self.begins.get(due.step, inf) <= now:
                self._stream.begin_step(self._n_microbatches)
                return self.take(now)
        return None


class _Run:
    """Everybody's clock. ``rows`` are the events, by who began them; read them when it has run."""

    def __init__(
        self, plan: Plan, costs: Costs, n_steps: int, chance: random.Random | None
    ) -> None:
        costs = with_codecs(costs, plan.codecs)
        self.rows: list[_Row] = []
        self.update_stops: list[float] = []
        self._n_steps = n_steps
        self._n_microbatches = plan.n_microbatches
        self._is_flushed = is_flushed(plan.schedule)
        self._n_fed = self._n_told = 0
        kind = _Worker if self._is_flushed else _StreamWorker
        self._workers = [kind(plan, costs, index, n_steps) for index in range(len(plan.stages))]
        self._wakes: list[tuple[float, int]] = []
        for route in routes(costs, plan.devices, plan.bounds, plan.skips):
            self._workers[route.front].there[route.behind] = _Wire(route.there, chance)
            self._workers[route.behind].back[route.front] = _Wire(route.back, chance)
        for worker, stage in zip(self._workers, plan.stages, strict=True):
            fed = feeding(costs, stage.device, stage.first_unit, stage.stop_unit)
            worker.feed = None if fed is None else _Wire(fed, chance)
        self._is_fed = bool(costs.feeds)
        self._window = window(len(plan.stages), plan.extra_in_flight)
        self._begin_seconds = [
            costs.link(COORDINATOR_NAME, device).latency_seconds for device in plan.devices
        ]
        self._result_seconds = costs.link(plan.devices[-1], COORDINATOR_NAME).latency_seconds
        if self._is_fed:
            self._begin(0, 0.0)
        else:
            for worker in self._workers:
                worker.begins = dict.fromkeys(range(n_steps), 0.0)
                self._wake(worker, 0.0)
        self._run()

    def _run(self) -> None:
        while self._wakes:
            now, index = heappop(self._wakes)
            worker = self._workers[index]
            if worker.free_at <= now and (taken := worker.take(now)) is not None:
                self._compute(worker, *taken, now)
        done = all(worker.step == self._n_steps for worker in self._workers)
        assert done, "the schedule waits for itself"

    def _compute(
        self, worker: _Worker, step: int, action: Action, seconds: float, now: float
    ) -> None:
        worker.free_at = stop = now + seconds
        self._wake(worker, stop)
        microbatch = getattr(action, "microbatch", None)
        kind = _KINDS[type(action)]
        self.rows.append((worker.device, worker.index, kind, step, microbatch, now, stop, None))
        if microbatch is None:
            worker.next_step()
            if worker.index == 0:
                self.update_stops.append(stop)
        elif isinstance(action, Backward):
            for stage, wire in worker.back.items():
                key = ("back", worker.index, step, microbatch)
                self._send(worker, wire, self._workers[stage], key, stop)
        elif worker.there:
            for stage, wire in worker.there.items():
                key = ("there", worker.index, step, microbatch)
                self._send(worker, wire, self._workers[stage], key, stop)
        elif self._is_fed:
            self._result(step, microbatch, stop + self._result_seconds)

    def _begin(self, step: int, now: float) -> None:
        """The coordinator begins a step: it announces it, and fills its window."""
        self._announce(step, now)
        if not self._is_flushed:
            self._fill_window(now)
            return
        for microbatch in range(min(self._window, self._n_microbatches)):
            self._feed(step, microbatch, now)

    def _announce(self, step: int, now: float) -> None:
        for worker, seconds in zip(self._workers, self._begin_seconds, strict=True):
            worker.begins[step] = now + seconds
            self._wake(worker, now + seconds)

    def _fill_window(self, now: float) -> None:
        """Without a flush: microbatches of this step, then of the next, which is announced."""
        n_all = self._n_steps * self._n_microbatches
        while self._n_fed < min(n_all, self._n_told + self._window):
            step, microbatch = divmod(self._n_fed, self._n_microbatches)
            self._feed(step, microbatch, now)
            self._n_fed += 1
            if self._n_fed < n_all and microbatch + 1 == self._n_microbatches:
                self._announce(step + 1, now)

    def _result(self, step: int, microbatch: int, now: float) -> None:
        """The coordinator learns of a microbatch, and sends the one that takes its place."""
        if not self._is_flushed:
            self._n_told += 1
            self._fill_window(now)
            return
        if microbatch + self._window < self._n_microbatches:
            self._feed(step, microbatch + self._window, now)
        if microbatch + 1 == self._n_microbatches and step + 1 < self._n_steps:
            self._begin(step + 1, now)

    def _feed(self, step: int, microbatch: int, now: float) -> None:
        for worker in self._workers:
            if worker.feed is not None:
                self._send(None, worker.feed, worker, ("feed", -1, step, microbatch), now)

    def _send(
        self, sender: _Worker | None, wire: _Wire, receiver: _Worker, key: _Key, now: float
    ) -> None:
        start, stop, arrival = wire.carry(now)
        receiver.arrivals[key] = arrival
        self._wake(receiver, arrival)
        device, stage = (COORDINATOR_NAME, -1) if sender is None else (sender.device, sender.index)
        _, _, step, microbatch = key
        self.rows.append((device, stage, "send", step, microbatch, start, stop, wire.receiver))

    def _wake(self, worker: _Worker, at: float) -> None:
        """Let a worker look at this moment what it can do."""
        heappush(self._wakes, (at, worker.index))


def _row_order(row: _Row) -> tuple[float, int, float]:
    return row[5], row[1], row[6]


def _usual_steps(plan: Plan) -> int:
    return 2 if is_flushed(plan.schedule) else 2 * steps_to_settle(plan) + 3


def _mean_interval(moments: list[float], n_unsettled: int) -> float:
    if len(moments) > 2 * n_unsettled + 1:
        moments = moments[n_unsettled : len(moments) - n_unsettled]
    n_intervals = len(moments) - 1
    return (moments[-1] - moments[0]) / n_intervals if n_intervals else moments[0]
