"""The plan of super neurons that a trainer uses: by our costs, by EdgePipe, or by the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random
from typing import Literal

from edgeweave.core.errors import ConfigError, PlanError
from edgeweave.device import Optimizer
from edgeweave.fleet import Fleet
from edgeweave.fleet.links import measure_links
from edgeweave.plan import (
    Link,
    SliceExplanation,
    SlicePlan,
    choose_slices,
    explain_slices,
    layer_units,
    map_members,
    super_neurons,
    traffic,
)
from edgeweave.program import Captured, Group, Mode, Program, slice_program, without_outputs
from edgeweave.train.measuring.measurements import Measure, Measurements

__all__ = ["Groups", "SlicePlanner"]

Groups = Literal["auto", "edgepipe"] | Sequence[tuple[int, int]]
"""How layers and devices make groups: by our cost model, by EdgePipe's formulas, or as pairs of
numbers of layers and devices."""


@dataclass(frozen=True, slots=True)
class SlicePlanner:
    """How the slices of a model are to be planned for a fleet."""

    fleet: Fleet
    optimizer: Optimizer
    batch_size: int
    groups: Groups = "auto"
    mode: Mode = "exchange"
    reliable: bool = False
    measure: Measure = "profile"
    seed: int = 0

    def plan(self, captured: Captured) -> SlicePlan:
        """Groups, and the devices of their members: those of the fleet, as many as are named.

        ``"auto"`` lets devices measure the model and links; the others measure links alone, to give
        members that say much to each other the links that lose least.
        """
        if self.groups == "auto":
            return self.explain(captured).plan
        links = measure_links(self.fleet, self.fleet.devices)
        return self._mapped(without_outputs(captured.program), self.groups, links)

    def explain(self, captured: Captured) -> SliceExplanation:
        """The same plan with what it is predicted to take, for which devices always measure."""
        program = without_outputs(captured.program)
        measurements = Measurements(
            self.fleet, captured, optimizer=self.optimizer, measure=self.measure
        )
        for size in {1, self.batch_size}:
            measurements.measure(size)
        costs, fixed = measurements.costs_at(self.batch_size), measurements.measured[1]
        if self.groups == "auto":
            plan = choose_slices(
                program,
                costs,
                self.batch_size,
                mode=self.mode,
                reliable=self.reliable,
                seed=self.seed,
                fixed=fixed,
            )
        else:
            plan = self._mapped(program, self.groups, costs.links)
        found = explain_slices(
            program, plan, costs, self.batch_size, reliable=self.reliable, fixed=fixed
        )
        return replace(found, plan=replace(plan, predicted=found.predicted))

    def _mapped(
        self,
        program: Program,
        groups: Literal["edgepipe"] | Sequence[tuple[int, int]],
        links: Mapping[str, Mapping[str, Link]],
    ) -> SlicePlan:
        """Given groups, with members that say much to each other on the links that lose least."""
        devices = self.fleet.devices
        chosen = _groups(program, _shares(program, groups, len(devices)))
        sliced = slice_program(program, chosen, self.mode)
        n_members = len(sliced.members)
        if n_members > len(devices):
            raise PlanError(
                f"{n_members} slices need as many devices (the fleet has {len(devices)}). "
                "Name fewer in groups."
            )
        reception = {
            (source, target): 1 - link.loss
            for source in devices
            for target, link in links[source].items()
            if target in devices
        }
        said = traffic(sliced, self.batch_size)
        return SlicePlan(
            chosen, map_members(said, devices, reception, Random(self.seed)), self.mode
        )


def _shares(
    program: Program, groups: Literal["edgepipe"] | Sequence[tuple[int, int]], n_devices: int
) -> tuple[super_neurons.Share, ...]:
    if groups == "edgepipe":
        return super_neurons.paper_hybrid(len(layer_units(program)), n_devices)
    return tuple(super_neurons.Share(*pair) for pair in groups)


def _groups(program: Program, shares: Sequence[super_neurons.Share]) -> tuple[Group, ...]:
    """Consecutive layers with the units behind them; those before the first layer are its own."""
    layers, units = layer_units(program), program.unit_numbers
    counts = [share.n_layers for share in shares]
    if sum(counts) != len(layers) or not all(counts):
        raise ConfigError(
            f"groups have all layers of the model, one each at least (it has {len(layers)}; "
            f"groups: {counts}). Correct them."
        )
    firsts = [units[0], *(layers[done] for done in list(accumulate(counts))[:-1])]
    stops = [*firsts[1:], units[-1] + 1]
    return tuple(
        Group(first, stop, share.n_devices)
        for first, stop, share in zip(firsts, stops, shares, strict=True)
    )
