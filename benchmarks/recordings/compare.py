"""Every way's error on devices of a family that it was taught nothing about."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from benchmarks.recordings.alternatives import Factors, Scalar, Trees, Work
from benchmarks.recordings.ours import Ours
from benchmarks.recordings.values import Recorded
from edgeweave.predict.features import Floats

__all__ = ["LISTED", "WAYS", "Errors", "Schedule", "Way", "compare", "completed"]

Units = np.ndarray[tuple[int], np.dtype[np.intp]]


class Way(Protocol):
    """Something that knows other devices."""

    def predict(self, seen: Units, seconds: Floats) -> Floats:
        """Seconds of all pieces on a new device, from those of the pieces seen."""
        ...


Teach = Callable[[Sequence[Floats], Floats, Sequence[str]], Way]

WAYS: Mapping[str, Teach] = {
    "ours": Ours,
    "scalar": lambda pieces, others, _: Scalar(others),
    "flops": lambda pieces, others, _: Work(pieces, roofline=False),
    "roofline": lambda pieces, others, _: Work(pieces, roofline=True),
    "trees": lambda pieces, others, _: Trees(pieces, others),
    "factors": lambda pieces, others, _: Factors(others),
}
"""From pieces, logarithms of other devices' seconds ``[device, piece]``, and their families."""
LISTED = ("scalar", "flops", "roofline", "trees")
"""What ours has to be better than."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How many samples are seen, how often they are drawn, and how much is held out together."""

    counts: tuple[int, ...]
    n_draws: int = 1
    n_folds: int = 10
    """Families are dealt into so many folds, if there are more of them."""
    most_folds: int = 10
    """No more folds than these are judged."""
    most_devices: int = 2
    """No more devices of a family than these are judged."""
    least_judged: int = 12
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Errors:
    """``|predicted / measured - 1|`` of the pieces that were not seen, by device."""

    median: dict[tuple[str, int], list[float]]
    mean: dict[tuple[str, int], list[float]]
    """By way and number of samples."""


def compare(recorded: Recorded, schedule: Schedule, ways: Mapping[str, Teach] = WAYS) -> Errors:
    """Leave out a fold of families, teach every way the other devices, and show it samples.

    All ways see the same samples and are judged by the same pieces, which stay the same for every
    number of samples of a draw.
    """
    found: dict[tuple[str, int, str], list[tuple[float, float]]] = defaultdict(list)
    families = np.array(recorded.families)
    for fold in _folds(recorded.families, schedule):
        out = np.isin(families, fold)
        others = completed(np.log(recorded.seconds[~out]))
        known = families[~out].tolist()
        taught = {name: teach(recorded.pieces, others, known) for name, teach in ways.items()}
        for family in fold:
            for device in np.flatnonzero(families == family)[: schedule.most_devices]:
                seconds = recorded.seconds[device]
                for seen, judged in _draws(seconds, schedule):
                    for name, way in taught.items():
                        predicted = way.predict(seen, seconds[seen])[judged]
                        errors = np.abs(predicted / seconds[judged] - 1)
                        key = name, len(seen), recorded.devices[device]
                        found[key].append((float(np.median(errors)), float(errors.mean())))
    medians: dict[tuple[str, int], list[float]] = defaultdict(list)
    means: dict[tuple[str, int], list[float]] = defaultdict(list)
    for (name, count, _), errors_of_device in found.items():
        median, mean = np.mean(errors_of_device, axis=0)
        medians[name, count].append(float(median))
        means[name, count].append(float(mean))
    return Errors(dict(medians), dict(means))


def completed(logs: Floats) -> Floats:
    """What a device did not run takes what its level and the piece's suggest.

    Logarithms of seconds ``[device, piece]``, NaN where not measured, as sums of the two.
    """
    levels = np.zeros(len(logs))
    for _ in range(20):
        pieces = np.nanmean(logs - levels[:, None], axis=0)
        levels = np.nanmean(logs - pieces, axis=1)
    return np.where(np.isnan(logs), levels[:, None] + pieces, logs)


def _folds(families: Sequence[str], schedule: Schedule) -> list[list[str]]:
    names = sorted(set(families))
    shuffled = np.random.default_rng(schedule.seed).permutation(names).tolist()
    folds = [shuffled[start :: schedule.n_folds] for start in range(schedule.n_folds)]
    return [fold for fold in folds if fold][: schedule.most_folds]


def _draws(seconds: Floats, schedule: Schedule) -> list[tuple[Units, Units]]:
    """Samples and what is judged, for every draw and every number of samples that leaves enough."""
    measured = np.flatnonzero(~np.isnan(seconds))
    counts = [n for n in schedule.counts if n + schedule.least_judged <= len(measured)]
    found = []
    for draw in range(schedule.n_draws):
        order = np.random.default_rng(schedule.seed + draw).permutation(measured)
        found += [(order[:count], order[max(counts) :]) for count in counts]
    return found
