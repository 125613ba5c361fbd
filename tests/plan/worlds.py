"""Costs for the tests: equal stages to calculate by hand, and random ones for properties."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from typing import Any

from hypothesis import strategies as st

from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.plan import (
    Costs,
    Cut,
    DeviceCosts,
    Feed,
    Link,
    Plan,
    Stage,
    UnitFacts,
    in_flight,
)

FREE_LINK = Link(bytes_per_second=1e9, latency_seconds=0.0)
EMPTY_CUT = Cut(forward_bytes=0, backward_bytes=0)


def equal_costs(
    n_units: int,
    n_devices: int,
    *,
    forward_seconds: float = 1.0,
    backward_seconds: float = 1.0,
    link: Link = FREE_LINK,
    cut: Cut = EMPTY_CUT,
    memory_limit_bytes: int | None = None,
) -> Costs:
    """Equal units on equal devices ``d0``, ``d1``, ..."""
    return Costs(
        units=tuple(UnitFacts(f"unit{i}", 10, 10, 1, 100) for i in range(n_units)),
        cuts=(cut,) * (n_units - 1),
        devices=tuple(
            DeviceCosts(
                f"d{d}",
                (forward_seconds,) * n_units,
                (backward_seconds,) * n_units,
                memory_limit_bytes,
            )
            for d in range(n_devices)
        ),
        links={},
        default_link=link,
        optimizer_bytes_per_trainable_byte=0.0,
    )


def plan_of(
    costs: Costs,
    devices: tuple[str, ...],
    bounds: tuple[int, ...],
    *,
    schedule: str = "1f1b",
    n_microbatches: int = 4,
    extra_in_flight: int = 0,
) -> Plan:
    """A plan for the simulation, which looks only at who does what."""
    spans = zip(devices, bounds, bounds[1:], strict=False)
    stages = tuple(Stage(device, first, stop, 0.0, 0.0, 0) for device, first, stop in spans)
    return Plan(stages, schedule, n_microbatches, extra_in_flight, 0.0, 0.0)


def one_unit_each(costs: Costs, **options: Any) -> Plan:
    """Unit ``i`` on device ``i``."""
    names = tuple(device.device for device in costs.devices)
    return plan_of(costs, names, tuple(range(len(names) + 1)), **options)


def with_links(costs: Costs, links: dict[tuple[str, str], Link]) -> Costs:
    nested: dict[str, dict[str, Link]] = {}
    for (src, dst), link in links.items():
        nested.setdefault(src, {})[dst] = link
    return replace(costs, links=nested)


@dataclass(frozen=True)
class Placement:
    """One way to split, as brute force sees it."""

    devices: tuple[str, ...]
    bounds: tuple[int, ...]

    def spans(self) -> list[tuple[str, int, int]]:
        return list(zip(self.devices, self.bounds, self.bounds[1:], strict=False))

    def fits(self, costs: Costs, schedule: str, n_microbatches: int, extra: int) -> bool:
        """The memory formula, written out once more."""
        for index, (name, first, stop) in enumerate(self.spans()):
            held = in_flight(schedule, index, len(self.devices), n_microbatches, extra)
            need = 0.0
            for unit in costs.units[first:stop]:
                optimizer = costs.optimizer_bytes_per_trainable_byte * unit.trainable_bytes
                need += unit.parameter_bytes + unit.buffer_bytes + unit.trainable_bytes + optimizer
                need += held * unit.activation_bytes
            limit = costs.device(name).memory_limit_bytes
            if limit is not None and need > limit:
                return False
        return True

    def feeds(self, costs: Costs) -> list[tuple[float, float]]:
        """For each stage: how long its feeds keep a link busy, and the latency if there are any."""
        found = []
        for name, first, stop in self.spans():
            used = [f.size_bytes for f in costs.feeds if {*range(first, stop)} & {*f.units}]
            link = costs.link(COORDINATOR_NAME, name)
            found.append((sum(used) / link.bytes_per_second, link.latency_seconds * bool(used)))
        return found

    def period(self, costs: Costs) -> float:
        """The largest of all times and of what a link is busy with feeds."""
        return max(*self.times(costs), *(seconds for seconds, _ in self.feeds(costs)))

    def latency(self, costs: Costs) -> float:
        """All times and the way of the first stage's feeds."""
        return sum(self.times(costs)) + sum(self.feeds(costs)[0])

    def times(self, costs: Costs) -> list[float]:
        """The computing of every stage, and the transfers of every cut in both directions."""
        times = []
        for name, first, stop in self.spans():
            device = costs.device(name)
            forward, backward = device.forward_seconds, device.backward_seconds
            times.append(sum(forward[first:stop]) + sum(backward[first:stop]))
        for index, stop in enumerate(self.bounds[1:-1]):
            src, dst = self.devices[index : index + 2]
            cut = costs.cuts[stop - 1]
            for link, size in (
                (costs.link(src, dst), cut.forward_bytes),
                (costs.link(dst, src), cut.backward_bytes),
            ):
                times.append(size / link.bytes_per_second + link.latency_seconds)
        return times


def every_placement(costs: Costs) -> Iterator[Placement]:
    """Every ordered subset of the devices with every way to cut."""
    names = [device.device for device in costs.devices]
    n_units = len(costs.units)
    for size in range(1, min(len(names), n_units) + 1):
        for order in permutations(names, size):
            for cuts in combinations(range(1, n_units), size - 1):
                yield Placement(order, (0, *cuts, n_units))


@st.composite
def small_costs(draw: st.DrawFn, *, max_units: int = 5, max_devices: int = 3) -> Costs:
    """Whole seconds and bytes, so that sums are exact; asymmetric links; now and then tight."""
    n_units = draw(st.integers(1, max_units))
    n_devices = draw(st.integers(1, max_devices))
    sizes = st.integers(0, 9)
    seconds = st.integers(1, 9).map(float)

    def per_unit() -> tuple[float, ...]:
        return tuple(draw(st.lists(seconds, min_size=n_units, max_size=n_units)))

    def unit(index: int) -> UnitFacts:
        parameter_bytes = draw(sizes)
        trainable_bytes = draw(st.integers(0, parameter_bytes))
        return UnitFacts(f"unit{index}", parameter_bytes, trainable_bytes, draw(sizes), draw(sizes))

    links = st.builds(Link, st.sampled_from([0.5, 1.0, 2.0, 8.0]), st.sampled_from([0.0, 1.0, 4.0]))
    used = st.sets(st.integers(0, n_units - 1), max_size=2).map(lambda u: tuple(sorted(u)))
    feeds = st.builds(Feed, st.just("input:0"), sizes, used)
    limits = st.one_of(st.none(), st.integers(10, 160))
    names = [f"d{d}" for d in range(n_devices)]
    costs = Costs(
        units=tuple(unit(index) for index in range(n_units)),
        cuts=tuple(Cut(draw(sizes), draw(sizes)) for _ in range(n_units - 1)),
        devices=tuple(
            DeviceCosts(
                name, per_unit(), per_unit(), draw(limits), draw(st.sampled_from([0.0, 1.0]))
            )
            for name in names
        ),
        links={},
        default_link=draw(links),
        optimizer_bytes_per_trainable_byte=draw(st.sampled_from([0.0, 1.0, 2.0])),
        feeds=draw(st.lists(feeds, max_size=2).map(tuple)),
    )
    ends = [COORDINATOR_NAME, *names]
    pairs = [(src, dst) for src in ends for dst in ends if src != dst]
    return with_links(costs, {pair: draw(links) for pair in pairs})
