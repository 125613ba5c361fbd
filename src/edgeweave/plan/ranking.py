"""From splits to the fastest plan: a lower bound sorts them, the simulation decides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import ceil, inf

from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.plan.costs import (
    Costs,
    Crossing,
    feeding,
    stage_seconds,
)
from edgeweave.plan.memory import stage_memory_bytes
from edgeweave.plan.replication import replication_for
from edgeweave.plan.routes import Route, routes
from edgeweave.plan.schedule import is_flushed
from edgeweave.plan.simulate import with_simulated_step
from edgeweave.plan.splits import Microbatching, Split
from edgeweave.plan.stages import Plan, Stage

__all__ = ["fastest", "plan_from_split", "step_seconds_at_least"]

_ROUNDING = 1 + 1e-9


def fastest(
    splits: Iterable[Split],
    costs: Costs,
    run: Microbatching,
    *,
    limit_seconds: float = inf,
    most: int | None = None,
) -> Plan | None:
    """The split whose simulated step is shortest, or nothing if none keeps the limit.

    With ``most`` only so many are simulated, those with the least lower bounds.

    Of equally fast splits the one with the fewest devices wins, then the order of the devices in
    ``costs``. A split that cannot win by the lower bound of its step is not simulated.
    """
    positions = {device.device: index for index, device in enumerate(costs.devices)}

    def preference(split: Split) -> tuple[int, list[int], tuple[int, ...]]:
        return len(split.devices), [positions[name] for name in split.devices], split.bounds

    bounds = {split: step_seconds_at_least(split, costs, run) for split in splits}
    plans: list[tuple[Split, Plan]] = []
    ranked = sorted(bounds, key=lambda split: (bounds[split], preference(split)))
    for split in ranked[:most]:
        if bounds[split] > limit_seconds * _ROUNDING:
            break
        plan = plan_from_split(split, costs, run)
        plans.append((split, plan))
        limit_seconds = min(limit_seconds, plan.step_seconds)
    equal = [pair for pair in plans if pair[1].step_seconds <= limit_seconds * _ROUNDING]
    return min(equal, key=lambda pair: preference(pair[0]))[1] if equal else None


def plan_from_split(split: Split, costs: Costs, run: Microbatching) -> Plan:
    """The split with its predicted memory and times, the step simulated."""
    n_stages = len(split.devices)
    stages = tuple(
        _stage(costs, place, run, n_behind=n_stages - 1 - index)
        for index, place in enumerate(split.stages())
    )
    draft = Plan(
        stages=stages,
        schedule=run.schedule,
        n_microbatches=run.n_microbatches,
        extra_in_flight=run.extra_in_flight,
        period_seconds=_period_seconds(split, costs, run),
        step_seconds=0.0,
        skips=run.skips,
        weight_aggregation=run.weight_aggregation,
    )
    plan = with_simulated_step(draft, costs)
    replication = replication_for(plan.devices, plan.bounds, plan.step_seconds, costs)
    return replace(plan, replication=replication)


def _stage(
    costs: Costs, place: tuple[str, int, int], run: Microbatching, *, n_behind: int
) -> Stage:
    device, first, stop = place
    held, older = run.in_flight(n_behind), run.older_versions(n_behind)
    seconds = stage_seconds(costs, device, first, stop)
    return Stage(
        device=device,
        first_unit=first,
        stop_unit=stop,
        forward_seconds=seconds.forward,
        backward_seconds=seconds.backward,
        memory_bytes=stage_memory_bytes(costs, first, stop, held, older),
    )


def _period_seconds(split: Split, costs: Costs, run: Microbatching) -> float:
    compute = [stage_seconds(costs, *place).microbatch for place in split.stages()]
    transfers = [
        crossing.transfer_seconds
        for route in _routes(split, costs, run)
        for crossing in (route.there, route.back)
    ]
    feeds = [fed.occupied_seconds for fed in _feeds(split, costs) if fed is not None]
    return max(compute + transfers + feeds)


def _routes(split: Split, costs: Costs, run: Microbatching) -> tuple[Route, ...]:
    return routes(costs, split.devices, split.bounds, run.skips)


def _feeds(split: Split, costs: Costs) -> list[Crossing | None]:
    return [feeding(costs, *place) for place in split.stages()]


def step_seconds_at_least(split: Split, costs: Costs, run: Microbatching) -> float:
    """A step takes at least this long, whichever stage or link is the busiest.

    ::

        stage 0   [F0]....................................[B][U0]    in between, some stage
        stage s         [ F and B of every microbatch     ]          has all its work to do

    ``around`` is what the first microbatch needs to reach the stage and the last to return from
    it. A stage that holds few microbatches waits for the round trip behind it as often as its
    places are filled; a link carries one message after another. What goes past stages comes on
    top and keeps its own links busy.

    With feeds, a step may begin while the one before drains, see ``_fed_seconds_at_least``. Without
    a flush nothing is filled or drained, see ``_streamed_seconds_at_least``.
    """
    if not is_flushed(run.schedule):
        return _streamed_seconds_at_least(split, costs, run)
    compute_seconds = [stage_seconds(costs, *place).microbatch for place in split.stages()]
    ways = _routes(split, costs, run)
    pairs = [(route.there, route.back) for route in ways if not route.is_direct]
    n = run.n_microbatches
    round_trips = [sum(crossing.transfer_seconds for crossing in pair) for pair in pairs]
    behind = sum(compute_seconds) + sum(round_trips)
    around = 0.0
    least = max([0.0, *(n * _busiest(route) for route in ways if route.is_direct)])
    for index, compute in enumerate(compute_seconds):
        fillings = ceil(n / run.in_flight(len(compute_seconds) - 1 - index))
        least = max(least, around + n * compute, around + fillings * behind)
        if index < len(pairs):
            round_trip = compute + round_trips[index]
            around += round_trip
            behind -= round_trip
            occupied = max(crossing.occupied_seconds for crossing in pairs[index])
            least = max(least, around + (n - 1) * occupied + compute_seconds[index + 1])
    return max(least, _fed_seconds_at_least(split, costs, run, ways, least))


def _streamed_seconds_at_least(split: Split, costs: Costs, run: Microbatching) -> float:
    """In the long run: the work of the busiest stage or link, and the round trips of a stage.

    A place of a stage is taken from a microbatch's forward to the end of its backward.
    """
    n = run.n_microbatches
    stages = [stage_seconds(costs, *place) for place in split.stages()]
    ways = _routes(split, costs, run)
    trips = [
        sum(crossing.transfer_seconds for crossing in (route.there, route.back))
        for route in ways
        if not route.is_direct
    ]
    feeds = [fed.occupied_seconds for fed in _feeds(split, costs) if fed is not None]
    least = max([0.0, *(n * _busiest(route) for route in ways), *(n * fed for fed in feeds)])
    around = 0.0
    for n_behind, stage in enumerate(reversed(stages)):
        around += stage.microbatch + (trips[-n_behind] if n_behind else 0.0)
        least = max(
            least, n * stage.microbatch + stage.update, n * around / run.in_flight(n_behind)
        )
    return least


def _busiest(route: Route) -> float:
    return max(route.there.occupied_seconds, route.back.occupied_seconds)


def _fed_seconds_at_least(
    split: Split,
    costs: Costs,
    run: Microbatching,
    ways: tuple[Route, ...],
    least: float,
) -> float:
    """What a step takes at least because the coordinator feeds it.

    Feeds begin to leave one result after the last forward of the step before. What that step has
    left to do is the backward of what the first stage holds, one after another through all stages:

    ::

        last F -> result -> feeds of this step -> all from the first forward to the update
        last F -> the backwards still held -> update of the step before
    """
    feeds = _feeds(split, costs)
    if not any(feeds):
        return 0.0
    seconds = [stage_seconds(costs, *place) for place in split.stages()]
    result = costs.link(split.devices[-1], COORDINATOR_NAME).latency_seconds
    backwards = [each.backward for each in seconds]
    returns = [route.back.transfer_seconds for route in ways]
    longest = max([*backwards, *(route.back.occupied_seconds for route in ways)])
    held = run.in_flight(len(seconds) - 1)
    drain = sum(backwards) + sum(returns) + (held - 1) * longest
    first = 0.0 if feeds[0] is None else feeds[0].transfer_seconds
    bound = result + first + least - drain
    forward = 0.0
    for index in reversed(range(len(seconds))):
        forward += seconds[index].forward
        if index < len(seconds) - 1:
            forward += ways[index].there.transfer_seconds
        fed = feeds[index]
        if fed is not None:
            arrived = run.n_microbatches * fed.occupied_seconds + fed.arrival_seconds
            bound = max(bound, result + arrived + forward - (held - 1) * longest)
    return bound
