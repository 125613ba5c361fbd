"""Why a plan is as it is: what limits it, what each device adds, and who was left out.

Every claim is another plan, made and simulated: the fleet without a device, the plan with one more,
each device alone. That costs a partition per device. Where times were predicted, every one of these
plans is simulated again under the same draws from what the devices may take.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Literal

from edgeweave.core.errors import PlanError
from edgeweave.core.units import format_bytes
from edgeweave.plan.coding import with_codecs
from edgeweave.plan.costs import (
    Costs,
    feeding,
    stage_seconds,
)
from edgeweave.plan.explanation import DeviceShare, Explanation, LeftOut
from edgeweave.plan.partition import partition
from edgeweave.plan.proposals import MAX_DEVICES
from edgeweave.plan.routes import routes
from edgeweave.plan.simulate import Timeline, simulate, with_simulated_step
from edgeweave.plan.splits import Pins
from edgeweave.plan.stages import Plan, Stage
from edgeweave.plan.uncertainty import Interval, drawn_costs

__all__ = ["explain"]

_DRAWS = 64


def explain(
    plan: Plan,
    costs: Costs,
    *,
    pin_first: str | None = None,
    pin_last: str | None = None,
    seed: int = 0,
) -> Explanation:
    """Compare the plan with what could be done instead, under the same schedule and costs.

    Alternatives hold as many microbatches in flight as suits them, up to as many as the plan does.
    ``pin_first`` and ``pin_last`` must be what the plan was made with, so that the alternatives
    keep to them. Steps are compared, whatever the plan's objective was. ``seed`` is that of the
    draws behind intervals, which there are where devices have a ``deviation``.
    """
    timeline = simulate(plan, costs)
    prospects = _Prospects(plan, costs, seed)
    alternatives = _Alternatives(plan, costs, Pins(pin_first, pin_last))
    seconds, kind, bottleneck = _bottleneck(plan, costs)
    single = alternatives.best_single()
    return Explanation(
        n_microbatches=plan.n_microbatches,
        step_seconds=timeline.step_seconds,
        bottleneck=bottleneck,
        bottleneck_kind=kind,
        bottleneck_seconds=seconds,
        devices=tuple(
            _share(stage, costs, timeline, alternatives, prospects) for stage in plan.stages
        ),
        left_out=tuple(
            _left_out(device.device, timeline.step_seconds, alternatives, prospects)
            for device in costs.devices
            if device.device not in plan.devices
        ),
        best_single_device=None if single is None else single.devices[0],
        best_single_seconds=None if single is None else single.step_seconds,
        step_interval=prospects.interval(lambda drawn: drawn.step_seconds),
        bottleneck_chance=prospects.chance_of_bottleneck(bottleneck),
        speedup_interval=prospects.relative_interval(single),
        direct=tuple(
            f"{route.there.src} -> {route.there.dst} ({format_bytes(route.there.size_bytes)})"
            for route in routes(costs, plan.devices, plan.bounds, plan.skips)
            if route.is_direct
        ),
        codecs=tuple(
            f"{codec.source} -> {codec.target} ({codec.bits} bits)" for codec in plan.codecs
        ),
    )


class _Alternatives:
    """Other plans for the same work; ``None`` where there is no such plan."""

    def __init__(self, plan: Plan, costs: Costs, pins: Pins) -> None:
        self._plan = plan
        self._costs = costs
        self._pins = pins
        self._names = [device.device for device in costs.devices]

    def without(self, device: str) -> Plan | None:
        others = [name for name in self._names if name != device]
        return self._best(others, use="fastest")

    def with_added(self, device: str) -> Plan | None:
        devices = [*self._plan.devices, device]
        return self._best(devices, use="all" if len(devices) <= MAX_DEVICES else "fastest")

    def best_single(self) -> Plan | None:
        alone = [self._best([name], use="all") for name in self._names]
        possible = [plan for plan in alone if plan is not None]
        return min(possible, key=lambda plan: plan.step_seconds, default=None)

    def _best(self, devices: Collection[str], *, use: Literal["fastest", "all"]) -> Plan | None:
        if not devices or not {*self._pins.names} <= {*devices}:
            return None
        try:
            return partition(
                self._costs,
                schedule=self._plan.schedule,
                weight_aggregation=self._plan.weight_aggregation,
                n_microbatches=self._plan.n_microbatches,
                extra_in_flight=range(self._plan.extra_in_flight + 1),
                pin_first=self._pins.first,
                pin_last=self._pins.last,
                devices=devices,
                use=use,
            )
        except PlanError:
            return None


class _Prospects:
    """What may become of the plan, drawn; nothing where everything was measured."""

    def __init__(self, plan: Plan, costs: Costs, seed: int) -> None:
        self._plan = plan
        self._costs = drawn_costs(costs, _DRAWS, seed=seed)
        self._timelines = [simulate(plan, drawn) for drawn in self._costs]

    def interval(self, figure: Callable[[Timeline], float]) -> Interval | None:
        """Where a figure of the plan's timeline lies."""
        return self._interval(map(figure, self._timelines))

    def relative_interval(self, other: Plan | None, *, less: float = 0.0) -> Interval | None:
        """Where the step of another plan lies relative to this one's, minus ``less``."""
        if other is None or not all(each.step_seconds for each in self._timelines):
            return None
        return self._interval(
            with_simulated_step(other, drawn).step_seconds / timeline.step_seconds - less
            for drawn, timeline in zip(self._costs, self._timelines, strict=True)
        )

    def chance_of_bottleneck(self, name: str) -> float | None:
        """The share of draws in which this is the bottleneck."""
        if not self._costs:
            return None
        found = [_bottleneck(self._plan, drawn)[2] for drawn in self._costs]
        return found.count(name) / len(found)

    def _interval(self, values: Iterable[float]) -> Interval | None:
        found = list(values)
        return Interval.of(found) if found else None


def _bottleneck(plan: Plan, costs: Costs) -> tuple[float, Literal["device", "link"], str]:
    found: list[tuple[float, Literal["device", "link"], str]] = []
    costs = with_codecs(costs, plan.codecs)
    for stage in plan.stages:
        seconds = stage_seconds(costs, stage.device, stage.first_unit, stage.stop_unit)
        found.append((seconds.microbatch, "device", stage.device))
        fed = feeding(costs, stage.device, stage.first_unit, stage.stop_unit)
        if fed is not None:
            found.append((fed.occupied_seconds, "link", f"{fed.src} -> {fed.dst}"))
    for route in routes(costs, plan.devices, plan.bounds, plan.skips):
        for way in (route.there, route.back):
            found.append((way.transfer_seconds, "link", f"{way.src} -> {way.dst}"))
    return max(found, key=lambda entry: entry[0])


def _share(
    stage: Stage,
    costs: Costs,
    timeline: Timeline,
    alternatives: _Alternatives,
    prospects: _Prospects,
) -> DeviceShare:
    device = stage.device
    without = alternatives.without(device)
    return DeviceShare(
        device=device,
        first_unit=stage.first_unit,
        stop_unit=stage.stop_unit,
        units_share=(stage.stop_unit - stage.first_unit) / len(costs.units),
        compute_seconds=_compute_seconds(timeline, device),
        transfer_seconds=timeline.transfer_seconds(device) / timeline.n_steps,
        idle_share=timeline.idle_share(device),
        memory_bytes=stage.memory_bytes,
        memory_limit_bytes=costs.device(device).memory_limit_bytes,
        step_seconds_without=None if without is None else without.step_seconds,
        slowdown_without=_slowdown(without, timeline.step_seconds),
        compute_interval=prospects.interval(lambda drawn: _compute_seconds(drawn, device)),
        idle_interval=prospects.interval(lambda drawn: drawn.idle_share(device)),
        slowdown_interval=prospects.relative_interval(without, less=1.0),
    )


def _compute_seconds(timeline: Timeline, device: str) -> float:
    """In one step."""
    return timeline.busy_seconds(device) / timeline.n_steps


def _left_out(
    device: str, step_seconds: float, alternatives: _Alternatives, prospects: _Prospects
) -> LeftOut:
    added = alternatives.with_added(device)
    return LeftOut(
        device,
        None if added is None else added.step_seconds,
        _slowdown(added, step_seconds),
        prospects.relative_interval(added, less=1.0),
    )


def _slowdown(other: Plan | None, step_seconds: float) -> float | None:
    return None if other is None or step_seconds == 0 else other.step_seconds / step_seconds - 1
