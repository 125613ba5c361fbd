"""Watch a plan at work: notice when measured times leave the prediction, and decide what to do.

    measured times -> Drift of each device -> corrected costs -> decide

Who moves the weights is not known here. Links are not watched: frames carry no common clock, so
nobody knows how long one was under way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgeweave.plan.costs import Costs, DeviceCosts, stage_seconds
from edgeweave.plan.decision import Caution, Decision, Departure, decide
from edgeweave.plan.drift import Drift
from edgeweave.plan.stages import Plan, Stage

__all__ = ["Monitor", "corrected_costs"]


class Monitor:
    """Watches a plan at work, and decides when a device has left its prediction.

    Fed with every step's times. It plans only in a step in which there is something to decide,
    which takes there what ``partition`` takes. A device that holds no stage is not measured, and
    believed to be as it was.
    """

    def __init__(self, plan: Plan, costs: Costs, *, caution: Caution | None = None) -> None:
        self._caution = caution or Caution()
        self._pause_steps = self._caution.least_steps_between
        self._last_change: Decision | None = None
        self._no_change_before = 0
        self._watch(plan, costs)

    @property
    def plan(self) -> Plan:
        """The plan in use."""
        return self._plan

    @property
    def costs(self) -> Costs:
        """The costs as they are believed to be now."""
        return corrected_costs(self._costs, self._plan, self._drifts)

    def observe(
        self, step: int, seconds: Mapping[str, float], *, steps_left: int
    ) -> Decision | None:
        """Take in what each device took for a microbatch, forward and backward, in one step.

        A device may be missing, or be there with 0 for want of a finer clock: that step tells
        nothing about it. ``steps_left`` are those to come. Returns a decision where one is due; in
        the pause after a change none is, and what was noticed is decided on at its end.
        """
        noticed = {
            device
            for device, drift in self._drifts.items()
            if seconds.get(device, 0.0) > 0
            and drift.observe(seconds[device] / self._predicted_seconds[device])
        }
        if noticed:
            self._undecided |= noticed
            self._judge_last_change(step)
        if not self._undecided or step < self._no_change_before or self._is_anyone_suspect():
            return None
        decision = self._decision(step, steps_left)
        self._undecided.clear()
        if decision.changes:
            self._last_change = decision
            self._no_change_before = step + self._pause_steps
        return decision

    def take_up(self, decision: Decision) -> None:
        """Go on with the decision's new plan, and with the costs it was made from."""
        self._watch(decision.new, self.costs)

    def _watch(self, plan: Plan, costs: Costs) -> None:
        self._plan, self._costs = plan, costs
        self._predicted_seconds = {
            stage.device: _microbatch_seconds(costs, stage) for stage in plan.stages
        }
        self._drifts = {d: Drift() for d, seconds in self._predicted_seconds.items() if seconds}
        self._undecided: set[str] = set()

    def _is_anyone_suspect(self) -> bool:
        """Who is suspect is waited for: one plan for all that changed in the same moment."""
        return any(drift.is_suspect for drift in self._drifts.values())

    def _judge_last_change(self, step: int) -> None:
        """A state that did not last makes the next change wait twice as long."""
        last, self._last_change = self._last_change, None
        if last is None:
            return
        if step < last.step + max(self._pause_steps, last.break_even_steps or 0):
            self._pause_steps *= 2
            self._no_change_before = last.step + self._pause_steps
        else:
            self._pause_steps = self._caution.least_steps_between

    def _decision(self, step: int, steps_left: int) -> Decision:
        departures = tuple(
            Departure(device, self._drifts[device].ratio)
            for device in self._plan.devices
            if device in self._undecided
        )
        return decide(
            self._plan,
            self.costs,
            departures,
            step=step,
            steps_left=steps_left,
            caution=self._caution,
        )


def corrected_costs(costs: Costs, plan: Plan, drifts: Mapping[str, Drift]) -> Costs:
    """The costs with each device's times stretched by what it was seen to take.

    The units a device holds take what they were measured to take. What is known of its other units
    is less: a device that became slower or faster did so for all of them, but one that was faster
    than predicted from the start may owe that to the units it holds, and gets no credit elsewhere.
    One that was slower from the start is believed to be so everywhere, which errs on the side of
    giving it no more.
    """
    held = {stage.device: range(stage.first_unit, stage.stop_unit) for stage in plan.stages}
    return replace(
        costs,
        devices=tuple(
            _stretched(device, held[device.device], drifts[device.device])
            if device.device in drifts
            else device
            for device in costs.devices
        ),
    )


def _stretched(device: DeviceCosts, held: range, drift: Drift) -> DeviceCosts:
    elsewhere = drift.ratio / min(drift.ratio_at_first, 1.0)

    def stretched(seconds: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(
            each * (drift.ratio if unit in held else elsewhere) for unit, each in enumerate(seconds)
        )

    return replace(
        device,
        forward_seconds=stretched(device.forward_seconds),
        backward_seconds=stretched(device.backward_seconds),
        update_seconds_per_byte=device.update_seconds_per_byte * drift.ratio,
    )


def _microbatch_seconds(costs: Costs, stage: Stage) -> float:
    return stage_seconds(costs, stage.device, stage.first_unit, stage.stop_unit).microbatch
