"""How many microbatches a batch is cut into, and of what size.

Many small ones keep a pipeline full and need little memory each; few large ones cost less per
sample. Which is better depends on what the devices take at each size, so every size that is worth
it is planned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from edgeweave.core.errors import ConfigError, PlanError
from edgeweave.plan.costs import Costs
from edgeweave.plan.partition import partition
from edgeweave.plan.stages import Plan

__all__ = [
    "PlannedBatch",
    "TriedSize",
    "best_microbatching",
    "microbatch_sizes",
    "worthwhile_sizes",
]

_MOST_PER_STAGE = 8
"""Links are stages too: with n devices and what lies between, a fifth of a step is filling."""
_WORTH_SMALLER = 1.03
"""What each message costs beside its bytes is in no prediction: many microbatches look too good."""


@dataclass(frozen=True, slots=True)
class TriedSize:
    """A batch cut into so many microbatches, and the step that its best plan would take.

    ``step_seconds=None``: no plan fits the devices' memory.
    """

    n_microbatches: int
    microbatch_size: int
    step_seconds: float | None


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """A plan, the samples in each of its microbatches, and the costs that it was made from.

    ``tried`` has every size that was planned, largest first, the chosen one among them.
    """

    plan: Plan
    microbatch_size: int
    costs: Costs
    tried: tuple[TriedSize, ...]


def microbatch_sizes(batch_size: int, *, at_least: int = 1) -> tuple[int, ...]:
    """The sizes that cut a batch into 1, 2, 4, 8, ... microbatches, largest first.

    Where the count does not divide the batch, the last microbatch is smaller. None is below
    ``at_least``, the last one included, but a batch smaller than that is left whole.

    >>> microbatch_sizes(100)
    (100, 50, 25, 13, 7, 4, 2, 1)
    >>> microbatch_sizes(9, at_least=2)
    (9, 5, 3)
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be positive (got {batch_size}). Use at least one.")
    doublings = range((batch_size - 1).bit_length() + 1)
    sizes = dict.fromkeys(-(-batch_size // 2**doubling) for doubling in doublings)
    least = min(at_least, batch_size)
    return tuple(size for size in sizes if (batch_size % size or size) >= least)


def worthwhile_sizes(batch_size: int, n_stages: int, *, at_least: int = 1) -> tuple[int, ...]:
    """Of ``microbatch_sizes`` those up to 8 microbatches for each of ``n_stages``.

    >>> worthwhile_sizes(100, 2, at_least=9)
    (100, 50, 25, 13)
    """
    sizes = microbatch_sizes(batch_size, at_least=at_least)
    return tuple(size for size in sizes if -(-batch_size // size) <= _MOST_PER_STAGE * n_stages)


def best_microbatching(
    costs_at: Callable[[int], Costs],
    batch_size: int,
    *,
    sizes: Iterable[int] | None = None,
    at_least: int = 1,
    schedule: str = "1f1b",
    weight_aggregation: int | None = None,
    pin_first: str | None = None,
    pin_last: str | None = None,
    use: Literal["fastest", "all"] = "fastest",
) -> PlannedBatch:
    """The largest microbatch size whose simulated step is within 3 % of the shortest, and its plan.

    ``costs_at(size)`` are the costs for microbatches of so many samples, measured or predicted; it
    is asked once for each size tried, the largest first. ``sizes=None`` tries
    ``worthwhile_sizes``, and smaller ones, down to ``at_least``, only as long as nothing fits. A
    last microbatch that is smaller is planned as if it were whole. Assumed: costs at different
    sizes are comparable (made by the same means on the same devices), and the size changes nothing
    that is learnt. That holds for means over samples; BatchNorm sees its microbatch only, and
    learns less from few samples: ``at_least`` keeps it from them. ``PlanError``, that of the
    smallest size, if none fits.
    """
    fitting: list[tuple[Plan, int, Costs]] = []
    refusal: PlanError | None = None
    tried: list[TriedSize] = []
    if sizes is None:
        candidates = microbatch_sizes(batch_size, at_least=at_least)
    else:
        candidates = _checked(sizes, batch_size)
    for size in candidates:
        if fitting and sizes is None:
            _, _, costs = fitting[0]
            n_stages = min(len(costs.devices), len(costs.units))
            if size not in worthwhile_sizes(batch_size, n_stages, at_least=at_least):
                break
        n_microbatches = -(-batch_size // size)
        costs = costs_at(size)
        try:
            plan = partition(
                costs,
                n_microbatches=n_microbatches,
                schedule=schedule,
                weight_aggregation=weight_aggregation,
                pin_first=pin_first,
                pin_last=pin_last,
                use=use,
            )
        except PlanError as error:
            refusal = error
            tried.append(TriedSize(n_microbatches, size, None))
            continue
        tried.append(TriedSize(n_microbatches, size, plan.step_seconds))
        fitting.append((plan, size, costs))
    if not fitting:
        assert refusal is not None
        raise refusal
    good_seconds = _WORTH_SMALLER * min(plan.step_seconds for plan, _, _ in fitting)
    chosen = next(each for each in fitting if each[0].step_seconds <= good_seconds)
    return PlannedBatch(*chosen, tuple(tried))


def _checked(sizes: Iterable[int], batch_size: int) -> tuple[int, ...]:
    tried = tuple(sorted({*sizes}, reverse=True))
    if not tried or not all(1 <= size <= batch_size for size in tried):
        raise ConfigError(
            f"sizes of microbatches are 1 to batch_size, {batch_size}, and at least one "
            f"(got {list(tried)}). Correct them."
        )
    return tried
