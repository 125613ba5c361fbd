"""Where to cut a model that answers requests: a stream of forwards, no gradients, no steps.

    period  = max( stages' computing, links' carrying, feeds, results )   how often an answer comes
    latency = feed + all computing + all links with their ways + result   one request, all idle

``"throughput"`` minimises the first, where transfers overlap computing and latencies are hidden by
the requests in flight; ``"latency"`` the second. Both searches are exact over subsets and orders of
devices to ``MAX_DEVICES``; above that the splits come from the heuristics that training uses.

Values that skip stages are relayed, unless sending them past stages (``routes``) is better by more
than 0.5 %. A request is then computed by a stage when all that it needs is there. That is weighed
for the best splits with relays, and for those that were best if such values were sent for nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal, get_args

import numpy as np

from edgeweave.core.errors import ConfigError, PlanError
from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.plan._checks import require_not_negative
from edgeweave.plan.costs import Costs, Crossing, feeding, stage_seconds
from edgeweave.plan.memory import stage_memory_bytes
from edgeweave.plan.proposals import MAX_DEVICES, best_splits
from edgeweave.plan.routes import SKIPS, Skips, routes, without_skips
from edgeweave.plan.splits import Floats, Grid, Join, Microbatching, Split, solve
from edgeweave.plan.stages import Stage, check_stages

__all__ = [
    "Objective",
    "ServingPlan",
    "answer_times",
    "period_bounds",
    "repredicted",
    "serving_plan",
    "serving_plans",
]

Objective = Literal["throughput", "latency"]

_FORWARDS = Microbatching("1f1b", 1, 0)
"""One request at a time on each stage, and nothing kept of those before."""
_WORTH_A_DEVICE = 1.005
"""One more device has to shorten what counts by more than this."""
_WORTH_GOING_PAST = 1.005
"""And so do values that are sent past stages."""


@dataclass(frozen=True, slots=True)
class ServingPlan:
    """Which units answer requests on which device, and how many requests are under way at once.

    Seconds are predicted for requests of ``batch_size`` samples. ``in_flight`` requests keep every
    stage and link busy, with one waiting at each stage.
    """

    stages: tuple[Stage, ...]
    batch_size: int
    in_flight: int
    period_seconds: float
    latency_seconds: float
    skips: Skips = "relayed"

    def __post_init__(self) -> None:
        check_stages(self.stages)
        if self.skips not in SKIPS:
            raise ConfigError(
                f"skips of a plan are {' or '.join(SKIPS)} (got {self.skips!r}). Plan again."
            )
        if self.batch_size < 1 or self.in_flight < 1:
            raise ConfigError(
                "batch_size and in_flight are 1 or more "
                f"(got {self.batch_size} and {self.in_flight}). Plan again."
            )
        for field in ("period_seconds", "latency_seconds"):
            require_not_negative(getattr(self, field), f"{field} of a plan", fix="Plan again.")

    @property
    def bounds(self) -> tuple[int, ...]:
        """Stage ``k`` holds units ``bounds[k]`` to ``bounds[k + 1] - 1``."""
        return (0, *(stage.stop_unit for stage in self.stages))

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices in the order of the pipeline."""
        return tuple(stage.device for stage in self.stages)

    @property
    def busy_latency_seconds(self) -> float:
        """What a request takes from its sending, the median, while as many as possible are under
        way: each waits for those before it (Little's law).
        """
        return max(self.latency_seconds, self.in_flight * self.period_seconds)

    def line(self) -> str:
        """One sentence for a person."""
        who = ", ".join(f"{s.device} [{s.first_unit}..{s.stop_unit - 1}]" for s in self.stages)
        rate = f"{1 / self.period_seconds:.1f} requests/s" if self.period_seconds else "at once"
        return f"{who}: {rate}, {1e3 * self.latency_seconds:.1f} ms each (predicted)"


def serving_plan(
    costs: Costs,
    *,
    batch_size: int = 1,
    result_bytes: int = 0,
    objective: Objective = "throughput",
    devices: Collection[str] | None = None,
    use: Literal["fastest", "all"] = "fastest",
) -> ServingPlan:
    """The best plan for the objective; a device that adds less than 0.5 % is left out.

    ``costs`` are of requests of ``batch_size`` samples, whose answers have ``result_bytes``.
    ``devices`` restricts the choice, ``use="all"`` takes as many of them as there are units for.
    ``PlanError`` if nothing fits.
    """
    plans = serving_plans(
        costs if devices is None else costs.only(devices),
        batch_size=batch_size,
        result_bytes=result_bytes,
        objective=objective,
    )
    if not plans:
        raise PlanError(
            f"no device holds the model, nor do all {len(costs.devices)} of them together. Add a "
            "device, or raise a memory limit."
        )
    if use == "all":
        return plans[-1]
    best = min(_counted(plan, objective) for plan in plans)
    return next(p for p in plans if _counted(p, objective) <= best * _WORTH_A_DEVICE)


def serving_plans(
    costs: Costs,
    *,
    batch_size: int = 1,
    result_bytes: int = 0,
    objective: Objective = "throughput",
) -> tuple[ServingPlan, ...]:
    """The best plan for each number of devices that has one, fewest devices first."""
    if objective not in get_args(Objective):
        raise ConfigError(
            f"unknown objective {objective!r} (known: {', '.join(get_args(Objective))}). "
            "Choose one."
        )
    splits = list(_splits(costs, result_bytes, objective))
    relayed = (_plan(split, costs, batch_size, result_bytes, "relayed") for split in splits)
    best = _best_by_size(relayed, objective)
    if costs.skips and len(costs.devices) > 2:
        hopeful = _splits(without_skips(costs), result_bytes, objective)
        longer = [s for s in dict.fromkeys([*hopeful, *splits]) if len(s.devices) > 2]
        direct = (_plan(split, costs, batch_size, result_bytes, "direct") for split in longer)
        for size, plan in _best_by_size(direct, objective).items():
            known = best.get(size)
            worth = _WORTH_GOING_PAST * _counted(plan, objective)
            if known is None or worth < _counted(known, objective):
                best[size] = plan
    return tuple(best[size] for size in sorted(best))


def repredicted(plan: ServingPlan, costs: Costs, *, result_bytes: int = 0) -> ServingPlan:
    """The same stages on the same devices, with the seconds that ``costs`` say they take."""
    split = Split(plan.devices, plan.bounds)
    return _plan(split, costs, plan.batch_size, result_bytes, plan.skips)


def period_bounds(costs: Costs) -> dict[int, float]:
    """For each number of devices the least period that the units allow, were sending for nothing.

    No cut through a unit, memory kept to. Up to ``MAX_DEVICES`` devices.
    """
    grid = Grid(costs)
    n_devices = len(grid.names)
    free = np.zeros((n_devices, n_devices, grid.n_units))
    best: dict[int, float] = {}
    for seconds, split in _solved(grid, grid.compute_seconds, free, np.maximum):
        size = len(split.devices)
        best[size] = min(best.get(size, np.inf), seconds)
    return dict(sorted(best.items()))


def answer_times(
    plan: ServingPlan, costs: Costs, n_requests: int, *, result_bytes: int = 0
) -> list[tuple[float, float]]:
    """When each of ``n_requests`` is sent and answered, if all wait at time 0: a simulation.

    A request is sent once there are fewer than ``in_flight`` unanswered; a device computes them in
    order, a link carries one at a time.
    """
    pipeline = _Pipeline(Split(plan.devices, plan.bounds), costs, result_bytes, plan.skips)
    times: list[tuple[float, float]] = []
    for number in range(n_requests):
        sent = 0.0 if number < plan.in_flight else times[number - plan.in_flight][1]
        times.append((sent, pipeline.answer(sent)))
    return times


def _counted(plan: ServingPlan, objective: Objective) -> float:
    return plan.period_seconds if objective == "throughput" else plan.latency_seconds


def _best_by_size(plans: Iterable[ServingPlan], objective: Objective) -> dict[int, ServingPlan]:
    best: dict[int, ServingPlan] = {}
    for plan in plans:
        known = best.get(len(plan.stages))
        if known is None or _counted(plan, objective) < _counted(known, objective):
            best[len(plan.stages)] = plan
    return best


class _Pipeline:
    """Stages and links that requests go through, each when it is free, in the order of requests."""

    def __init__(self, split: Split, costs: Costs, result_bytes: int, skips: Skips) -> None:
        places = list(split.stages())
        self._feed = feeding(costs, *places[0])
        self._compute = [stage_seconds(costs, *place).forward for place in places]
        self._routes = routes(costs, split.devices, split.bounds, skips)
        last = split.devices[-1]
        link = costs.link(last, COORDINATOR_NAME)
        self._result = Crossing(last, COORDINATOR_NAME, result_bytes, link)
        self._free_at: dict[object, float] = {}

    def busy_seconds(self) -> float:
        """The longest that a request keeps any stage or link."""
        links = [*(route.there for route in self._routes), self._result]
        return max([*self._compute, *(each.occupied_seconds for each in links)])

    def answer(self, sent: float) -> float:
        """When a request is answered that is sent now."""
        done: list[float] = []
        for index, seconds in enumerate(self._compute):
            arrivals = [
                self._carried(route.there, done[route.front])
                for route in self._routes
                if route.behind == index
            ]
            if index == 0:
                arrivals = [sent if self._feed is None else self._carried(self._feed, sent)]
            done.append(self._taken(index, seconds, max(arrivals)))
        return self._carried(self._result, done[-1])

    def _carried(self, crossing: Crossing, since: float) -> float:
        """When it is there, if it may leave from a moment on."""
        ends = (crossing.src, crossing.dst)
        return self._taken(ends, crossing.occupied_seconds, since) + crossing.arrival_seconds

    def _taken(self, who: object, seconds: float, since: float) -> float:
        self._free_at[who] = max(since, self._free_at.get(who, 0.0)) + seconds
        return self._free_at[who]


def _plan(
    split: Split, costs: Costs, batch_size: int, result_bytes: int, skips: Skips
) -> ServingPlan:
    stages = tuple(
        Stage(
            device,
            first,
            stop,
            stage_seconds(costs, device, first, stop).forward,
            0.0,
            stage_memory_bytes(costs, first, stop, 1),
        )
        for device, first, stop in split.stages()
    )
    pipeline = _Pipeline(split, costs, result_bytes, skips)
    fed = (feeding(costs, *place) for place in split.stages())
    feeds = [each.occupied_seconds for each in fed if each is not None]
    period = max([pipeline.busy_seconds(), *feeds])
    latency = pipeline.answer(0.0)
    around = ceil(latency / period) if period else 1
    in_flight = around + len(stages)
    return ServingPlan(stages, batch_size, in_flight, period, latency, skips)


def _splits(costs: Costs, result_bytes: int, objective: Objective) -> Iterator[Split]:
    hidden = objective == "throughput"
    join: Join = np.maximum if hidden else np.add
    if len(costs.devices) > MAX_DEVICES:
        yield from (split for _, split in best_splits(costs, _FORWARDS, join))
        return
    grid = Grid(costs)
    compute, transfer = (
        _stage_seconds(grid, costs, result_bytes, join),
        _transfers(grid, costs, join),
    )
    yield from (split for _, split in _solved(grid, compute, transfer, join))


def _solved(
    grid: Grid, compute: Floats, transfer: Floats, join: Join
) -> Iterator[tuple[float, Split]]:
    """The best split of every set of devices, where stages fit their memory."""
    earliest = grid.earliest_units(_FORWARDS)
    units = np.arange(grid.n_units)[:, None]

    def stage_cost(n_behind: int) -> Floats:
        return np.where(units >= earliest[n_behind][:, None, :], compute, np.inf)

    return solve(grid, stage_cost, transfer, join).splits()


def _stage_seconds(grid: Grid, costs: Costs, result_bytes: int, join: Join) -> Floats:
    """Entry ``[d, i, j]``: what a span takes on a device, with its feed and the last one's answer.

    Only the feed of the first span adds to a latency: others are sent at the same time.
    """
    compute, feeds = grid.compute_seconds.copy(), grid.feed_seconds()
    results = [
        Crossing(name, COORDINATOR_NAME, result_bytes, costs.link(name, COORDINATOR_NAME))
        for name in grid.names
    ]
    if join is np.maximum:
        compute = np.maximum(compute, feeds)
        occupied = np.array([each.occupied_seconds for each in results])
        compute[:, :, -1] = np.maximum(compute[:, :, -1], occupied[:, None])
    else:
        compute[:, 0] += feeds[:, 0] + grid.feed_latency_seconds()[:, 0]
        compute[:, :, -1] += np.array([each.transfer_seconds for each in results])[:, None]
    return compute


def _transfers(grid: Grid, costs: Costs, join: Join) -> Floats:
    """Entry ``[d, f, j]``: what a request takes from ``d`` to ``f`` before unit ``j``, one way."""
    n_devices = len(grid.names)
    found = np.full((n_devices, n_devices, grid.n_units), np.inf)
    for d, source in enumerate(grid.names):
        for f, target in enumerate(grid.names):
            found[d, f, 1:] = _one_way(costs, source, target, hidden=join is np.maximum)
    return found


def _one_way(costs: Costs, source: str, target: str, *, hidden: bool) -> Sequence[float]:
    link = costs.link(source, target)
    crossings = (Crossing(source, target, cut.forward_bytes, link) for cut in costs.cuts)
    return [c.occupied_seconds if hidden else c.transfer_seconds for c in crossings]
