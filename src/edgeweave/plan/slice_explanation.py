"""What is said about a plan of super neurons: who has which layers, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeweave.core.units import format_bytes, format_seconds
from edgeweave.plan.costs import Costs, DeviceCosts
from edgeweave.plan.slice_costs import SliceCosts, SliceModel
from edgeweave.plan.slice_plan import SlicePlan
from edgeweave.plan.slice_search import layer_units
from edgeweave.program import Program, slice_program

__all__ = ["SliceExplanation", "SliceShare", "explain_slices"]


@dataclass(frozen=True, slots=True)
class SliceShare:
    """One device: its group's units and how many of them are layers, its share of all trainable
    weights, and what it computes in a step.
    """

    device: str
    group: int
    first_unit: int
    stop_unit: int
    n_layers: int
    weights_share: float
    compute_seconds: float


@dataclass(frozen=True, slots=True)
class SliceExplanation:
    """The answers about one plan, as plain data."""

    plan: SlicePlan
    predicted: SliceCosts
    members: tuple[SliceShare, ...]
    best_single_device: str
    best_single_seconds: float

    @property
    def speedup(self) -> float:
        """Against the fastest device alone, of which there is nothing lost."""
        return self.best_single_seconds / self.predicted.step_seconds

    def lines(self) -> tuple[str, ...]:
        """Sentences for a person."""
        found = self.predicted
        alone = f"{self.best_single_device} alone, {format_seconds(self.best_single_seconds)}"
        is_faster = self.speedup >= 1
        ratio = self.speedup if is_faster else 1 / self.speedup
        return (
            f"A step is predicted to take {format_seconds(found.step_seconds)}: {ratio:.2f} times "
            f"as {'fast' if is_faster else 'long'} as on {alone}.",
            f"Devices send each other {format_bytes(round(found.transfer_bytes))} in a step.",
            f"Of that {found.lost_share:.1%} is expected to be lost, which leaves "
            f"{found.kept:.0%} of what a step teaches.",
        )


def explain_slices(
    program: Program,
    plan: SlicePlan,
    costs: Costs,
    batch: int,
    *,
    reliable: bool = False,
    fixed: Mapping[str, DeviceCosts] | None = None,
) -> SliceExplanation:
    """Judge a plan by what was measured, whoever made it. Costs are as ``SliceModel`` has them."""
    sliced = slice_program(program, plan.groups, plan.mode)
    model = SliceModel(sliced, costs, batch, fixed)
    layers = layer_units(program)
    members = []
    for rank, (number, _) in enumerate(sliced.members):
        group, device = plan.groups[number], plan.devices[rank]
        n_layers = sum(group.first <= unit < group.stop for unit in layers)
        share = model.weights_share(rank)
        seconds = model.member_seconds(rank, device)
        members.append(
            SliceShare(device, number, group.first, group.stop, n_layers, share, seconds)
        )
    seconds_alone = {each.device: _alone(costs, each) for each in costs.devices}
    fastest = min(seconds_alone, key=seconds_alone.__getitem__)
    return SliceExplanation(
        plan,
        model.costs(plan.devices, reliable=reliable),
        tuple(members),
        fastest,
        seconds_alone[fastest],
    )


def _alone(costs: Costs, device: DeviceCosts) -> float:
    """A step of the whole model on one device, which sends nothing to anybody."""
    trainable = sum(unit.trainable_bytes for unit in costs.units)
    computing = sum(device.forward_seconds) + sum(device.backward_seconds)
    return computing + trainable * device.update_seconds_per_byte
