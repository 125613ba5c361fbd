"""What a held-out kind teaches when it works: forgetting, stage sums, roll-back and what it costs.

forgetting  one network is learnt, then all the others, whose units are more than are kept;
            judged are the first one's units. Beside it, a store that keeps the last ones
stages      sums over neighbouring units, of random cuts, instead of single units; judged are
            units that are in none of them, and sums of such units
roll-back   stages as they were measured and 3 and 30 times as slow, noted one at a time, on a
            device that has its probe alone and on one that has learnt two networks
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from benchmarks.latency.held_out import measurements
from benchmarks.latency.samples import Samples, Units
from edgeweave.device.facts import read_facts
from edgeweave.predict import DeviceLatency, LatencyModel, Measurement
from edgeweave.predict.features import Floats
from edgeweave.predict.learning import MOST_KEPT, Lessons, learn
from edgeweave.train import Experience

__all__ = ["learning", "mape"]

_SEED = 0
_N_FIRST = 3
"""How many of the networks take their turn as the first; one when it is quick."""
_N_STAGES = (10, 50)
_N_JUDGED_STAGES = 100
_N_STAGES_EACH = 4
_MOST_STAGES = 300
_WRONG = (3, 30)


def learning(samples: Samples, kind: str, model: LatencyModel, *, quick: bool) -> dict[str, float]:
    """All of it, for one kind and a model that knows nothing of it."""
    probed = DeviceLatency(model, measurements(samples, kind, samples.units("probe")))
    return {
        **_forgetting(samples, kind, probed, n_first=1 if quick else _N_FIRST),
        **_stages(samples, kind, probed),
        **_roll_back(samples, kind, probed, n_each=1 if quick else _N_STAGES_EACH),
        **_cost(samples, kind, probed),
    }


def mape(predicted: Floats, measured: Floats) -> float:
    """The mean of |predicted / measured - 1|, where something was measured."""
    some = measured > 0
    return float(np.abs(predicted[some] / measured[some] - 1).mean())


def _forgetting(
    samples: Samples, kind: str, probed: DeviceLatency, *, n_first: int
) -> dict[str, float]:
    networks = _networks(samples)
    found = []
    for start in range(0, len(networks), -(-len(networks) // n_first)):
        order = [*networks[start:], *networks[:start]]
        first = order[0]
        everything: list[Measurement] = []
        lessons, errors = Lessons(), [_error(samples, kind, probed, first)]
        for units in order:
            batch = measurements(samples, kind, units)
            learnt = learn(probed, lessons.noted(batch))
            lessons, everything = learnt.lessons, everything + batch
            if units is first:
                errors.append(_error(samples, kind, learnt.latency, first))
        errors.append(_error(samples, kind, learnt.latency, first))
        last = probed.given(everything[-MOST_KEPT:])
        found.append((*errors, _error(samples, kind, last, first)))
    names = ("unknown", "learnt", "replayed", "last_kept")
    columns = zip(*found, strict=True)
    return {f"{name}_network_mape": fmean(each) for name, each in zip(names, columns, strict=True)}


def _stages(samples: Samples, kind: str, probed: DeviceLatency) -> dict[str, float]:
    """The halves of the units are those of ``unseen_n_samples_mape``."""
    shuffled = np.random.default_rng(_SEED).permutation(samples.units("known"))
    half = len(shuffled) // 2
    learnt, judged = np.sort(shuffled[:half]), np.sort(shuffled[half:])
    chance = np.random.default_rng(_SEED)
    networks, others = (_networks(samples, among=units) for units in (learnt, judged))
    stages = _random_stages(samples, kind, networks, max(_N_STAGES), chance)
    held_out = _random_stages(samples, kind, others, _N_JUDGED_STAGES, chance)
    found = {"unseen_stage_zero_shot_mape": _stage_error(probed, held_out)}
    for count in _N_STAGES:
        latency = probed.given(stages[:count])
        found[f"unseen_{count}_stages_mape"] = _error(samples, kind, latency, judged)
        found[f"unseen_stage_{count}_stages_mape"] = _stage_error(latency, held_out)
    return found


def _roll_back(
    samples: Samples, kind: str, probed: DeviceLatency, *, n_each: int
) -> dict[str, float]:
    networks = _networks(samples)
    two = tuple(m for units in networks[:2] for m in measurements(samples, kind, units))
    chance = np.random.default_rng(_SEED)
    stages = _random_stages(samples, kind, networks[2:], n_each * len(networks[2:]), chance)
    outcomes = {
        factor: fmean(
            learn(probed, Lessons(kept).noted([_slower(stage, factor)])).verdicts == ()
            for kept in ((), two)
            for stage in stages
        )
        for factor in (1, *_WRONG)
    }
    refused = {f"wrong_{factor}x_refused": 1 - outcomes[factor] for factor in _WRONG}
    return {"right_stages_kept": outcomes[1], **refused}


def _cost(samples: Samples, kind: str, probed: DeviceLatency) -> dict[str, float]:
    """Seconds on this machine, and the bytes of a full store."""
    chance = np.random.default_rng(_SEED)
    networks = _networks(samples)
    stages = _random_stages(samples, kind, networks, _MOST_STAGES, chance)
    units = tuple(measurements(samples, kind, np.concatenate(networks))[:MOST_KEPT])
    began = time.perf_counter()
    probed.given(stages).predict(samples.pieces(samples.units("known")))
    predicted = time.perf_counter()
    learn(probed, Lessons(units).noted(stages[:1]))
    learnt = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="learnt-") as folder:
        facts = read_facts(torch.device("cpu"), torch.get_num_threads())
        Experience(Path(folder)).note(kind, facts, units)
        size_bytes = sum(path.stat().st_size for path in Path(folder).iterdir())
    return {
        "predicting_300_stages_seconds": predicted - began,
        "learning_seconds": learnt - predicted,
        "learnt_bytes": float(size_bytes),
    }


def _error(samples: Samples, kind: str, latency: DeviceLatency, units: Units) -> float:
    return mape(latency.predict(samples.pieces(units)).seconds, samples.seconds[kind][units])


def _stage_error(latency: DeviceLatency, stages: Sequence[Measurement]) -> float:
    measured = [(each.forward_seconds, each.backward_seconds or 0.0) for each in stages]
    return mape(latency.predict([each.rows for each in stages]).seconds, np.array(measured))


def _networks(samples: Samples, *, among: Units | None = None) -> list[Units]:
    """The units of each known network, or those ``among`` some, where they are more than a few."""
    names = np.array(samples.networks)
    known = samples.units("known") if among is None else among
    found = [known[names[known] == name] for name in dict.fromkeys(names[known].tolist())]
    return [units for units in found if len(units) > 4]


def _random_stages(
    samples: Samples, kind: str, networks: Sequence[Units], n: int, chance: np.random.Generator
) -> list[Measurement]:
    """Sums over what two to four devices would hold, of one network after another."""
    found: list[Measurement] = []
    while len(found) < n:
        units = networks[len(found) % len(networks)]
        inner = chance.choice(np.arange(1, len(units)), chance.integers(1, 4), replace=False)
        start, stop = list(pairwise([0, *np.sort(inner), len(units)]))[
            chance.integers(1 + len(inner))
        ]
        held = units[start:stop]
        seconds = samples.seconds[kind][held].sum(axis=0)
        rows = np.concatenate(samples.pieces(held))
        found.append(Measurement(rows, float(seconds[0]), float(seconds[1])))
    return found


def _slower(measured: Measurement, factor: float) -> Measurement:
    backward = measured.backward_seconds
    return Measurement(
        measured.rows,
        factor * measured.forward_seconds,
        None if backward is None else factor * backward,
    )
