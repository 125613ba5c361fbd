"""Make the latency model that the package ships, from ``samples.npz``.

    python -m benchmarks.latency.fit

Random networks teach, known ones are left for judging. In four steps: what work costs by family;
the length scales on which operators are alike, by marginal likelihood; the function that all kinds
share; and every kind's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans

import edgeweave.predict
from benchmarks.latency.samples import Samples
from edgeweave.predict.embedding import Embedding
from edgeweave.predict.features import FAMILIES, FEATURES, Floats, macs_and_bytes
from edgeweave.predict.model import LatencyModel, Prior, plain_seconds

__all__ = ["PRIOR", "Scales", "Teaching", "fit", "fit_scales", "fit_work_costs", "teaching"]

PRIOR = Prior(own=0.6, mixture=0.2, likeness=0.7, noise=0.15, small_noise=0.3, small_seconds=4.5e-5)
"""Chosen on kinds and networks held out, by hand."""

_MOST_TYPICAL = 160
_STEPS = 4
_SCALE_STEPS = 240
_SUBSET = 450


@dataclass(frozen=True, slots=True)
class Scales:
    """What marginal likelihood found: the embedding's, and the noise of what was measured."""

    lengths: Floats
    amplitudes: Floats
    levels: Floats
    common: float
    noise: float
    small_noise: float

    def noise_variance(self, log_seconds: Floats) -> Floats:
        """Of a measurement that takes so long, in the random networks."""
        measured = replace(PRIOR, noise=self.noise, small_noise=self.small_noise)
        return measured.noise_variance(log_seconds)


@dataclass(frozen=True, slots=True)
class Teaching:
    """The units that teach: their operators, and log seconds ``[unit, direction]`` by kind."""

    rows: Floats
    owners: np.ndarray[tuple[int], np.dtype[np.int64]]
    log_seconds: dict[str, Floats]

    @property
    def n_units(self) -> int:
        return int(self.owners.max()) + 1

    def typical(self) -> Floats:
        """The mean over the kinds."""
        return np.asarray(np.mean(list(self.log_seconds.values()), axis=0))

    def totals(self, seconds: Floats) -> Floats:
        found = np.zeros(self.n_units)
        np.add.at(found, self.owners, seconds)
        return found

    def means(self, shares: Floats, values: Floats) -> Floats:
        """Of every unit's operators, weighted by their shares."""
        found = np.zeros((self.n_units, values.shape[1]))
        np.add.at(found, self.owners, shares[:, None] * values)
        return found


def teaching(samples: Samples, kinds: Sequence[str]) -> Teaching:
    """What random networks took on some kinds."""
    units = samples.units("random")
    number = np.full(len(samples.networks), -1)
    number[units] = np.arange(len(units))
    rows = number[samples.owners] >= 0
    return Teaching(
        samples.rows[rows],
        number[samples.owners[rows]],
        {kind: np.log(np.maximum(samples.seconds[kind][units], 1e-6)) for kind in kinds},
    )


def fit(taught: Teaching, scales: Scales, work_costs: Floats) -> LatencyModel:
    """The model of what these kinds share and how each of them differs."""
    embedding = _embedding(taught, scales)
    points = embedding.points(taught.rows)
    plain = np.log(plain_seconds(work_costs, taught.rows))
    identity = np.eye(embedding.n_coordinates)
    typical = taught.typical()
    shared = np.stack(
        [
            _solve(taught, points, each, typical[:, direction], scales, identity)
            for direction, each in enumerate(plain)
        ]
    )
    believed = plain + shared @ points.T
    kinds = [
        [
            _solve(taught, points, each, log_seconds[:, direction], scales, identity)
            for direction, each in enumerate(believed)
        ]
        for log_seconds in taught.log_seconds.values()
    ]
    names = tuple(taught.log_seconds)
    return LatencyModel(embedding, work_costs, shared, np.array(kinds), names, PRIOR)


def fit_work_costs(taught: Teaching) -> Floats:
    """``[direction, family]``: seconds of overhead, per multiply-add and per byte, all positive."""
    begin = torch.log(torch.tensor([1e-5, 3e-11, 2e-10], dtype=torch.float64))
    logs = begin.repeat(2, len(FAMILIES), 1).requires_grad_()
    optimizer = torch.optim.Adam([logs], lr=0.05)
    family = torch.from_numpy(taught.rows[:, 0].astype(int))
    owners, wanted = torch.from_numpy(taught.owners), torch.from_numpy(taught.typical().T.copy())
    work = torch.from_numpy(np.stack(_work(taught.rows), axis=1))
    for _ in range(800):
        seconds = (torch.exp(logs[:, family]) * work).sum(-1)
        totals = torch.zeros(2, taught.n_units, dtype=torch.float64).index_add(1, owners, seconds)
        error = torch.nn.functional.huber_loss(torch.log(totals), wanted, delta=0.3)
        optimizer.zero_grad()
        (error + 1e-4 * (logs - begin).square().mean()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return np.asarray(torch.exp(logs).detach().numpy())


def _work(rows: Floats) -> list[Floats]:
    """What an operator has of each cost: itself, multiply-adds, bytes."""
    return [np.ones(len(rows)), *macs_and_bytes(rows)]


def fit_scales(taught: Teaching, work_costs: Floats, *, seed: int = 0) -> Scales:
    """Maximise the marginal likelihood of subsets of the units, both directions in turn."""
    chance = np.random.default_rng(seed)
    deviations = taught.rows[:, 1:].std(axis=0) + 1e-6
    scaled = torch.from_numpy(taught.rows[:, 1:] / deviations)
    family = torch.from_numpy(taught.rows[:, 0].astype(int))
    seconds, wanted = plain_seconds(work_costs, taught.rows), taught.typical()
    logs = {
        "lengths": torch.full((len(FAMILIES), len(FEATURES)), 1.0, dtype=torch.float64),
        "amplitudes": torch.full((len(FAMILIES),), -0.7, dtype=torch.float64),
        "levels": torch.full((len(FAMILIES),), -1.0, dtype=torch.float64),
        "common": torch.tensor(-1.5, dtype=torch.float64),
        "noise": torch.tensor(-2.0, dtype=torch.float64),
        "small_noise": torch.tensor(-1.5, dtype=torch.float64),
    }
    optimizer = torch.optim.Adam([each.requires_grad_() for each in logs.values()], lr=0.06)
    for step in range(_SCALE_STEPS):
        direction = step % 2
        size = min(_SUBSET, taught.n_units)
        units = np.sort(chance.choice(taught.n_units, size, replace=False))
        loss = _negative_likelihood(
            taught, units, logs, scaled, family, seconds[direction], wanted[units, direction]
        )
        optimizer.zero_grad()
        (loss + 1e-3 * (logs["lengths"] - 1).square().mean()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    found = {name: torch.exp(each).detach().numpy() for name, each in logs.items()}
    return Scales(
        found["lengths"] * deviations,
        found["amplitudes"],
        found["levels"],
        *(float(found[name]) for name in ("common", "noise", "small_noise")),
    )


def _negative_likelihood(
    taught: Teaching,
    units: np.ndarray[tuple[int], np.dtype[np.int64]],
    logs: dict[str, torch.Tensor],
    scaled: torch.Tensor,
    family: torch.Tensor,
    seconds: Floats,
    wanted: Floats,
) -> torch.Tensor:
    number = np.full(taught.n_units, -1)
    number[units] = np.arange(len(units))
    rows = np.flatnonzero(number[taught.owners] >= 0)
    owners = number[taught.owners[rows]]
    totals = np.bincount(owners, seconds[rows], minlength=len(units))
    shares = torch.zeros(len(units), len(rows), dtype=torch.float64)
    shares[owners, np.arange(len(rows))] = torch.from_numpy(seconds[rows] / totals[owners])
    covariance = torch.exp(2 * logs["common"]).expand(len(units), len(units))
    for index in torch.unique(family[rows]).tolist():
        mine = torch.nonzero(family[rows] == index)[:, 0]
        points = scaled[rows][mine] * torch.exp(-logs["lengths"][index])
        distances = torch.cdist(points, points).square()
        alike = torch.exp(2 * logs["amplitudes"][index]) / (1 + distances / 2)
        alike = alike + torch.exp(2 * logs["levels"][index])
        covariance = covariance + shares[:, mine] @ alike @ shares[:, mine].T
    small = torch.from_numpy(PRIOR.smallness(np.log(totals)))
    noise = torch.exp(2 * logs["noise"]) + torch.exp(2 * logs["small_noise"]) * small
    lower = torch.linalg.cholesky(covariance + torch.diag(noise))
    surprise = torch.from_numpy(wanted - np.log(totals))[:, None]
    whitened = torch.linalg.solve_triangular(lower, surprise, upper=False)
    half_log_determinant = torch.log(torch.diagonal(lower)).sum()
    return torch.as_tensor((whitened.square().sum() / 2 + half_log_determinant) / len(units))


def _embedding(taught: Teaching, scales: Scales) -> Embedding:
    typical = {}
    for index, name in enumerate(FAMILIES):
        rows = np.unique(taught.rows[taught.rows[:, 0] == index, 1:], axis=0)
        if len(rows) > _MOST_TYPICAL:
            scaled = rows / scales.lengths[index]
            clusters = KMeans(_MOST_TYPICAL, n_init=1, max_iter=30, random_state=0).fit(scaled)
            rows = rows[np.unique(clusters.transform(scaled).argmin(axis=0))]
        if len(rows):
            typical[name] = rows
    return Embedding(
        typical,
        scales=scales.lengths,
        amplitudes=scales.amplitudes,
        levels=scales.levels,
        common=scales.common,
    )


def _solve(
    taught: Teaching,
    points: Floats,
    believed: Floats,
    wanted: Floats,
    scales: Scales,
    precision: Floats,
) -> Floats:
    """Coefficients with which log seconds of units come out as wanted, by Gauss-Newton steps.

    ``believed`` are log seconds of operators without them.
    """
    noise = scales.noise_variance(wanted)
    coefficients: Any = np.zeros(points.shape[1])
    values: Any = np.zeros(len(points))
    for _ in range(_STEPS):
        seconds = np.exp(believed + values)
        totals = taught.totals(seconds)
        shares = seconds / totals[taught.owners]
        matrix = taught.means(shares, points)
        surprise = wanted - np.log(totals) + taught.means(shares, values[:, None])[:, 0]
        weighted = matrix / noise[:, None]
        coefficients = np.linalg.solve(matrix.T @ weighted + precision, weighted.T @ surprise)
        values = np.clip(points @ coefficients, -4.0, 4.0)
    return np.asarray(coefficients, dtype=np.float64)


def _main() -> None:
    samples = Samples.load()
    taught = teaching(samples, list(samples.seconds))
    work_costs = fit_work_costs(taught)
    model = fit(taught, fit_scales(taught, work_costs), work_costs)
    path = Path(edgeweave.predict.__file__).with_name("model.safetensors")
    path.write_bytes(model.to_bytes())


if __name__ == "__main__":
    _main()
