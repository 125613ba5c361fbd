"""How alike operators are, by marginal likelihood; and what their work costs at all.

Twice: for the function that all kinds of devices share, and for how single kinds differ from it,
which changes more slowly from operator to operator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.latency.teaching import Teaching
from edgeweave.predict.embedding import Alikeness
from edgeweave.predict.features import FAMILIES, FEATURES, Floats, macs_and_bytes
from edgeweave.predict.model import DIRECTIONS, smallness

__all__ = ["SMALL_SECONDS", "Noise", "fit_own", "fit_shared", "fit_work_costs"]

_STEPS, _RATE = 200, 0.08
_SUBSET, _OWN_SUBSET = 400, 250
SMALL_SECONDS = 4.5e-5
"""Below which what a unit takes repeats less well."""

Units = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Noise:
    """Deviations of measured log seconds; ``small`` is added below ``SMALL_SECONDS``."""

    all: float
    small: float

    def variance(self, log_seconds: Floats) -> Floats:
        return np.asarray(self.all**2 + self.small**2 * smallness(log_seconds, SMALL_SECONDS))


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


def fit_shared(taught: Teaching, seconds: Floats, *, seed: int) -> tuple[Alikeness, Noise]:
    """Of the typical kind; ``seconds[direction, operator]`` are those believed without it."""
    wanted = taught.typical().T
    surprises = np.stack(
        [wanted[d] - np.log(taught.totals(each)) for d, each in enumerate(seconds)]
    )

    def likelihood(logs: _Logs, units: Units, step: int) -> torch.Tensor:
        d = step % len(DIRECTIONS)
        part = _Part(taught, units)
        covariance = part.covariance(logs, part.shares(seconds[d]))
        noise = logs.noise(wanted[d, units])
        return _negative_likelihood(covariance + torch.diag(noise), surprises[d, units][:, None])

    logs = _maximised(taught, likelihood, _SUBSET, seed)
    return logs.alikeness(), logs.found_noise()


def fit_own(taught: Teaching, seconds: Floats, *, seed: int) -> tuple[Alikeness, Noise, float]:
    """Of how kinds differ from ``seconds``, what is believed of all; and their likeness."""
    believed = np.log(np.stack([taught.totals(each) for each in seconds]))
    surprises = np.stack([each.T - believed for each in taught.log_seconds.values()])

    def likelihood(logs: _Logs, units: Units, step: int) -> torch.Tensor:
        part = _Part(taught, units)
        shares = torch.cat([part.shares(each) for each in seconds])
        alike = torch.sigmoid(logs.likeness).repeat(2, 2)
        alike = alike + torch.diag(1 - torch.diagonal(alike))
        alike = alike.repeat_interleave(len(units), 0).repeat_interleave(len(units), 1)
        covariance = alike * part.covariance(logs, shares)
        noise = logs.noise(believed[:, units].ravel())
        wanted = surprises[:, :, units].reshape(len(surprises), -1).T
        return _negative_likelihood(covariance + torch.diag(noise), wanted)

    logs = _maximised(taught, likelihood, _OWN_SUBSET, seed)
    return logs.alikeness(), logs.found_noise(), float(torch.sigmoid(logs.likeness.detach()))


class _Logs:
    """What is looked for, as logarithms, with features in their deviations."""

    def __init__(self, deviations: Floats) -> None:
        self.deviations = deviations
        double = torch.float64
        self.lengths = torch.full((len(FAMILIES), len(FEATURES)), 1.0, dtype=double)
        self.amplitudes = torch.full((len(FAMILIES),), -0.7, dtype=double)
        self.levels = torch.full((len(FAMILIES),), -1.0, dtype=double)
        self.common = torch.tensor(-1.5, dtype=double)
        self.noises = torch.tensor([-2.0, -1.5], dtype=double)
        self.likeness = torch.tensor(1.0, dtype=double)
        for each in self.all():
            each.requires_grad_()

    def all(self) -> list[torch.Tensor]:
        return [
            self.lengths,
            self.amplitudes,
            self.levels,
            self.common,
            self.noises,
            self.likeness,
        ]

    def prior(self) -> torch.Tensor:
        """Weak: where the data says nothing, features matter little."""
        return torch.as_tensor(1e-3 * (self.lengths - 1).square().mean())

    def noise(self, log_seconds: Floats) -> torch.Tensor:
        small = torch.from_numpy(smallness(log_seconds, SMALL_SECONDS))
        return torch.as_tensor(
            torch.exp(2 * self.noises[0]) + torch.exp(2 * self.noises[1]) * small
        )

    def alikeness(self) -> Alikeness:
        lengths, amplitudes, levels = (
            torch.exp(each).detach().numpy()
            for each in (self.lengths, self.amplitudes, self.levels)
        )
        return Alikeness(
            lengths * self.deviations, amplitudes, levels, float(torch.exp(self.common.detach()))
        )

    def found_noise(self) -> Noise:
        return Noise(*torch.exp(self.noises).tolist())


class _Part:
    """Some units of what teaches."""

    def __init__(self, taught: Teaching, units: Units) -> None:
        number = np.full(taught.n_units, -1)
        number[units] = np.arange(len(units))
        self.rows = np.flatnonzero(number[taught.owners] >= 0)
        self.owners, self.n_units = number[taught.owners[self.rows]], len(units)
        self.families = taught.rows[self.rows, 0].astype(int)
        self.features = taught.rows[self.rows, 1:]

    def shares(self, seconds: Floats) -> torch.Tensor:
        """Of every operator in its unit's time, ``[unit, operator]``."""
        mine = seconds[self.rows]
        totals = np.bincount(self.owners, weights=mine, minlength=self.n_units)
        shares = torch.zeros(self.n_units, len(self.rows), dtype=torch.float64)
        shares[self.owners, np.arange(len(self.rows))] = torch.from_numpy(
            mine / totals[self.owners]
        )
        return shares

    def covariance(self, logs: _Logs, shares: torch.Tensor) -> torch.Tensor:
        """Of sums over operators with each other."""
        found = torch.exp(2 * logs.common) * torch.ones(
            len(shares), len(shares), dtype=torch.float64
        )
        for family in np.unique(self.families).tolist():
            mine = np.flatnonzero(self.families == family)
            scaled = torch.from_numpy(self.features[mine] / logs.deviations)
            points = scaled * torch.exp(-logs.lengths[family])
            squares = points.square().sum(1)
            distances = squares[:, None] + squares[None] - 2 * points @ points.T
            alike = torch.exp(2 * logs.amplitudes[family]) / (1 + distances.clamp(min=0) / 2)
            alike = alike + torch.exp(2 * logs.levels[family])
            found = found + shares[:, mine] @ alike @ shares[:, mine].T
        return found


def _maximised(
    taught: Teaching,
    likelihood: Callable[[_Logs, Units, int], torch.Tensor],
    n_units: int,
    seed: int,
) -> _Logs:
    chance = np.random.default_rng(seed)
    logs = _Logs(taught.rows[:, 1:].std(axis=0) + 1e-6)
    optimizer = torch.optim.Adam(logs.all(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    for step in range(_STEPS):
        size = min(n_units, taught.n_units)
        units = np.sort(chance.choice(taught.n_units, size, replace=False))
        optimizer.zero_grad()
        loss = likelihood(logs, units, step) + logs.prior()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return logs


def _negative_likelihood(covariance: torch.Tensor, wanted: Floats) -> torch.Tensor:
    """Per value, of columns drawn from one normal distribution."""
    lower = torch.linalg.cholesky(covariance)
    whitened = torch.linalg.solve_triangular(lower, torch.from_numpy(wanted), upper=False)
    half_log_determinant = wanted.shape[1] * torch.log(torch.diagonal(lower)).sum()
    return torch.as_tensor((whitened.square().sum() / 2 + half_log_determinant) / wanted.size)


def _work(rows: Floats) -> list[Floats]:
    """What an operator has of each cost: itself, multiply-adds, bytes."""
    return [np.ones(len(rows)), *macs_and_bytes(rows)]
