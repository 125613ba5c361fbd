"""Who has which slices: what a run of super neurons is told. A value."""

from __future__ import annotations

from dataclasses import dataclass

from edgeweave.core.errors import PlanError
from edgeweave.core.units import format_bytes, format_seconds
from edgeweave.plan.slice_costs import SliceCosts
from edgeweave.program import Group, Mode

__all__ = ["SlicePlan"]


@dataclass(frozen=True, slots=True)
class SlicePlan:
    """Groups of units, and the device of each member, group after group."""

    groups: tuple[Group, ...]
    devices: tuple[str, ...]
    mode: Mode = "exchange"
    predicted: SliceCosts | None = None
    """None: nothing was measured."""

    def __post_init__(self) -> None:
        n_members = sum(group.n_members for group in self.groups)
        if len(set(self.devices)) != n_members or len(self.devices) != n_members:
            raise PlanError(
                f"every member has a device of its own ({n_members} members, devices: "
                f"{', '.join(self.devices) or 'none'}). Name as many as there are members."
            )

    def lines(self) -> tuple[str, ...]:
        """Groups with their devices, and what is predicted, for a person."""
        found, first = [], 0
        for number, group in enumerate(self.groups):
            names = ", ".join(self.devices[first : first + group.n_members])
            units = f"units {group.first} to {group.stop - 1}"
            found.append(f"group {number}: {units} in slices over {names}")
            first += group.n_members
        if self.predicted is not None:
            step, kept = self.predicted.step_seconds, self.predicted.kept
            found.append(
                f"predicted: {format_seconds(step)} a step, "
                f"{format_bytes(round(self.predicted.transfer_bytes))} between devices, and losses "
                f"leave {kept:.0%} of what a step teaches"
            )
        return tuple(found)
