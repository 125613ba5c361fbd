"""What a run of super neurons came to: learning, reception by link, masks, absences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgeweave.device import SliceStatistics
from edgeweave.fleet import ChaosRecord
from edgeweave.plan import DeliveryChoice, SlicePlan
from edgeweave.train.history import History
from edgeweave.train.report import TrainingReport
from edgeweave.train.slices.absences import Absence, Move

__all__ = ["MemberReport", "SuperNeuronReport", "slice_report"]


@dataclass(frozen=True, slots=True)
class MemberReport:
    """One device: its place, what it did, and what reached it of every other one."""

    device: str
    group: int
    statistics: SliceStatistics | None
    """None: it was away at the end."""


@dataclass(frozen=True, slots=True)
class SuperNeuronReport(TrainingReport):
    """The outcome of ``SuperNeuronTrainer.fit``."""

    plan: SlicePlan
    members: tuple[MemberReport, ...]
    absences: tuple[Absence, ...] = ()
    """Devices that were away: masks, until they came back or their slices moved."""
    moves: tuple[Move, ...] = ()
    """Slices that went to spare devices. ``plan`` and ``members`` are those of the end."""
    choices: tuple[DeliveryChoice, ...] = ()
    """How messages were to travel, whenever that was measured."""
    chaos: tuple[ChaosRecord, ...] = field(default=())
    """What a script did to the emulated fleet during this call."""

    @property
    def lost_share(self) -> float:
        """Of the datagrams that were sent, what did not arrive in time."""
        told = [each for m in self.members if m.statistics for each in m.statistics.senders]
        sent = sum(each.datagrams for each in told)
        return 1 - sum(each.arrived for each in told) / sent if sent else 0.0


def slice_report(
    history: History,
    plan: SlicePlan,
    statistics: Mapping[str, SliceStatistics],
    absences: tuple[Absence, ...],
    moves: tuple[Move, ...],
    choices: tuple[DeliveryChoice, ...],
    chaos: tuple[ChaosRecord, ...],
) -> SuperNeuronReport:
    """All of it."""
    groups = [number for number, group in enumerate(plan.groups) for _ in range(group.n_members)]
    return SuperNeuronReport(
        plan=plan,
        epochs=tuple(history.epochs),
        step_losses=tuple(history.step_losses),
        n_samples=history.n_samples,
        seconds=history.seconds,
        step_seconds=tuple(history.step_seconds),
        members=tuple(
            MemberReport(device, group, statistics.get(device))
            for device, group in zip(plan.devices, groups, strict=True)
        ),
        absences=absences,
        moves=moves,
        choices=choices,
        chaos=chaos,
    )
