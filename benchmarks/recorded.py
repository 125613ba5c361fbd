"""Other people's devices: ours and every listed alternative from few samples of an unseen device.

Of each recorded data set whole families of devices are left out in turn (``benchmarks.recordings``
says what a family is). Ours and the alternatives know what the other devices took, see the same
samples of the new one, and predict pieces of work that it was not seen to run. An error is
``|predicted / measured - 1|``; a device counts by its median and mean, and devices equally.

The data are no part of the checkout: without them the benchmark says so and measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import fmean

from benchmarks.claims import RECORDED_DATA
from benchmarks.harness import Result
from benchmarks.recordings import deepbench, nasbench, ncnn, tophub
from benchmarks.recordings.compare import LISTED, WAYS, Errors, Schedule, compare
from benchmarks.recordings.values import Recorded

__all__ = ["SETS", "DataSet", "run"]


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set, and how much of it is judged."""

    read: Callable[[], Recorded]
    full: Schedule
    quick: Schedule | None
    """None where ``--quick`` leaves it out."""


SETS: Mapping[str, DataSet] = {
    "tophub": DataSet(
        tophub.read,
        Schedule((5, 10, 20, 50, 100), n_draws=3),
        Schedule((10, 50), most_folds=2, most_devices=1),
    ),
    "deepbench": DataSet(
        deepbench.read,
        Schedule((5, 10, 20, 50, 100), n_draws=3),
        Schedule((10, 50), most_folds=1, most_devices=1),
    ),
    "ncnn": DataSet(
        ncnn.read, Schedule((5, 10, 20), n_draws=2, n_folds=5, most_folds=3, most_devices=1), None
    ),
    "nasbench": DataSet(nasbench.read, Schedule((5, 10, 20, 50), n_draws=2, most_folds=3), None),
}


def run(*, quick: bool) -> Result:
    """All data sets; ``quick`` two, with one or two families held out."""
    metrics: dict[str, float] = {}
    samples: dict[str, list[float]] = {}
    lines: list[str] = []
    sizes: dict[str, list[int]] = {}
    for name in RECORDED_DATA:
        each = SETS[name]
        schedule = each.quick if quick else each.full
        if schedule is None:
            continue
        try:
            recorded = each.read()
        except FileNotFoundError as error:
            lines.append(f"{name}: no data ({error.filename}). Set EDGEWEAVE_DATA to their folder.")
            continue
        errors = compare(recorded, schedule)
        metrics.update(_metrics(name, errors))
        samples.update(_samples(name, errors))
        lines += _lines(name, errors)
        sizes[name] = [len(recorded.devices), len(set(recorded.families)), len(recorded.pieces)]
    return Result(
        name="recorded",
        quick=quick,
        metrics=metrics,
        lines=tuple(lines),
        settings={
            "seed": 0,
            "devices, families, pieces": sizes,
        },
        samples=samples,
    )


def _metrics(name: str, errors: Errors) -> dict[str, float]:
    found = {
        f"recorded_{name}_over_best": _over_best(errors.median),
        f"recorded_{name}_mean_over_best": _over_best(errors.mean),
    }
    for way in WAYS:
        suffix = "" if way == "ours" else f"_{way}"
        found[f"recorded_{name}_10_samples_error{suffix}"] = fmean(errors.median[way, 10])
    return found


def _over_best(errors: Mapping[tuple[str, int], Sequence[float]]) -> float:
    """Ours to the best listed alternative of each number of samples: geometric mean of these."""
    counts = sorted({count for _, count in errors})
    ratios = [
        fmean(errors["ours", count]) / min(fmean(errors[way, count]) for way in LISTED)
        for count in counts
    ]
    return exp(fmean(map(log, ratios)))


def _samples(name: str, errors: Errors) -> dict[str, list[float]]:
    return {
        f"{name}, {way}, {count}, {statistic}, by device": values
        for statistic, found in (("median", errors.median), ("mean", errors.mean))
        for (way, count), values in found.items()
    }


def _lines(name: str, errors: Errors) -> list[str]:
    counts = sorted({count for _, count in errors.median})
    return [
        f"{name:>10} {way:>9}  "
        + "  ".join(
            f"{count}: {fmean(errors.median[way, count]):.3f}/{fmean(errors.mean[way, count]):.3f}"
            for count in counts
        )
        for way in WAYS
    ]
