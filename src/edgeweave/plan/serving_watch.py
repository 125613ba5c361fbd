"""Watch a plan that answers requests: do its devices take what they were measured to take?

    seconds of the stages, round after round -> Drift of each device -> costs as believed now

A round is whatever is looked at together, such as the requests of a second. Who plans anew with
these costs, and moves the stages, is not known here. A device without a stage is believed to be as
it was.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgeweave.plan.costs import Costs, DeviceCosts
from edgeweave.plan.decision import Caution, Departure
from edgeweave.plan.drift import Drift
from edgeweave.plan.links import Link
from edgeweave.plan.pause import Pause
from edgeweave.plan.replan import corrected_costs
from edgeweave.plan.serving import ServingPlan

__all__ = ["ServingWatch"]


class ServingWatch:
    """Notices devices that have left their prediction, with the hysteresis that training has.

    A departure takes five rounds in a row to be believed, and none is told before the 17th round of
    a plan (``Drift``); after a change that was made for one, none is told for a while (``Pause``).
    """

    def __init__(self, costs: Costs, *, caution: Caution | None = None) -> None:
        self._costs = costs
        self._pause = Pause((caution or Caution()).least_steps_between)
        self._round = 0
        self._plan: ServingPlan | None = None
        self._drifts: dict[str, Drift] = {}
        self._undecided: set[str] = set()

    @property
    def costs(self) -> Costs:
        """As they are believed to be now."""
        if self._plan is None or all(drift.ratio == 1 for drift in self._drifts.values()):
            return self._costs
        return corrected_costs(self._costs, self._plan, self._drifts)

    def join(self, device: DeviceCosts, links: Mapping[tuple[str, str], Link]) -> None:
        """A device is there that was measured just now."""
        self._costs = self._costs.with_device(device, links)
        self._drifts.pop(device.device, None)

    def take_up(self, plan: ServingPlan, *, departed: bool = False) -> None:
        """This plan is in use from now on; because of ``departed`` devices, or for another reason.

        Its seconds are those of ``costs``, which are what devices are held to.
        """
        self._costs, self._plan = self.costs, plan
        self._drifts = {stage.device: Drift() for stage in plan.stages if stage.forward_seconds}
        self._undecided.clear()
        if departed:
            self._pause.begin(self._round)

    def observe(self, seconds: Mapping[str, float]) -> tuple[Departure, ...]:
        """Take in what a request took on each device, in a round; who has left what was believed.

        A device may be missing: that round tells nothing about it. Departures are told together,
        when no other device is suspect.
        """
        if self._plan is None:
            return ()
        self._round += 1
        planned = {stage.device: stage.forward_seconds for stage in self._plan.stages}
        noticed = {
            device
            for device, drift in self._drifts.items()
            if seconds.get(device, 0.0) > 0 and drift.observe(seconds[device] / planned[device])
        }
        if noticed:
            self._undecided |= noticed
            self._pause.noticed(self._round)
        if (
            not self._undecided
            or self._pause.is_on(self._round)
            or any(drift.is_suspect for drift in self._drifts.values())
        ):
            return ()
        told = tuple(
            Departure(device, self._drifts[device].ratio)
            for device in planned
            if device in self._undecided
        )
        self._undecided.clear()
        return told
