"""Choose the split of the units over the devices that makes a step shortest.

Proposals come from the exact dynamic program, above ``MAX_DEVICES`` devices from a heuristic; the
simulation chooses among them. A single device is one of the proposals: a plan is never predicted to
be slower than the best single device.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from math import inf
from typing import Literal

import numpy as np

from edgeweave.core.errors import PlanError
from edgeweave.core.units import format_bytes
from edgeweave.plan.codec_choice import choose_codecs
from edgeweave.plan.coding import coded, with_codecs
from edgeweave.plan.costs import Costs, DeviceCosts
from edgeweave.plan.memory import stage_memory_bytes
from edgeweave.plan.proposals import MAX_DEVICES, best_splits, proposals
from edgeweave.plan.ranking import fastest, plan_from_split
from edgeweave.plan.routes import without_skips
from edgeweave.plan.splits import Floats, Grid, Microbatching, Pins, Split, solve
from edgeweave.plan.stages import Plan

__all__ = ["best_plans", "partition"]

_EXTRA_IN_FLIGHT = (0, 1, 2)
_EXTRA_WITH_CODECS = (0, 1, 2, 4)
"""Codecs make messages shorter and let them arrive later."""
_WORTH_MORE_MEMORY = 1.005
_MOST_SIMULATED = 4
"""Above ``MAX_DEVICES``, where a simulation takes long."""
_SPARE_IN_FLIGHT = 2
"""Held beyond what the simulation asks for, where memory allows: devices and links are never as
regular as it takes them to be (measured: docs/reference-benchmarks.md, `efficiency`).
"""


Objective = Literal["throughput", "latency"]


def best_plans(
    costs: Costs,
    *,
    schedule: str,
    n_microbatches: int,
    extra_in_flight: int = 0,
    weight_aggregation: int | None = None,
    pin_first: str | None = None,
    pin_last: str | None = None,
    objective: Objective = "throughput",
) -> tuple[Plan, ...]:
    """The best plan for each number of devices that has one, fewest devices first.

    ``"throughput"`` minimises the period, the largest of all stages' computing and all transfers;
    ``"latency"`` minimises what one microbatch takes there and back, their sum without what is fed
    to later stages. Exact to ``MAX_DEVICES`` devices; above that the best found, and not for each
    number. ``pin_first`` and ``pin_last`` name the devices that must hold the first and last unit.
    """
    pins = _pins(costs, pin_first, pin_last)
    run = Microbatching(
        schedule, n_microbatches, extra_in_flight, weight_aggregation=weight_aggregation
    )
    best = _best_by_size(coded(costs), run, pins, objective)
    plans = (plan_from_split(best[size][1], costs, run) for size in sorted(best))
    return tuple(_with_codecs(plan, costs) for plan in plans)


def partition(
    costs: Costs,
    *,
    n_microbatches: int,
    schedule: str = "1f1b",
    extra_in_flight: int | Sequence[int] | None = None,
    weight_aggregation: int | None = None,
    pin_first: str | None = None,
    pin_last: str | None = None,
    devices: Collection[str] | None = None,
    use: Literal["fastest", "all"] = "fastest",
    objective: Objective = "throughput",
) -> Plan:
    """The plan that is best for the objective; it may leave devices out, or use a single one.

    ``"throughput"`` takes the shortest simulated step, ``"latency"`` the least time of one
    microbatch there and back, as ``best_plans`` counts it. Of several values of
    ``extra_in_flight``, ascending, the smallest is taken that comes within 0.5 % of the best.
    ``None`` tries 0, 1 and 2, with codecs 4 too, and adds up to 2 to the one taken where every
    stage's memory allows, against irregular devices and links. Under ``async-1f1b`` what is in
    flight makes weights older: pass 0 for the least. For latency, where microbatches do
    not wait for each other, the first value counts; ``None`` is 0. ``pin_first`` and ``pin_last``
    name the devices that must hold the first and last unit. ``devices`` restricts the choice,
    ``use="all"`` forces every one of them into the plan, at most ``MAX_DEVICES``. Of equally good
    plans the one with fewer devices is taken. Skip connections are relayed, unless sending them
    past stages is more than 0.5 % faster; for latency they are always relayed. Where costs have
    ``coding``, links code what they carry if that makes a step shorter, in as many bits as cost no
    more than 2 % of it.
    ``PlanError`` if nothing fits.
    """
    plain = costs if devices is None else costs.only(devices)
    costs = coded(plain)
    pins = _pins(costs, pin_first, pin_last)
    n_devices = _number_of_all_devices(costs, pins) if use == "all" else None
    usual = _EXTRA_IN_FLIGHT if costs.coding is None else _EXTRA_WITH_CODECS
    wanted = usual if extra_in_flight is None else extra_in_flight
    extras = (wanted,) if isinstance(wanted, int) else wanted
    runs = [
        Microbatching(schedule, n_microbatches, extra, weight_aggregation=weight_aggregation)
        for extra in extras
    ]
    if objective == "latency":
        plan = _quickest(costs, runs[0], pins, n_devices)
        if plan is None:
            raise _nothing_fits(costs, runs[0], pins, n_devices)
        return _with_codecs(plan, plain)
    plans: list[Plan] = []
    best_seconds = inf
    most = _MOST_SIMULATED if len(costs.devices) > MAX_DEVICES else None
    for run, splits in _both_ways(costs, runs, pins, n_devices):
        limit_seconds = best_seconds * _WORTH_MORE_MEMORY
        plan = fastest(splits, costs, run, limit_seconds=limit_seconds, most=most)
        if plan is not None:
            plans.append(plan)
            best_seconds = min(best_seconds, plan.step_seconds)
    if not plans:
        raise _nothing_fits(costs, runs[0], pins, n_devices)
    good_seconds = best_seconds * _WORTH_MORE_MEMORY
    chosen = next(plan for plan in plans if plan.step_seconds <= good_seconds)
    return _with_codecs(
        chosen if extra_in_flight is not None else _with_spare(chosen, costs), plain
    )


def _with_codecs(plan: Plan, costs: Costs) -> Plan:
    """The plan with the codecs that suit it, and its times with them; ``costs`` are uncoded."""
    if costs.coding is None:
        return plan
    codecs = choose_codecs(plan, costs)
    run = _run_of(plan, plan.extra_in_flight)
    split = Split(plan.devices, plan.bounds)
    return replace(plan_from_split(split, with_codecs(costs, codecs), run), codecs=codecs)


def _run_of(plan: Plan, extra_in_flight: int) -> Microbatching:
    """How the plan's microbatches run, with so many more in flight."""
    return Microbatching(
        plan.schedule,
        plan.n_microbatches,
        extra_in_flight,
        plan.skips,
        plan.weight_aggregation,
    )


def _both_ways(
    costs: Costs, runs: list[Microbatching], pins: Pins, n_devices: int | None
) -> Iterator[tuple[Microbatching, list[Split]]]:
    """Splits worth simulating with relays, then those of three stages or more without them.

    The latter are the same ones, and what would be proposed if direct values cost nothing.
    """
    relayed = list(proposals(costs, runs, pins, n_devices=n_devices))
    yield from relayed
    if not costs.skips or len(costs.devices) < 3:
        return
    direct = [replace(run, skips="direct") for run in runs]
    hopeful = proposals(without_skips(costs), direct, pins, n_devices=n_devices)
    for (run, splits), (_, others) in zip(hopeful, relayed, strict=True):
        longer = [split for split in (*splits, *others) if len(split.devices) > 2]
        yield run, list(dict.fromkeys(longer))


def _pins(costs: Costs, first: str | None, last: str | None) -> Pins:
    pins = Pins(first, last)
    for name in pins.names:
        costs.device(name)
    return pins


def _best_by_size(
    costs: Costs, run: Microbatching, pins: Pins, objective: Objective
) -> dict[int, tuple[float, Split]]:
    """For each number of devices the least period or latency, and its split."""
    join = np.maximum if objective == "throughput" else np.add
    best: dict[int, tuple[float, Split]] = {}
    for value, split in best_splits(costs, run, join, pins):
        size = len(split.devices)
        if size not in best or value < best[size][0]:
            best[size] = (value, split)
    return best


def _quickest(costs: Costs, run: Microbatching, pins: Pins, n_devices: int | None) -> Plan | None:
    """The plan with the least latency, of any or the given number of devices."""
    best = _best_by_size(costs, run, pins, "latency")
    sizes = [size for size in sorted(best) if n_devices in (None, size)]
    if not sizes:
        return None
    return plan_from_split(best[min(sizes, key=lambda size: best[size][0])][1], costs, run)


def _with_spare(plan: Plan, costs: Costs) -> Plan:
    """The same stages with more microbatches in flight, as far as they fit."""
    if plan.schedule == "gpipe" or len(plan.stages) == 1:
        return plan
    split = Split(plan.devices, plan.bounds)
    for spare in range(_SPARE_IN_FLIGHT, 0, -1):
        larger = plan_from_split(split, costs, _run_of(plan, plan.extra_in_flight + spare))
        limits = [costs.device(stage.device).memory_limit_bytes for stage in larger.stages]
        if all(
            limit is None or stage.memory_bytes <= limit
            for stage, limit in zip(larger.stages, limits, strict=True)
        ):
            return larger
    return plan


def _number_of_all_devices(costs: Costs, pins: Pins) -> int:
    n_devices, n_units = len(costs.devices), len(costs.units)
    if n_devices > 1 and pins.first is not None and pins.first == pins.last:
        raise PlanError(
            f"a device with the first and the last unit works alone (got {pins.first} at both ends "
            f"of {n_devices} devices). Pin another one or plan with use='fastest'."
        )
    if n_devices > MAX_DEVICES:
        raise PlanError(
            f"use='all' plans at most {MAX_DEVICES} devices (got {n_devices}). "
            "Name fewer devices or plan with use='fastest'."
        )
    if n_devices > n_units:
        raise PlanError(
            f"use='all' needs a unit for each device (got {n_units} units for {n_devices} "
            "devices). Name fewer devices or plan with use='fastest'."
        )
    return n_devices


def _nothing_fits(costs: Costs, run: Microbatching, pins: Pins, n_devices: int | None) -> PlanError:
    """Say what the split that comes closest to fitting lacks, and where."""
    if len(pins.names) > len(costs.units):
        return PlanError(
            f"two pinned devices need a unit each (got one unit for {' and '.join(pins.names)}). "
            "Pin one of them."
        )
    split = _closest_split(costs, run, pins, n_devices)
    lacks: list[tuple[int, str]] = []
    for index, (device, first, stop) in enumerate(split.stages()):
        n_behind = len(split.devices) - 1 - index
        held, older = run.in_flight(n_behind), run.older_versions(n_behind)
        need = stage_memory_bytes(costs, first, stop, held, older)
        limit = costs.device(device).memory_limit_bytes
        if limit is not None:
            lacks.append(
                (
                    need - limit,
                    f"stage {index}, units {first} to {stop - 1}, needs {format_bytes(need)} on "
                    f"{device}, limit: {format_bytes(limit)}, lacks {format_bytes(need - limit)}",
                )
            )
    _, worst = max(lacks)
    return PlanError(
        f"no split of {len(costs.units)} units fits the memory of {len(costs.devices)} devices "
        f"(closest: {worst}). Use smaller microbatches or an optimizer with less state, or add a "
        "device."
    )


def _closest_split(costs: Costs, run: Microbatching, pins: Pins, n_devices: int | None) -> Split:
    """The split whose worst stage exceeds its device's memory the least.

    Looked for among pinned devices and the ``MAX_DEVICES`` with the most memory.
    """
    roomiest = sorted(costs.devices, key=lambda d: (d.device not in pins.names, -_room(d)))
    grid = Grid(costs.only([device.device for device in roomiest[:MAX_DEVICES]]))

    def excess_bytes(n_behind: int) -> Floats:
        return grid.excess_bytes(run.in_flight(n_behind), run.older_versions(n_behind))

    free = np.zeros((len(grid.names), len(grid.names), grid.n_units))
    found = solve(grid, excess_bytes, free, np.maximum, pins).splits()
    wanted = [pair for pair in found if n_devices in (None, len(pair[1].devices))]
    return min(wanted, key=lambda pair: (pair[0], len(pair[1].devices)))[1]


def _room(device: DeviceCosts) -> float:
    return inf if device.memory_limit_bytes is None else device.memory_limit_bytes
