"""The plan of super neurons that a trainer uses: by our costs, by EdgePipe, or by the user."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from random import Random
from typing import Literal

from edgeweave.core.errors import ConfigError, PlanError
from edgeweave.device import Optimizer
from edgeweave.fleet import Fleet
from edgeweave.fleet.links import measure_links
from edgeweave.plan import (
    SlicePlan,
    choose_slices,
    layer_units,
    map_members,
    super_neurons,
    traffic,
)
from edgeweave.program import Captured, Group, Mode, Program, slice_program, without_outputs
from edgeweave.train.measurements import Measure, measure_costs

__all__ = ["Groups", "plan_slices"]

Groups = Literal["auto", "edgepipe"] | Sequence[tuple[int, int]]
"""How layers and devices make groups: by our cost model, by EdgePipe's formulas, or as pairs of
numbers of layers and devices."""


def plan_slices(
    fleet: Fleet,
    captured: Captured,
    optimizer: Optimizer,
    *,
    batch_size: int,
    groups: Groups = "auto",
    mode: Mode = "exchange",
    reliable: bool = False,
    measure: Measure = "profile",
    seed: int = 0,
) -> SlicePlan:
    """Groups, and the devices of their members: those of the fleet, as many as are named.

    ``"auto"`` lets devices measure the model and links; the others measure links alone, to give
    members that say much to each other the links that lose least.
    """
    program = without_outputs(captured.program)
    if groups == "auto":
        costs = measure_costs(
            fleet, captured, microbatch_size=batch_size, optimizer=optimizer, measure=measure
        )
        return choose_slices(program, costs, batch_size, mode=mode, reliable=reliable, seed=seed)
    chosen = _groups(program, _shares(program, groups, len(fleet.devices)))
    sliced = slice_program(program, chosen, mode)
    n_members = len(sliced.members)
    if n_members > len(fleet.devices):
        raise PlanError(
            f"{n_members} slices need as many devices (the fleet has {len(fleet.devices)}). "
            "Name fewer in groups."
        )
    links = measure_links(fleet, fleet.devices)
    reception = {
        (source, target): 1 - link.loss
        for source in fleet.devices
        for target, link in links[source].items()
        if target in fleet.devices
    }
    names = map_members(traffic(sliced, batch_size), fleet.devices, reception, Random(seed))
    return SlicePlan(chosen, names, mode)


def _shares(program: Program, groups: Groups, n_devices: int) -> tuple[super_neurons.Share, ...]:
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
