"""Whether the plan is still the right one: feeds what each step took to ``plan.Monitor``.

A change that is worth it is said and kept for the report. The run goes on with the plan it has,
because no weights move while it runs.
"""

from __future__ import annotations

import logging

from edgeweave.plan import Costs, Decision, DeviceCosts, Monitor, Plan, partition, taken_over
from edgeweave.train.run import RoundResult

__all__ = ["PlanWatch", "replanned"]

_log = logging.getLogger(__name__)


class PlanWatch:
    """Listens to the steps of one call of ``fit``; without a monitor, in vain."""

    def __init__(self, monitor: Monitor | None) -> None:
        self._monitor = monitor
        self._decisions: list[Decision] = []

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What was decided so far, to keep the plan or to change it."""
        return tuple(self._decisions)

    @property
    def costs(self) -> Costs | None:
        """The costs as they are believed to be now, if any are known."""
        return None if self._monitor is None else self._monitor.costs

    def devices(self) -> tuple[DeviceCosts, ...]:
        """The costs of all devices as they are believed to be now; none if nothing is known."""
        costs = self.costs
        return () if costs is None else costs.devices

    def step(self, step: int, result: RoundResult, *, steps_left: int) -> None:
        """Step number ``step`` is done."""
        if self._monitor is None:
            return
        seconds = {device: timing.seconds for device, timing in result.timings.items()}
        decision = self._monitor.observe(
            step,
            seconds,
            steps_left=steps_left,
            link_bytes_per_second=result.link_bytes_per_second,
        )
        if decision is None:
            return
        self._decisions.append(decision)
        if decision.changes:
            _log.warning("%s This run goes on with the plan it has.", decision.line())
        else:
            _log.info("%s", decision.line())


def replanned(plan: Plan, costs: Costs | None, left: tuple[str, ...]) -> Plan:
    """The plan for the devices that are left: the best by what is known of them.

    If nothing is, those of the old plan take over what the lost ones held.
    """
    known = set() if costs is None else {each.device for each in costs.devices} & set(left)
    if costs is None or not known:
        return taken_over(plan, left)
    return partition(costs.only(known), n_microbatches=plan.n_microbatches, schedule=plan.schedule)
