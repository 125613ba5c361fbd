"""``async-1f1b`` on a virtual clock once more, from the rules, without the package's schedule.

At every moment at which anything has ended or arrived, every idle stage looks at what it has:

    its oldest step complete                 -> update
    holds its most, or nothing is left       -> the next backward, once its gradient is here
    the next forward's inputs are here       -> forward
    the next backward ends no step, is here  -> backward
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.plan import Costs, Plan

Row = tuple[str, str, int, int | None, float, float]
"""Device, kind, step, microbatch, start and stop."""


@dataclass
class _Link:
    seconds: float
    latency: float
    free_at: float = 0.0
    arrivals: list[float] = field(default_factory=list)

    def send(self, ready_at: float) -> None:
        self.free_at = max(self.free_at, ready_at) + self.seconds
        self.arrivals.append(self.free_at + self.latency)

    def has(self, number: int, now: float) -> bool:
        return number < len(self.arrivals) and self.arrivals[number] <= now


@dataclass
class _Stage:
    device: str
    held: int
    forward: float
    backward: float
    update: float
    feed: _Link | None
    announced: list[float]
    there: _Link | None = None
    """To the stage behind; ``back`` is from it."""
    back: _Link | None = None
    free_at: float = 0.0
    f: int = 0
    b: int = 0
    u: int = 0


class Clockwork:
    """Run ``n_steps`` steps; ``rows`` is who computed what, and when."""

    def __init__(self, plan: Plan, costs: Costs, n_steps: int) -> None:
        self.n, self.n_steps = plan.n_microbatches, n_steps
        self.total = self.n * n_steps
        self.rows: list[Row] = []
        self.stages: list[_Stage] = []
        n_stages = len(plan.stages)
        for index, stage in enumerate(plan.stages):
            device, span = costs.device(stage.device), slice(stage.first_unit, stage.stop_unit)
            trained = sum(unit.trainable_bytes for unit in costs.units[span])
            units = {*range(span.start, span.stop)}
            used = [feed.size_bytes for feed in costs.feeds if units & {*feed.units}]
            link = costs.link(COORDINATOR_NAME, stage.device)
            feed = _Link(sum(used) / link.bytes_per_second, link.latency_seconds) if used else None
            held = 1 if index == n_stages - 1 else n_stages - index + plan.extra_in_flight
            seconds = sum(device.forward_seconds[span]), sum(device.backward_seconds[span])
            update = device.update_seconds_per_byte * trained
            announced = [] if costs.feeds else [0.0] * n_steps
            self.stages.append(_Stage(stage.device, held, *seconds, update, feed, announced))
        for front, behind in zip(self.stages, self.stages[1:], strict=False):
            cut = costs.cuts[plan.stages[self.stages.index(front)].stop_unit - 1]
            go, come = (
                costs.link(front.device, behind.device),
                costs.link(behind.device, front.device),
            )
            front.there = _Link(cut.forward_bytes / go.bytes_per_second, go.latency_seconds)
            front.back = _Link(cut.backward_bytes / come.bytes_per_second, come.latency_seconds)
        self.latencies = [
            costs.link(COORDINATOR_NAME, each.device).latency_seconds for each in self.stages
        ]
        self.result = costs.link(self.stages[-1].device, COORDINATOR_NAME).latency_seconds
        self.window = n_stages + plan.extra_in_flight + 2
        self.fed = 0
        self.told: list[float] = []
        self.moments = [0.0]
        if costs.feeds:
            self._announce(0.0)
            self._feed(0.0)
        self._run(is_fed=bool(costs.feeds))

    def update_moments(self) -> list[float]:
        first = self.stages[0].device
        return [stop for device, kind, *_, stop in self.rows if (device, kind) == (first, "update")]

    def _run(self, *, is_fed: bool) -> None:
        now = -1.0
        while any(stage.u < self.n_steps for stage in self.stages):
            now = min(moment for moment in self.moments if moment > now)
            if is_fed:
                self._feed(now)
            while any(self._look(index, now) for index in range(len(self.stages))):
                continue

    def _announce(self, now: float) -> None:
        for stage, latency in zip(self.stages, self.latencies, strict=True):
            stage.announced.append(now + latency)
            self.moments.append(now + latency)

    def _feed(self, now: float) -> None:
        """Send what the window lets; the next step is announced behind the last of this one."""
        here = sum(moment <= now for moment in self.told)
        while self.fed < min(self.total, here + self.window):
            for stage in self.stages:
                if stage.feed is not None:
                    stage.feed.send(now)
                    self.moments.append(stage.feed.arrivals[-1])
            self.fed += 1
            if self.fed % self.n == 0 and self.fed < self.total:
                self._announce(now)

    def _look(self, index: int, now: float) -> bool:
        """Whether a stage begins something now."""
        stage = self.stages[index]
        if stage.free_at > now or stage.u == self.n_steps:
            return False
        if stage.b // self.n > stage.u:
            self._do(stage, "update", stage.u, None, stage.update, now)
            stage.u += 1
            return True
        may_return = stage.f > stage.b and (stage.back is None or stage.back.has(stage.b, now))
        if stage.f - stage.b == stage.held or stage.f == self.total:
            if may_return:
                self._backward(index, stage, now)
            return may_return
        step = stage.f // self.n
        before = self.stages[index - 1].there if index else None
        announced = step < len(stage.announced) and stage.announced[step] <= now
        arrived = all(link is None or link.has(stage.f, now) for link in (before, stage.feed))
        if announced and arrived:
            self._forward(stage, now)
            return True
        if may_return and (stage.b + 1) % self.n:
            self._backward(index, stage, now)
            return True
        return False

    def _forward(self, stage: _Stage, now: float) -> None:
        step, microbatch = divmod(stage.f, self.n)
        self._do(stage, "forward", step, microbatch, stage.forward, now)
        stage.f += 1
        if stage.there is not None:
            stage.there.send(stage.free_at)
            self.moments.append(stage.there.arrivals[-1])
        else:
            self.told.append(stage.free_at + self.result)
            self.moments.append(self.told[-1])

    def _backward(self, index: int, stage: _Stage, now: float) -> None:
        step, microbatch = divmod(stage.b, self.n)
        self._do(stage, "backward", step, microbatch, stage.backward, now)
        stage.b += 1
        link = self.stages[index - 1].back if index else None
        if link is not None:
            link.send(stage.free_at)
            self.moments.append(link.arrivals[-1])

    def _do(
        self, stage: _Stage, kind: str, step: int, microbatch: int | None, took: float, now: float
    ) -> None:
        stage.free_at = now + took
        self.rows.append((stage.device, kind, step, microbatch, now, stage.free_at))
        self.moments.append(stage.free_at)
