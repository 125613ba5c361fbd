"""Whether the plan is still the right one: feeds what each step took to ``plan.Monitor``.

A change that is carried out is on trial for some steps, and taken back if they got longer.
"""

from __future__ import annotations

import logging
from collections import deque

from edgeweave.plan import (
    TRIAL_STEPS,
    Costs,
    Decision,
    DeviceCosts,
    Monitor,
    Plan,
    Trial,
    partition,
    taken_over,
)
from edgeweave.train.failures.newcomers import Newcomer
from edgeweave.train.run import RoundResult

__all__ = ["PlanWatch", "replanned"]

_log = logging.getLogger(__name__)


class PlanWatch:
    """Listens to the steps of one call of ``fit``; without a monitor, in vain."""

    def __init__(self, monitor: Monitor | None) -> None:
        self._monitor = monitor
        self._decisions: list[Decision] = []
        self._recent: deque[float] = deque(maxlen=TRIAL_STEPS)
        self._trial: Trial | None = None

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

    def step(self, step: int, result: RoundResult, *, steps_left: int) -> Decision | None:
        """Step number ``step`` is done. Returns a decision to change the plan, if there is one."""
        if self._monitor is None:
            return None
        self._recent.append(result.seconds / result.n_samples)
        decision = self._judged(step, steps_left) or self._monitor.observe(
            step,
            {device: timing.seconds for device, timing in result.timings.items()},
            steps_left=steps_left,
            link_bytes_per_second=result.link_bytes_per_second,
        )
        return None if decision is None else self._decided(decision)

    def join(self, step: int, newcomer: Newcomer, *, steps_left: int) -> Decision | None:
        """A device has come. Returns a decision to take it in, if that is worth it."""
        if self._monitor is None or newcomer.costs is None:
            return None
        return self._decided(
            self._monitor.join(step, newcomer.costs, newcomer.links, steps_left=steps_left)
        )

    def _decided(self, decision: Decision) -> Decision | None:
        self._decisions.append(decision)
        if not decision.changes:
            _log.info("%s", decision.line())
            return None
        _log.warning("%s", decision.line())
        return decision

    def take_up(self, decision: Decision) -> None:
        """The run goes on with the decision's new plan."""
        assert self._monitor is not None, "who decided"
        self._monitor.take_up(decision)
        is_new = decision.verdict == "change"
        self._trial = Trial(decision, self._recent) if is_new else None
        self._recent.clear()

    def _judged(self, step: int, steps_left: int) -> Decision | None:
        if self._trial is None:
            return None
        decision = self._trial.observe(step, self._recent[-1], steps_left=steps_left)
        if self._trial.is_over:
            self._trial = None
        return decision


def replanned(plan: Plan, costs: Costs | None, left: tuple[str, ...]) -> Plan:
    """The plan for the devices that are left: the best by what is known of them.

    If nothing is, those of the old plan take over what the lost ones held.
    """
    known = set() if costs is None else {each.device for each in costs.devices} & set(left)
    if costs is None or not known:
        return taken_over(plan, left)
    return partition(
        costs.only(known),
        n_microbatches=plan.n_microbatches,
        schedule=plan.schedule,
        weight_aggregation=plan.weight_aggregation,
    )
