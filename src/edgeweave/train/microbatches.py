"""How a batch is cut into microbatches: as told, as a checkpoint had it, or as seems fastest."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeweave.core.errors import CheckpointError, ConfigError, PlanError
from edgeweave.plan import PlannedBatch, best_microbatching, microbatch_sizes, worthwhile_sizes
from edgeweave.program import has_batch_norm
from edgeweave.train import checkpoint as checkpoints
from edgeweave.train.measuring.measurements import Measurements

__all__ = ["Chosen", "choose_microbatches", "kept_size", "microbatch_size"]

_log = logging.getLogger(__name__)

_BATCH_NORM_SAMPLES = 16
"""With fewer BatchNorm learns worse (Wu and He, Group Normalization, arXiv 1803.08494, fig. 1)."""
_BATCH_NORM_NEEDS = 2
"""The variance of one sample may be that of one number, which there is none of."""
_REPETITIONS = (3, 8)
"""At least and at most; fewer for larger sizes, which take longer and vary less."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A plan whose microbatches nobody gave the number of, and the batches that it is for."""

    planned: PlannedBatch
    batch_size: int

    def serves(self, batch_size: int, size: int | None) -> bool:
        """Whether it is for such batches, and its microbatches have the size that is wanted."""
        return self.batch_size == batch_size and size in (None, self.planned.microbatch_size)


def microbatch_size(batch_size: int, n_microbatches: int) -> int:
    """The samples of each microbatch; the last may be smaller, or not needed."""
    if batch_size < 1:
        raise ConfigError(f"batch_size is at least 1 (got {batch_size}).")
    if not 1 <= n_microbatches <= batch_size:
        raise ConfigError(
            f"n_microbatches is at least 1 and at most batch_size (got {n_microbatches} for "
            f"{batch_size})."
        )
    return -(-batch_size // n_microbatches)


def kept_size(directory: Path) -> int:
    """The samples of a microbatch in the run of the newest checkpoint in ``directory``."""
    path = checkpoints.latest(directory)
    kept = checkpoints.load_progress(path).settings.get("microbatch_size", "")
    if not (kept.isdecimal() and len(kept) < 10 and int(kept) > 0):
        raise CheckpointError(
            f"{path} says how many samples a microbatch has (got {kept!r}). Delete it to resume "
            "from the one before."
        )
    return int(kept)


def choose_microbatches(
    measurements: Measurements,
    batch_size: int,
    *,
    schedule: str,
    weight_aggregation: int | None = None,
) -> PlannedBatch:
    """The microbatches with the shortest predicted step, from few measured sizes.

    Measured are the smallest size worth trying and one in the middle; the others are on a line
    with them. What is chosen is measured too, and the choice made again, until it falls on a size
    that was measured. A size at which the whole model does not fit every device cannot be measured,
    though the stages of a plan may fit; then the line has to do.
    """
    program = measurements.program
    bounds = (_BATCH_NORM_SAMPLES, _BATCH_NORM_NEEDS) if has_batch_norm(program) else (1,)
    n_stages = min(len(measurements.devices), len(program.unit_numbers))
    sizes = microbatch_sizes(batch_size, at_least=bounds[-1])
    fitting = [size for size in sizes if measurements.fits(size)] or list(sizes[-1:])
    worthwhile = worthwhile_sizes(batch_size, n_stages, at_least=bounds[0])
    first = [size for size in worthwhile if size in fitting] or fitting[:1]

    def measure(size: int) -> None:
        least, most = _REPETITIONS
        measurements.measure(size, repetitions=max(least, min(most, batch_size // size)))
        _log.info("measured microbatches of %d samples", size)

    for size in sorted({first[-1], first[(len(first) - 1) // 2]}):
        measure(size)
    while True:
        found = _best(measurements, batch_size, bounds, schedule, weight_aggregation)
        size = found.microbatch_size
        if size in measurements.measured or not measurements.fits(size):
            return found
        measure(size)


def _best(
    measurements: Measurements,
    batch_size: int,
    bounds: Sequence[int],
    schedule: str,
    weight_aggregation: int | None,
) -> PlannedBatch:
    """With microbatches of at least the first bound; where nothing fits, of the next."""
    refusal: PlanError | None = None
    for at_least in bounds:
        try:
            return best_microbatching(
                measurements.costs_at,
                batch_size,
                at_least=at_least,
                schedule=schedule,
                weight_aggregation=weight_aggregation,
            )
        except PlanError as error:
            refusal = error
    assert refusal is not None, "there is a bound"
    raise refusal
