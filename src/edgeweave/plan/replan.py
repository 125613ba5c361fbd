"""Watch a plan at work: notice when measured times leave the prediction, and decide what to do.

    measured times -> Drift of each device and link -> corrected costs -> decide

Who moves the weights is not known here. A link is watched while frames wait for it: one that nobody
waits for may have become slower or faster, and makes no difference.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

from edgeweave.plan.coding import Ends, with_link_rates
from edgeweave.plan.costs import Costs, DeviceCosts, stage_seconds
from edgeweave.plan.decision import Caution, Decision, Departure, decide
from edgeweave.plan.drift import Drift
from edgeweave.plan.links import Link
from edgeweave.plan.pause import Pause
from edgeweave.plan.serving import ServingPlan
from edgeweave.plan.stages import Plan, Stage

__all__ = ["Monitor", "corrected_costs"]

_LINK_STEPS = 9


class Monitor:
    """Watches a plan at work, and decides when a device or a link has left its prediction.

    Fed with every step's times. It plans only in a step in which there is something to decide,
    which takes there what ``partition`` takes. A device that holds no stage is not measured, and
    believed to be as it was, and so are links that are not used or too fast to tell.
    """

    def __init__(self, plan: Plan, costs: Costs, *, caution: Caution | None = None) -> None:
        self._caution = caution or Caution()
        self._pause = Pause(self._caution.least_steps_between)
        self._costs = costs
        self._watch(plan, costs)

    @property
    def plan(self) -> Plan:
        """The plan in use."""
        return self._plan

    @property
    def costs(self) -> Costs:
        """The costs as they are believed to be now."""
        corrected = corrected_costs(self._costs, self._plan, self._drifts)
        return with_link_rates(
            corrected,
            {
                ends: corrected.link(*ends).bytes_per_second / link.ratio
                for ends, link in self._links.items()
                if link.ratio != 1
            },
        )

    def observe(
        self,
        step: int,
        seconds: Mapping[str, float],
        *,
        steps_left: int,
        link_bytes_per_second: Mapping[Ends, float] | None = None,
    ) -> Decision | None:
        """Take in what each device took for a microbatch, forward and backward, in one step, and
        what links moved that frames told of.

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
        rates = link_bytes_per_second or {}
        noticed_links = {
            ends
            for ends, link in self._links.items()
            if link.observe(self._costs.link(*ends).bytes_per_second, rates.get(ends))
        }
        if noticed or noticed_links:
            self._undecided |= noticed
            self._undecided_links |= noticed_links
            self._pause.noticed(step)
        nothing = not (self._undecided or self._undecided_links)
        if nothing or self._pause.is_on(step) or self._is_anyone_suspect():
            return None
        decision = self._decision(step, steps_left)
        self._undecided.clear()
        self._undecided_links.clear()
        if decision.changes:
            self._pause.begin(step, pays_after_steps=decision.break_even_steps or 0)
        return decision

    def join(
        self,
        step: int,
        device: DeviceCosts,
        links: Mapping[Ends, Link],
        *,
        steps_left: int,
    ) -> Decision:
        """A device has come, or come back: decide whether it is worth taking it in."""
        self._costs = self._costs.with_device(device, links)
        decision = decide(
            self._plan,
            self.costs,
            (),
            step=step,
            steps_left=steps_left,
            caution=self._caution,
            arrivals=(device.device,),
        )
        if decision.changes:
            self._pause.begin(step, pays_after_steps=decision.break_even_steps or 0)
        return decision

    def take_up(self, decision: Decision) -> None:
        """Go on with the decision's new plan, and with the costs as they are believed to be.

        After one that turned out to be worse, the next change has to wait for twice as long.
        """
        if decision.verdict == "worse":
            self._pause.taken_back(decision.step)
        self._watch(decision.new, self.costs)

    def _watch(self, plan: Plan, costs: Costs) -> None:
        self._plan, self._costs = plan, costs
        self._predicted_seconds = {
            stage.device: _microbatch_seconds(costs, stage) for stage in plan.stages
        }
        self._drifts = {d: Drift() for d, seconds in self._predicted_seconds.items() if seconds}
        self._undecided: set[str] = set()
        self._links = {
            ends: _LinkWatch()
            for one, other in pairwise(plan.devices)
            for ends in ((one, other), (other, one))
        }
        self._undecided_links: set[Ends] = set()

    def _is_anyone_suspect(self) -> bool:
        """Who is suspect is waited for: one plan for all that changed in the same moment."""
        devices = any(drift.is_suspect for drift in self._drifts.values())
        return devices or any(link.is_suspect for link in self._links.values())

    def _decision(self, step: int, steps_left: int) -> Decision:
        departures = tuple(
            Departure(device, self._drifts[device].ratio)
            for device in self._plan.devices
            if device in self._undecided
        )
        links = tuple(
            Departure(source, link.ratio, target)
            for (source, target), link in self._links.items()
            if (source, target) in self._undecided_links
        )
        return decide(
            self._plan,
            self.costs,
            (*departures, *links),
            step=step,
            steps_left=steps_left,
            caution=self._caution,
        )


class _LinkWatch:
    """The drift of a link, while most steps tell of it: now and then, jitter makes a rate up."""

    def __init__(self) -> None:
        self._drift = Drift()
        self._told: deque[bool] = deque(maxlen=_LINK_STEPS)

    @property
    def ratio(self) -> float:
        return self._drift.ratio

    @property
    def is_suspect(self) -> bool:
        """Nothing may ever be heard again of a link that nobody waits for: then it is not."""
        return self._drift.is_suspect and self._is_telling()

    def observe(self, believed: float, measured: float | None) -> bool:
        """Take in the bytes per second of one step, if it told; whether the link has left."""
        self._told.append(measured is not None)
        if measured is None or not self._is_telling():
            return False
        return self._drift.observe(believed / measured)

    def _is_telling(self) -> bool:
        return 2 * sum(self._told) > _LINK_STEPS


def corrected_costs(costs: Costs, plan: Plan | ServingPlan, drifts: Mapping[str, Drift]) -> Costs:
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
