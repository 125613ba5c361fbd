"""Which plan is best by what is believed of the devices, and whether it is worth a change.

Knows what was measured, before and while they serve; asks no device and moves nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from edgeweave.core.clock import Clock
from edgeweave.plan import (
    Caution,
    Costs,
    Departure,
    DeviceCosts,
    Link,
    ServingPlan,
    ServingWatch,
    repredicted,
    serving_plan,
)
from edgeweave.serving.options import ServeOptions

__all__ = ["Planner"]

_WORTH_A_SWITCH = 0.97
"""A plan with a device that came is taken if it is better than the one in use by more than 3 %."""
_CAUTION = Caution()
"""Of a device that is slower or faster than it was measured, as training has it."""
_DOUBTED_SECONDS = 60.0
"""How long a device that got slower, and is not used, is left alone until it is measured again."""


class Planner:
    """Not safe from several threads."""

    def __init__(
        self,
        costs: Costs,
        options: ServeOptions,
        *,
        result_bytes: int,
        batch_size: int,
        clock: Clock,
    ) -> None:
        self._options = options
        self._result_bytes = result_bytes
        self._batch_size = batch_size
        self._clock = clock
        self._watch = ServingWatch(costs, caution=_CAUTION)
        self._doubted: dict[str, float] = {}
        """Those that got slower, and when to measure them again unless they serve."""

    @property
    def costs(self) -> Costs:
        """As they are believed to be now."""
        return self._watch.costs

    def knows(self, device: str) -> bool:
        """Whether a device was measured."""
        return device in {each.device for each in self._watch.costs.devices}

    def join(self, device: DeviceCosts, links: Mapping[tuple[str, str], Link]) -> None:
        """A device was measured."""
        self._doubted.pop(device.device, None)
        self._watch.join(device, links)

    def best(self, devices: Collection[str]) -> ServingPlan | None:
        """The best plan for these; None if nothing is known of any, ``PlanError`` if none fits."""
        costs = self._watch.costs
        known = {each.device for each in costs.devices}.intersection(devices)
        if not known:
            return None
        return serving_plan(
            costs,
            batch_size=self._batch_size,
            result_bytes=self._result_bytes,
            objective=self._options.objective,
            devices=known,
            use=self._options.use,
        )

    def take_up(self, plan: ServingPlan, *, departed: bool) -> None:
        """A plan is in use from now on; ``departed``: because a device got slower or faster."""
        self._watch.take_up(plan, departed=departed)

    def observe(self, seconds: Mapping[str, float]) -> tuple[Departure, ...]:
        """What requests took on devices lately; who has left what was believed of it."""
        found = self._watch.observe(seconds)
        for each in found:
            if each.ratio > 1:
                self._doubted[each.device] = self._clock.now() + _DOUBTED_SECONDS
            else:
                self._doubted.pop(each.device, None)
        return found

    def due(self, used: Collection[str]) -> list[str]:
        """Devices that got slower, are not used since, and may have recovered: measure them."""
        now = self._clock.now()
        due = [d for d, moment in self._doubted.items() if moment <= now and d not in used]
        for device in due:
            self._doubted[device] = now + _DOUBTED_SECONDS
        return due

    def is_worth(self, plan: ServingPlan, old: ServingPlan, *, departed: bool) -> bool:
        """Whether to serve by ``plan`` instead, by what ``old`` is believed to take now."""
        if self._options.use == "all" and len(plan.stages) != len(old.stages):
            return len(plan.stages) > len(old.stages)
        share = 1 - _CAUTION.least_gain if departed else _WORTH_A_SWITCH
        now = repredicted(old, self._watch.costs, result_bytes=self._result_bytes)
        if self._options.objective == "latency":
            return plan.latency_seconds < share * now.latency_seconds
        return plan.period_seconds < share * now.period_seconds
