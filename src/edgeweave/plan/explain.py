"""Why a plan is as it is: what limits it, what each device adds, and who was left out.

Every claim is another plan, made and simulated: the fleet without a device, the plan with one more,
each device alone. That costs a partition per device.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from edgeweave.core.errors import PlanError
from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.core.units import format_bytes, format_seconds
from edgeweave.plan.costs import (
    Costs,
    feeding,
    stage_seconds,
)
from edgeweave.plan.partition import partition
from edgeweave.plan.proposals import MAX_DEVICES
from edgeweave.plan.routes import routes
from edgeweave.plan.simulate import Timeline, simulate
from edgeweave.plan.splits import Pins
from edgeweave.plan.stages import Plan, Stage

__all__ = ["DeviceShare", "Explanation", "LeftOut", "explain"]


@dataclass(frozen=True, slots=True)
class DeviceShare:
    """What one device does in a step, and the step of the best plan without it.

    ``step_seconds_without`` is ``None`` if there is no plan without it.
    """

    device: str
    first_unit: int
    stop_unit: int
    units_share: float
    compute_seconds: float
    idle_share: float
    memory_bytes: int
    memory_limit_bytes: int | None
    step_seconds_without: float | None

    def line(self) -> str:
        """One sentence for a person."""
        limit = self.memory_limit_bytes
        memory = format_bytes(self.memory_bytes)
        memory += ", no limit" if limit is None else f" of {format_bytes(limit)}"
        without = self.step_seconds_without
        adds = (
            "there is no plan without it"
            if without is None
            else f"without it a step takes {format_seconds(without)}"
        )
        return (
            f"{self.device} holds units {self.first_unit} to {self.stop_unit - 1} "
            f"({_percent(self.units_share)}): computes {format_seconds(self.compute_seconds)} a "
            f"step, idle {_percent(self.idle_share)}, memory {memory}; {adds}."
        )


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A device that the plan does not use, and the step of the best plan that adds it.

    Where that makes more than ``MAX_DEVICES``, it is the best plan that may use it beside them.
    ``slowdown`` is that step relative to the present one, minus one: 0.12 is 12 % slower. Both are
    ``None`` if no plan uses it beside the others.
    """

    device: str
    step_seconds_with: float | None
    slowdown: float | None

    def line(self) -> str:
        """One sentence for a person."""
        if self.slowdown is None:
            return f"{self.device} cannot be added to these devices, left out."
        if self.slowdown >= 0.005:
            return f"{self.device} would slow you by {_percent(self.slowdown)}, left out."
        if self.slowdown <= -0.005:
            gain = _percent(-self.slowdown)
            return f"{self.device} would shorten a step by {gain}, but this plan leaves it out."
        return f"{self.device} would change nothing, left out."


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answers about one plan, as plain data.

    ``bottleneck`` is a device (``pi-3``) or one direction of a link (``pi-1 -> pi-2``,
    ``coordinator -> pi-1``), and ``bottleneck_seconds`` what it takes for each microbatch.
    """

    n_microbatches: int
    step_seconds: float
    bottleneck: str
    bottleneck_kind: Literal["device", "link"]
    bottleneck_seconds: float
    devices: tuple[DeviceShare, ...]
    left_out: tuple[LeftOut, ...]
    best_single_device: str | None
    best_single_seconds: float | None
    direct: tuple[str, ...] = ()
    """Ways past stages, ``pi-1 -> pi-3 (2.0 MiB)``: what goes there for each microbatch."""

    @property
    def speedup(self) -> float | None:
        """How many times as fast as the best single device; ``None`` if none can do it alone."""
        if self.best_single_seconds is None or self.step_seconds == 0:
            return None
        return self.best_single_seconds / self.step_seconds

    def lines(self) -> tuple[str, ...]:
        """Sentences for a person, the most important first."""
        first = (
            f"A step of {self.n_microbatches} microbatches takes "
            f"{format_seconds(self.step_seconds)}; the bottleneck is {self._bottleneck()} with "
            f"{format_seconds(self.bottleneck_seconds)} for each microbatch."
        )
        shares = (share.line() for share in self.devices)
        left_out = (device.line() for device in self.left_out)
        return (first, self._single_line(), *self._direct_lines(), *shares, *left_out)

    def _direct_lines(self) -> tuple[str, ...]:
        if not self.direct:
            return ()
        return (f"Skip connections go past stages that do not use them: {', '.join(self.direct)}.",)

    def _bottleneck(self) -> str:
        if self.bottleneck_kind == "device":
            return self.bottleneck
        source, _, target = self.bottleneck.partition(" -> ")
        source = f"the {source}" if source == COORDINATOR_NAME else source
        return f"the link from {source} to {target}"

    def _single_line(self) -> str:
        if self.best_single_seconds is None:
            return "No device can do it alone: the model does not fit."
        alone = f"{self.best_single_device} alone takes {format_seconds(self.best_single_seconds)}"
        if len(self.devices) == 1 and self.devices[0].device == self.best_single_device:
            return f"{alone}; that is this plan."
        if self.speedup is None or 0.995 <= self.speedup <= 1.005:
            return f"{alone}; this plan takes as long."
        if self.speedup > 1:
            return f"{alone}; this plan is {self.speedup:.2f} times as fast."
        return f"{alone}; this plan is SLOWER, {1 / self.speedup:.2f} times as long."


def explain(
    plan: Plan, costs: Costs, *, pin_first: str | None = None, pin_last: str | None = None
) -> Explanation:
    """Compare the plan with what could be done instead, under the same schedule and costs.

    ``pin_first`` and ``pin_last`` must be what the plan was made with, so that the alternatives
    keep to them. Steps are compared, whatever the plan's objective was.
    """
    timeline = simulate(plan, costs)
    alternatives = _Alternatives(plan, costs, Pins(pin_first, pin_last))
    seconds, kind, bottleneck = _bottleneck(plan, costs)
    single_seconds, single = alternatives.best_single()
    return Explanation(
        n_microbatches=plan.n_microbatches,
        step_seconds=timeline.step_seconds,
        bottleneck=bottleneck,
        bottleneck_kind=kind,
        bottleneck_seconds=seconds,
        devices=tuple(_share(stage, costs, timeline, alternatives) for stage in plan.stages),
        left_out=tuple(
            _left_out(device.device, timeline.step_seconds, alternatives)
            for device in costs.devices
            if device.device not in plan.devices
        ),
        best_single_device=single,
        best_single_seconds=single_seconds,
        direct=tuple(
            f"{route.there.src} -> {route.there.dst} ({format_bytes(route.there.size_bytes)})"
            for route in routes(costs, plan.devices, plan.bounds, plan.skips)
            if route.is_direct
        ),
    )


class _Alternatives:
    """Steps of other plans for the same work; ``None`` where there is no such plan."""

    def __init__(self, plan: Plan, costs: Costs, pins: Pins) -> None:
        self._plan = plan
        self._costs = costs
        self._pins = pins
        self._names = [device.device for device in costs.devices]

    def without(self, device: str) -> float | None:
        others = [name for name in self._names if name != device]
        return self._step_seconds(others, use="fastest")

    def with_added(self, device: str) -> float | None:
        devices = [*self._plan.devices, device]
        return self._step_seconds(devices, use="all" if len(devices) <= MAX_DEVICES else "fastest")

    def best_single(self) -> tuple[float, str] | tuple[None, None]:
        steps = [(self._step_seconds([name], use="all"), name) for name in self._names]
        possible = [(seconds, name) for seconds, name in steps if seconds is not None]
        return min(possible, key=lambda pair: pair[0], default=(None, None))

    def _step_seconds(
        self, devices: Collection[str], *, use: Literal["fastest", "all"]
    ) -> float | None:
        if not devices or not {*self._pins.names} <= {*devices}:
            return None
        try:
            other = partition(
                self._costs,
                schedule=self._plan.schedule,
                n_microbatches=self._plan.n_microbatches,
                extra_in_flight=self._plan.extra_in_flight,
                pin_first=self._pins.first,
                pin_last=self._pins.last,
                devices=devices,
                use=use,
            )
        except PlanError:
            return None
        return other.step_seconds


def _bottleneck(plan: Plan, costs: Costs) -> tuple[float, Literal["device", "link"], str]:
    found: list[tuple[float, Literal["device", "link"], str]] = []
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
    stage: Stage, costs: Costs, timeline: Timeline, alternatives: _Alternatives
) -> DeviceShare:
    return DeviceShare(
        device=stage.device,
        first_unit=stage.first_unit,
        stop_unit=stage.stop_unit,
        units_share=(stage.stop_unit - stage.first_unit) / len(costs.units),
        compute_seconds=timeline.busy_seconds(stage.device) / timeline.n_steps,
        idle_share=timeline.idle_share(stage.device),
        memory_bytes=stage.memory_bytes,
        memory_limit_bytes=costs.device(stage.device).memory_limit_bytes,
        step_seconds_without=alternatives.without(stage.device),
    )


def _left_out(device: str, step_seconds: float, alternatives: _Alternatives) -> LeftOut:
    seconds = alternatives.with_added(device)
    slowdown = seconds / step_seconds - 1 if seconds is not None and step_seconds > 0 else None
    return LeftOut(device, seconds, slowdown)


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"
