"""How many microbatches a batch is cut into, and of what size.

Many small ones keep a pipeline full and need little memory each; few large ones cost less per
sample. Which is better depends on what the devices take at each size, so every size that is worth
it is planned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isqrt
from typing import Literal

from edgeweave.core.errors import ConfigError, PlanError
from edgeweave.plan.costs import Costs
from edgeweave.plan.partition import partition
from edgeweave.plan.stages import Plan

__all__ = ["PlannedBatch", "best_microbatching", "microbatch_sizes"]

_MOST_PER_DEVICE = 4
"""Beyond 4 microbatches for each device filling and draining are at most a fifth of a step."""


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """A plan, the samples in each of its microbatches, and the costs that it was made from."""

    plan: Plan
    microbatch_size: int
    costs: Costs


def microbatch_sizes(batch_size: int) -> tuple[int, ...]:
    """The divisors of the batch size, largest first.

    >>> microbatch_sizes(12)
    (12, 6, 4, 3, 2, 1)
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be positive (got {batch_size}). Use at least one.")
    small = [size for size in range(1, isqrt(batch_size) + 1) if batch_size % size == 0]
    return tuple(sorted({*small, *(batch_size // size for size in small)}, reverse=True))


def best_microbatching(
    costs_at: Callable[[int], Costs],
    batch_size: int,
    *,
    sizes: Iterable[int] | None = None,
    schedule: str = "1f1b",
    pin_first: str | None = None,
    pin_last: str | None = None,
    use: Literal["fastest", "all"] = "fastest",
) -> PlannedBatch:
    """The plan and microbatch size with the shortest simulated step for a batch.

    ``costs_at(size)`` are the costs for microbatches of so many samples, measured or predicted; it
    is asked once for each size tried, the largest first. ``sizes=None`` tries the divisors of the
    batch size up to 4 microbatches for each device, and smaller ones only as long as nothing fits.
    A size that does not divide the batch leaves a smaller last microbatch, which is planned as if
    it were whole. Assumed: costs at different sizes are comparable (made by the same means on the
    same devices), and the size changes nothing that is learnt. That holds for means over samples;
    BatchNorm sees its microbatch only. Of equally fast ones the largest size is taken.
    ``PlanError``, that of the smallest size, if none fits.
    """
    tried = microbatch_sizes(batch_size) if sizes is None else _checked(sizes, batch_size)
    best: PlannedBatch | None = None
    refusal: PlanError | None = None
    for size in tried:
        n_microbatches = -(-batch_size // size)
        if best is not None and sizes is None and n_microbatches > _most_worthwhile(best.costs):
            break
        costs = costs_at(size)
        try:
            plan = partition(
                costs,
                n_microbatches=n_microbatches,
                schedule=schedule,
                pin_first=pin_first,
                pin_last=pin_last,
                use=use,
            )
        except PlanError as error:
            refusal = error
            continue
        if best is None or plan.step_seconds < best.plan.step_seconds:
            best = PlannedBatch(plan, size, costs)
    if best is None:
        assert refusal is not None
        raise refusal
    return best


def _most_worthwhile(costs: Costs) -> int:
    return _MOST_PER_DEVICE * min(len(costs.devices), len(costs.units))


def _checked(sizes: Iterable[int], batch_size: int) -> tuple[int, ...]:
    tried = tuple(sorted({*sizes}, reverse=True))
    if not tried or not all(1 <= size <= batch_size for size in tried):
        raise ConfigError(
            f"sizes of microbatches are 1 to batch_size, {batch_size}, and at least one "
            f"(got {list(tried)}). Correct them."
        )
    return tried
