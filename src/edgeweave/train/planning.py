"""The plan of one trainer, and what it is made from: measurements, or predictions.

Knows nothing of data sets, checkpoints of weights, or how a run goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeweave.core.errors import PlanError
from edgeweave.device import Optimizer
from edgeweave.fleet import Fleet
from edgeweave.fleet.links import measure_links_of
from edgeweave.plan import (
    Costs,
    Monitor,
    Plan,
    PlannedBatch,
    Recoding,
    TriedSize,
    best_microbatching,
)
from edgeweave.program import Captured
from edgeweave.train.codec_watch import CodecWatch
from edgeweave.train.compression import Compression
from edgeweave.train.deployment import check_place
from edgeweave.train.failures.newcomers import Newcomer
from edgeweave.train.measuring.experience import Experience
from edgeweave.train.measuring.lessons import RunTimings, Teacher
from edgeweave.train.measuring.measurements import Measure, Measurements, measure_costs
from edgeweave.train.microbatches import Chosen, choose_microbatches, kept_size, microbatch_size
from edgeweave.train.plan_watch import PlanWatch
from edgeweave.train.training import Watches

__all__ = ["Planning", "Wishes"]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a user said of plans. Without ``n_microbatches`` they are chosen."""

    schedule: str
    weight_aggregation: int | None
    n_microbatches: int | None
    measure: Measure
    compression: Compression | None


class Planning:
    """Makes the plan that the trainer uses, or checks the one it was given."""

    def __init__(
        self,
        fleet: Fleet,
        optimizer: Optimizer,
        wishes: Wishes,
        *,
        plan: Plan | None,
        experience: Experience | None,
    ) -> None:
        self._fleet = fleet
        self._optimizer = optimizer
        self._wishes = wishes
        self._plan = plan
        self._experience = experience
        self._teacher = Teacher(experience, fleet)
        self._chosen: Chosen | None = None
        self.costs: Costs | None = None
        """What the devices measured, or what was predicted of them, if they were asked."""
        self.measured_size: int | None = None
        """The samples of the microbatch that ``costs`` are about."""

    @property
    def plan(self) -> Plan | None:
        """The plan in use, once there is one. Setting it makes the next run use another."""
        return self._plan

    @plan.setter
    def plan(self, plan: Plan | None) -> None:
        self._plan, self._chosen = plan, None

    @property
    def tried(self) -> tuple[TriedSize, ...]:
        """The microbatches that were planned, largest first; none if their number was given."""
        return () if self._chosen is None else self._chosen.planned.tried

    def wanted_size(self, batch_size: int, resume: str | Path | None) -> int | None:
        """The samples of a microbatch as told or as a checkpoint had them; None: to be chosen."""
        if self._wishes.n_microbatches is not None:
            return microbatch_size(batch_size, self._wishes.n_microbatches)
        return None if resume is None else min(kept_size(Path(resume)), batch_size)

    def prepare(self, captured: Captured, batch_size: int, size: int | None) -> Plan:
        """The plan for such batches, in microbatches of ``size`` or of the best."""
        if self._chosen is not None and not self._chosen.serves(batch_size, size):
            self.plan = None
        plan = self._plan
        if plan is None:
            planned = self._planned(captured, batch_size, size)
            self.plan = plan = planned.plan
            if self._wishes.n_microbatches is None:
                self._chosen = Chosen(planned, batch_size)
        return self._checked(plan, captured, batch_size)

    def microbatch_size(self, batch_size: int) -> int:
        """The samples of a microbatch. Only once there is a plan, or their number was told."""
        if self._chosen is not None:
            return min(self._chosen.planned.microbatch_size, batch_size)
        told = self._wishes.n_microbatches
        if told is None:
            assert self._plan is not None, "microbatches are told, a plan's, or chosen"
            told = max(min(self._plan.n_microbatches, batch_size), 1)
        return microbatch_size(batch_size, told)

    def met(self, captured: Captured, device: str, plan: Plan, batch_size: int) -> Newcomer:
        """What is known of a device that came, or what it measures now."""
        costs = self.costs
        if costs is None:
            return Newcomer(device)
        if device in {each.device for each in costs.devices}:
            return Newcomer(device, costs.device(device))
        measured = measure_costs(
            self._fleet,
            captured,
            microbatch_size=self.microbatch_size(batch_size),
            optimizer=self._optimizer,
            measure=self._wishes.measure,
            compression=self._wishes.compression,
            devices=[device],
        )
        links = measure_links_of(self._fleet, device, plan.devices)
        return Newcomer(device, measured.device(device), links)

    def watches(self, plan: Plan, costs: Costs | None, batch_size: int) -> Watches:
        """Without costs of microbatches of this size there is nothing to compare with.

        Nor are there any if a plan was given that has codecs, and measuring knew of none.
        """
        if (
            costs is None
            or self.measured_size != self.microbatch_size(batch_size)
            or (plan.codecs and costs.coding is None)
        ):
            return Watches(PlanWatch(None), CodecWatch(None))
        recoding = None if costs.coding is None else Recoding(plan, costs)
        return Watches(PlanWatch(Monitor(plan, costs)), CodecWatch(recoding))

    def teach(self, captured: Captured, plan: Plan, batch_size: int, timings: RunTimings) -> None:
        """Note what stages took in a run, for later predictions."""
        size = self.microbatch_size(batch_size)
        self._teacher.teach_stages(captured.program, size, plan, timings.steady())

    def _planned(self, captured: Captured, batch_size: int, size: int | None) -> PlannedBatch:
        """Measure and plan, for microbatches of this size or for the best."""
        wishes = self._wishes
        measurements = Measurements(
            self._fleet,
            captured,
            optimizer=self._optimizer,
            measure=wishes.measure,
            experience=self._experience,
            compression=wishes.compression,
        )
        try:
            if size is None:
                found = choose_microbatches(
                    measurements,
                    batch_size,
                    schedule=wishes.schedule,
                    weight_aggregation=wishes.weight_aggregation,
                )
            else:
                measurements.measure(size)
                found = best_microbatching(
                    measurements.costs_at,
                    batch_size,
                    sizes=[size],
                    schedule=wishes.schedule,
                    weight_aggregation=wishes.weight_aggregation,
                )
        except PlanError:
            if measurements.measured:  # that nothing fits can be seen in them
                self.measured_size = min(measurements.measured)
                self.costs = measurements.costs_at(self.measured_size)
            raise
        self.costs, self.measured_size = found.costs, found.microbatch_size
        for each, devices in measurements.measured.items():
            self._teacher.teach_units(captured.program, each, devices.values())
        return found

    def _checked(self, plan: Plan, captured: Captured, batch_size: int) -> Plan:
        check_place(plan, self._fleet, captured.program)
        needed = -(-batch_size // self.microbatch_size(batch_size))
        if plan.n_microbatches < needed:
            raise PlanError(
                f"the plan is for {plan.n_microbatches} microbatches a step, the batch has "
                f"{needed}. Plan again."
            )
        return plan
