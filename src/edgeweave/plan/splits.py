"""All good ways to split the units over devices: a dynamic program over cuts, subsets and orders.

A suffix of the units is described by the set of devices that hold it, the device at its front and
its first unit. The table grows from the last unit to the first, one device at a time:

    best[set, d, i] = least over j and f of
                      join(compute(d, i..j), transfer(d -> f, j), best[set - d, f, j])

    units   0 ... i-1 | i ... j-1 | j ... N-1
                      |     d     | f ... (the devices of set - d)

From the end, because the microbatches a stage holds in flight, and with them its memory, depend on
how many stages come behind it. ``join`` is the maximum for the period and the sum for the latency
of one microbatch; both are exact. Work: ``2**D * D * N**2`` for D devices and N units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.plan.costs import Costs
from edgeweave.plan.links import Link
from edgeweave.plan.routes import Skips
from edgeweave.plan.schedule import in_flight
from edgeweave.plan.stream import older_versions

__all__ = [
    "ANYWHERE",
    "Floats",
    "Grid",
    "Ints",
    "Join",
    "Microbatching",
    "Pins",
    "Split",
    "Table",
    "solve",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Join = Callable[[Floats, Floats], Floats]


@dataclass(frozen=True, slots=True)
class Microbatching:
    """How the microbatches of a step run, and how skip connections travel."""

    schedule: str
    n_microbatches: int
    extra_in_flight: int
    skips: Skips = "relayed"
    weight_aggregation: int | None = None

    def in_flight(self, n_behind: int) -> int:
        """The microbatches that a stage with so many stages behind it holds."""
        return in_flight(self.schedule, 0, n_behind + 1, self.n_microbatches, self.extra_in_flight)

    def older_versions(self, n_behind: int) -> int:
        """The versions of its weights that it keeps beside the newest."""
        return older_versions(
            self.schedule,
            n_behind,
            self.n_microbatches,
            self.extra_in_flight,
            aggregates=self.weight_aggregation is not None,
        )


@dataclass(frozen=True, slots=True)
class Split:
    """Devices in pipeline order; stage ``k`` holds units ``bounds[k]`` to ``bounds[k + 1] - 1``."""

    devices: tuple[str, ...]
    bounds: tuple[int, ...]

    def stages(self) -> Iterator[tuple[str, int, int]]:
        """Device, first unit and stop unit of each stage."""
        return zip(self.devices, self.bounds, self.bounds[1:], strict=False)


@dataclass(frozen=True, slots=True)
class Pins:
    """The devices that must hold the first and the last unit, where there are such."""

    first: str | None = None
    last: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The devices that are pinned, each once."""
        return tuple(dict.fromkeys(name for name in (self.first, self.last) if name is not None))

    def allow(self, devices: Sequence[str]) -> bool:
        """Whether devices in this order keep to it."""
        return self.first in (None, devices[0]) and self.last in (None, devices[-1])


ANYWHERE = Pins()


class Grid:
    """``Costs`` as arrays; entry ``[i, j]`` is about units ``i`` to ``j - 1``.

    Where ``j <= i`` there are no units, and the entry is infinite.
    """

    def __init__(self, costs: Costs) -> None:
        self.names = [device.device for device in costs.devices]
        self.n_units = len(costs.units)
        seconds = [
            np.add(device.forward_seconds, device.backward_seconds) for device in costs.devices
        ]
        self.compute_seconds = np.stack([_spans(times) for times in seconds])
        self.compute_seconds[:, ~_real_spans(self.n_units)] = np.inf
        self._limit_bytes = np.array(
            [_limit(device.memory_limit_bytes) for device in costs.devices]
        )
        self._costs = costs
        self._weight_bytes = self._spans_of_weights()
        self._trainable_bytes = _spans([unit.trainable_bytes for unit in costs.units])
        self._activation_bytes = _spans([unit.activation_bytes for unit in costs.units])

    def excess_bytes(self, in_flight: int, older_versions: int = 0) -> Floats:
        """How far ``stage_memory_bytes`` of a span exceeds a device's limit; 0 where it fits."""
        memory = self._memory_bytes(in_flight, older_versions)
        excess = np.maximum(memory[None] - self._limit_bytes[:, None, None], 0.0)
        excess[:, ~_real_spans(self.n_units)] = np.inf
        return np.asarray(excess)

    def earliest_units(self, run: Microbatching) -> Ints:
        """Entry ``[k, d, j]``: the first unit from which ``d`` has memory for all before ``j``.

        ``k`` is the number of stages behind it.
        """
        limits = self._limit_bytes[:, None, None]
        found: list[Ints] = []
        held_before = (0, 0)
        for n_behind in range(min(len(self.names), self.n_units)):
            held = run.in_flight(n_behind), run.older_versions(n_behind)
            if held != held_before:
                memory = self._memory_bytes(*held)
                found.append((memory[None] > limits).sum(axis=1))
            else:
                found.append(found[-1])
            held_before = held
        return np.stack(found)

    def transfer_seconds(self, join: Join, *, latency: bool) -> Floats:
        """Entry ``[d, f, j]``: both directions between ``d`` and ``f`` before unit ``j``."""
        there_bytes = [cut.forward_bytes for cut in self._costs.cuts]
        back_bytes = [cut.backward_bytes for cut in self._costs.cuts]
        transfer = np.full((len(self.names), len(self.names), self.n_units), np.inf)
        for d, src in enumerate(self.names):
            for f, dst in enumerate(self.names):
                there, back = self._costs.link(src, dst), self._costs.link(dst, src)
                transfer[d, f, 1:] = join(
                    _link_seconds(there, there_bytes, latency=latency),
                    _link_seconds(back, back_bytes, latency=latency),
                )
        return transfer

    def feed_seconds(self) -> Floats:
        """Entry ``[d, i, j]``: how long a span's feeds keep the coordinator's link busy."""
        rates = [link.goodput for link in self._links_to_devices()]
        sizes, _ = self._feeds()
        return np.asarray(sizes[None] / np.array(rates)[:, None, None])

    def _feeds(self) -> tuple[Floats, Bools]:
        """Entry ``[i, j]``: the bytes that the coordinator sends to a span for each microbatch, and
        whether it sends anything; even of no bytes it takes the link's latency.
        """
        sizes = np.zeros((self.n_units, self.n_units + 1))
        are_fed = np.zeros(sizes.shape, dtype=bool)
        for feed in self._costs.feeds:
            used = _spans(np.isin(np.arange(self.n_units), feed.units)) > 0
            sizes += feed.size_bytes * used
            are_fed |= used
        return sizes, are_fed

    def feed_latency_seconds(self) -> Floats:
        """Entry ``[d, i, j]``: from when a span's feeds have left until they are there."""
        sizes, are_fed = self._feeds()
        found = np.zeros((len(self.names), *sizes.shape))
        for d, link in enumerate(self._links_to_devices()):
            for size in np.unique(sizes[are_fed]):
                found[d, are_fed & (sizes == size)] = link.arrival_seconds(int(size))
        return found

    def _links_to_devices(self) -> list[Link]:
        return [self._costs.link(COORDINATOR_NAME, name) for name in self.names]

    def _memory_bytes(self, in_flight: int, older_versions: int) -> Floats:
        """What spans need, as ``stage_memory_bytes`` counts it."""
        held = in_flight * self._activation_bytes + older_versions * self._trainable_bytes
        return np.asarray(self._weight_bytes + held)

    def _spans_of_weights(self) -> Floats:
        units = self._costs.units
        served = _spans([u.parameter_bytes + u.buffer_bytes + u.trainable_bytes for u in units])
        trained = _spans([unit.trainable_bytes for unit in units])
        return np.asarray(
            served + np.ceil(self._costs.optimizer_bytes_per_trainable_byte * trained)
        )


class Table:
    """The best suffix for each set of devices (a bit mask), front device and first unit."""

    def __init__(self, grid: Grid, join: Join, pins: Pins) -> None:
        n_devices = len(grid.names)
        shape = (2**n_devices, n_devices, grid.n_units)
        self._grid = grid
        self._join = join
        self._pins = pins
        self._best: Floats = np.full(shape, np.inf)
        self._stop = np.zeros(shape, dtype=np.int32)
        self._next_device = np.zeros(shape, dtype=np.int8)

    def splits(self) -> Iterator[tuple[float, Split]]:
        """The best whole split of every set of devices for which there is one."""
        first = self._pins.first
        fronts = [d for d, name in enumerate(self._grid.names) if first in (None, name)]
        for mask in range(1, len(self._best)):
            front = min(fronts, key=lambda d: self._best[mask, d, 0])
            value = float(self._best[mask, front, 0])
            if np.isfinite(value):
                yield value, self._trace(mask, front)

    def start(self, d: int, stage: Floats) -> None:
        """Let device ``d`` hold everything from any unit to the last, unless another must."""
        if self._pins.last in (None, self._grid.names[d]):
            self._best[1 << d, d] = stage

    def put_in_front(self, mask: int, d: int, stage: Floats, transfer: Floats) -> None:
        """Try every unit at which device ``d`` may stop, and every device that may follow it.

        Looks only at stops from which the others can finish, and at first units from which ``d``
        reaches the nearest of these stops: what it cannot do, it cannot do for more units either.
        """
        behind = self._join(self._best[mask ^ (1 << d)], transfer)
        follower = behind.argmin(axis=0)
        rest = behind[follower, np.arange(len(follower))]
        possible = np.flatnonzero(np.isfinite(rest))
        if not len(possible):
            return
        stops = slice(possible[0], possible[-1] + 1)
        firsts = slice(np.isfinite(stage[:, stops.start]).argmax(), stops.stop)
        whole = self._join(stage[firsts, stops], rest[stops])
        stop = whole.argmin(axis=1)
        self._best[mask, d, firsts] = whole[np.arange(len(stop)), stop]
        self._stop[mask, d, firsts] = stop + stops.start
        self._next_device[mask, d] = follower

    def _trace(self, mask: int, front: int) -> Split:
        devices, bounds = [front], [0]
        while mask != 1 << front:
            stop = int(self._stop[mask, front, bounds[-1]])
            mask, front = mask ^ (1 << front), int(self._next_device[mask, front, stop])
            devices.append(front)
            bounds.append(stop)
        names = tuple(self._grid.names[device] for device in devices)
        return Split(names, (*bounds, self._grid.n_units))


def solve(
    grid: Grid,
    stage_cost: Callable[[int], Floats],
    transfer_cost: Floats,
    join: Join,
    pins: Pins = ANYWHERE,
) -> Table:
    """Fill the table; ``stage_cost(n_behind)[d, i, j]`` is infinite where it is not allowed."""
    table = Table(grid, join, pins)
    every_device = range(len(grid.names))
    for n_behind in range(min(len(grid.names), grid.n_units)):
        stage = stage_cost(n_behind)
        inner = np.ascontiguousarray(stage[:, :, :-1])
        for mask in range(1, 2 ** len(grid.names)):
            if mask.bit_count() != n_behind + 1:
                continue
            for d in every_device:
                if mask == 1 << d:
                    table.start(d, stage[d, :, -1])
                elif mask >> d & 1:
                    table.put_in_front(mask, d, inner[d], transfer_cost[d])
    return table


def _link_seconds(link: Link, sizes: Sequence[int], *, latency: bool) -> Floats:
    """What messages take, without or with the way there and the mean wait for lost packets."""
    occupied = np.array(sizes, dtype=np.float64) / link.goodput
    if not latency:
        return np.asarray(occupied)
    return np.asarray(occupied + [link.arrival_seconds(size) for size in sizes])


def _spans(values: Any) -> Floats:
    ends = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return np.asarray(np.maximum(ends[None, :] - ends[:-1, None], 0.0))


def _real_spans(n_units: int) -> Bools:
    return np.arange(n_units)[:, None] < np.arange(n_units + 1)[None, :]


def _limit(memory_limit_bytes: int | None) -> float:
    return np.inf if memory_limit_bytes is None else float(memory_limit_bytes)
