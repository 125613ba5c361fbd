"""Who gets which samples: equal shares, or shares skewed in labels or size. Values in, values out.

    iid         shuffled, equal sizes
    dirichlet   of every class a share drawn from Dirichlet(alpha): the smaller alpha, the more
                each device sees of few classes only
    labels      sorted by class and cut into ``per_peer`` pieces a device (McMahan et al., 2017)
    sizes       shuffled; sizes drawn from Dirichlet(alpha)

Every sample goes to exactly one device, and every device gets at least one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from edgeweave.core.errors import ConfigError

__all__ = ["Indices", "Split", "SplitKind", "deal", "told_split"]

SplitKind = Literal["iid", "dirichlet", "labels", "sizes"]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Split:
    """How samples are dealt out. ``alpha`` is for dirichlet and sizes, ``per_peer`` for labels."""

    kind: SplitKind = "iid"
    alpha: float = 0.5
    per_peer: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(SplitKind):
            raise ConfigError(
                f"a split is one of {', '.join(get_args(SplitKind))} (got {self.kind!r}). "
                "Choose one."
            )
        if not 0 < self.alpha < 1e6 or self.per_peer < 1 or self.seed < 0:
            raise ConfigError(
                "a split has alpha above 0, per_peer of 1 or more and a seed of 0 or more "
                f"(got {self.alpha}, {self.per_peer}, {self.seed})."
            )


def told_split(text: str) -> Split:
    """The split that a text such as ``dirichlet(0.3)`` or ``labels(2)`` names.

    >>> told_split("dirichlet(0.3)")
    Split(kind='dirichlet', alpha=0.3, per_peer=2, seed=0)
    """
    name, bracket, rest = text.strip().partition("(")
    number = rest.removesuffix(")").strip()
    try:
        if bool(bracket) != rest.endswith(")") or (name == "iid" and bracket):
            raise ValueError(text)
        if name == "labels":
            return Split("labels", per_peer=int(number) if bracket else 2)
        return Split(name, alpha=float(number) if bracket else 0.5)  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigError(
            "a split is iid, or dirichlet, labels or sizes with a number in brackets "
            f"(got {text!r}). Write dirichlet(0.5)."
        ) from error


def deal(labels: Indices, n_peers: int, split: Split) -> tuple[Indices, ...]:
    """The samples of every peer, each sorted; the same for the same labels and split everywhere.

    >>> [part.tolist() for part in deal(np.zeros(4, np.int64), 2, Split("labels", per_peer=1))]
    [[0, 1], [2, 3]]
    """
    if not 1 <= n_peers <= len(labels):
        raise ConfigError(
            f"every device gets at least one sample ({len(labels)} samples for {n_peers} "
            "devices). Give more data or fewer devices."
        )
    # Its numbers never change between versions; it takes 32 bits.
    random = np.random.RandomState(split.seed % 2**32)
    if split.kind == "iid":
        parts = np.array_split(random.permutation(len(labels)), n_peers)
    elif split.kind == "sizes":
        shares = random.dirichlet([split.alpha] * n_peers)
        parts = _cut(random.permutation(len(labels)), shares)
    elif split.kind == "labels":
        parts = _pieces(labels, n_peers, split.per_peer, random)
    else:
        parts = _by_class(labels, n_peers, split.alpha, random)
    return tuple(np.sort(part).astype(np.int64) for part in _with_one_each(parts))


def _cut(order: Indices, shares: npt.NDArray[np.float64]) -> list[Indices]:
    bounds = np.round(np.cumsum(shares)[:-1] * len(order)).astype(np.int64)
    return np.split(order, np.minimum(bounds, len(order)))


def _by_class(
    labels: Indices, n_peers: int, alpha: float, random: np.random.RandomState
) -> list[Indices]:
    parts: list[list[Indices]] = [[] for _ in range(n_peers)]
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        shares = random.dirichlet([alpha] * n_peers)
        for part, piece in zip(parts, _cut(members, shares), strict=True):
            part.append(piece)
    return [np.concatenate(part) for part in parts]


def _pieces(
    labels: Indices, n_peers: int, per_peer: int, random: np.random.RandomState
) -> list[Indices]:
    order = np.argsort(labels, kind="stable")
    pieces = np.array_split(order, n_peers * per_peer)
    if per_peer > 1:
        pieces = [pieces[number] for number in random.permutation(len(pieces))]
    return [np.concatenate(pieces[k * per_peer : (k + 1) * per_peer]) for k in range(n_peers)]


def _with_one_each(parts: list[Indices]) -> list[Indices]:
    """Who got nothing gets a sample of whoever has most."""
    parts = list(parts)
    for number, part in enumerate(parts):
        if not len(part):
            richest = max(range(len(parts)), key=lambda k: len(parts[k]))
            parts[number], parts[richest] = parts[richest][:1], parts[richest][1:]
    return parts
