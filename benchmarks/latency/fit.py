"""Make the latency model that the package ships, from ``samples.npz``.

    python -m benchmarks.latency.fit

Random networks teach, known ones are left for judging. In four steps: what work costs by family;
how alike operators are; the function that all kinds share; and every kind's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans

import edgeweave.predict
from benchmarks.latency.samples import Samples
from benchmarks.latency.scales import SMALL_SECONDS, Noise, fit_own, fit_shared, fit_work_costs
from benchmarks.latency.solving import Solver
from benchmarks.latency.teaching import Teaching, teaching
from edgeweave.predict.embedding import Alikeness, Embedding
from edgeweave.predict.features import FAMILIES, Floats
from edgeweave.predict.model import LatencyModel, Prior, plain_seconds

__all__ = ["PRIOR", "Scales", "Teaching", "fit", "fit_scales", "fit_work_costs", "teaching"]

PRIOR = Prior(
    own=0.7,
    local=0.2,
    mixture=0.8,
    likeness=0.8,
    noise=0.1,
    small_noise=0.2,
    small_seconds=SMALL_SECONDS,
)
"""Chosen by hand on a quarter of the random networks on kinds held out, never on known networks."""

_N_TYPICAL, _N_TYPICAL_OWN = 120, 60
_MANY_SIZED, _TIMES_AS_MANY = ("conv", "depthwise", "matmul"), 3
_MOST_CLUSTERED = 3000
_STEPS, _OWN_STEPS = 3, 2


@dataclass(frozen=True, slots=True)
class Scales:
    """How alike operators are: for what all kinds share, and for how kinds differ from it."""

    shared: Embedding
    shared_noise: Noise
    own: Embedding
    own_noise: Noise
    likeness: float
    """How alike forward and backward of one kind are."""


def fit_scales(taught: Teaching, work_costs: Floats, *, seed: int = 0) -> Scales:
    """By marginal likelihood, and with typical operators chosen among those that teach."""
    plain = plain_seconds(work_costs, taught.rows)
    alikeness, noise = fit_shared(taught, plain, seed=seed)
    shared = _embedding(taught, alikeness, _N_TYPICAL)
    _, seconds = _shared(taught, shared, plain, noise)
    own_alikeness, own_noise, likeness = fit_own(taught, seconds, seed=seed)
    own = _embedding(taught, own_alikeness, _N_TYPICAL_OWN)
    return Scales(shared, noise, own, own_noise, likeness)


def fit(taught: Teaching, scales: Scales, work_costs: Floats) -> LatencyModel:
    """The model of what these kinds share and how each of them differs."""
    plain = plain_seconds(work_costs, taught.rows)
    shared, seconds = _shared(taught, scales.shared, plain, scales.shared_noise)
    solver = Solver(taught, scales.own)
    kinds = [
        [
            solver.coefficients(each, wanted, scales.own_noise, n_steps=_OWN_STEPS)
            for each, wanted in zip(seconds, log_seconds.T, strict=True)
        ]
        for log_seconds in taught.log_seconds.values()
    ]
    return LatencyModel(
        embedding=scales.shared,
        own=scales.own,
        work_costs=work_costs,
        shared=shared,
        kinds=np.array(kinds),
        kind_names=tuple(taught.log_seconds),
        prior=PRIOR,
    )


def _shared(
    taught: Teaching, embedding: Embedding, plain: Floats, noise: Noise
) -> tuple[Floats, Floats]:
    """The coefficients, and ``[direction, operator]`` what operators then take."""
    solver = Solver(taught, embedding)
    found = [
        solver.coefficients(each, wanted, noise, n_steps=_STEPS)
        for each, wanted in zip(plain, taught.typical().T, strict=True)
    ]
    return np.array(found), plain * np.exp([solver.values(each) for each in found])


def _embedding(taught: Teaching, alikeness: Alikeness, n_typical: int) -> Embedding:
    """Typical are the operators nearest to the centres of clusters."""
    chance = np.random.default_rng(0)
    typical = {}
    for index, name in enumerate(FAMILIES):
        rows = np.unique(taught.rows[taught.rows[:, 0] == index, 1:], axis=0)
        most = n_typical * (_TIMES_AS_MANY if name in _MANY_SIZED else 1)
        if len(rows) > _MOST_CLUSTERED:
            rows = rows[np.sort(chance.choice(len(rows), _MOST_CLUSTERED, replace=False))]
        if len(rows) > most:
            scaled = rows / alikeness.scales[index]
            clusters = KMeans(most, n_init=1, max_iter=5, random_state=0).fit(scaled)
            rows = rows[np.unique(clusters.transform(scaled).argmin(axis=0))]
        if len(rows):
            typical[name] = rows
    return Embedding(typical, alikeness)


def _main() -> None:
    samples = Samples.load()
    taught = teaching(samples, list(samples.seconds))
    work_costs = fit_work_costs(taught)
    model = fit(taught, fit_scales(taught, work_costs), work_costs)
    path = Path(edgeweave.predict.__file__).with_name("model.safetensors")
    path.write_bytes(model.to_bytes())


if __name__ == "__main__":
    _main()
