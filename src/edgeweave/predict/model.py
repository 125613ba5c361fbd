"""What is known of all devices: how long operators take on a typical one, and how devices differ.

For an operator ``x`` in one direction (forward, backward), on device ``d``::

    seconds(x, d) = (overhead + multiply-adds / rate + bytes / bandwidth)     of its family
                    * exp(shared(x) + own_d(x))

``shared`` is a function that many devices taught (``Embedding``: a vector of coefficients).
``own_d`` is what ``DeviceLatency`` learns, and begins with: a mixture of the functions of known
kinds of devices, and something of its own.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
import safetensors.numpy

from edgeweave.core.errors import FormatError
from edgeweave.predict.embedding import Embedding
from edgeweave.predict.features import FAMILIES, FEATURES, Floats, macs_and_bytes

__all__ = ["DIRECTIONS", "LatencyModel", "Prior", "Work"]

DIRECTIONS = ("forward", "backward")

_FORMAT = "edgeweave/latency"
_VERSION = "1"


@dataclass(frozen=True, slots=True)
class Work:
    """The operators of several pieces of work (units, stages), and what each takes typically.

    ``owners[i]`` is the piece that operator ``i`` belongs to; ``seconds[direction, i]``.
    """

    n_pieces: int
    owners: np.ndarray[tuple[int], np.dtype[np.int64]]
    rows: Floats
    points: Floats
    seconds: Floats

    def total(self, seconds: Floats) -> Floats:
        """Sums over the operators of each piece, ``[piece, direction]``."""
        found = np.zeros((self.n_pieces, len(DIRECTIONS)))
        np.add.at(found, self.owners, seconds.T)
        return found

    def means(self, shares: Floats) -> Floats:
        """The matrix that takes means over the operators of each piece, weighted by ``shares``."""
        matrix = np.zeros((self.n_pieces, len(self.owners)))
        matrix[self.owners, np.arange(len(self.owners))] = shares
        return matrix


@dataclass(frozen=True, slots=True)
class Prior:
    """What is expected of a new device and of what is measured on it; deviations of log seconds.

    ``own``, ``mixture``: how much its own part and each known kind count. ``likeness``: how alike
    its forward and its backward are. ``noise``: of a measurement; ``small_noise``: what is added
    where it takes much less than ``small_seconds``.
    """

    own: float
    mixture: float
    likeness: float
    noise: float
    small_noise: float
    small_seconds: float

    def smallness(self, log_seconds: Floats) -> Floats:
        """Near 1 for what takes much less than ``small_seconds``, near 0 for much more."""
        return np.asarray(1 / (1 + np.exp(log_seconds - np.log(self.small_seconds))))

    def noise_variance(self, log_seconds: Floats) -> Floats:
        """Of a measurement that takes so long."""
        small = self.smallness(log_seconds)
        return np.asarray(self.noise**2 + self.small_noise**2 * small)


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """``work_costs[direction, family]`` are seconds of overhead, per multiply-add and per byte;
    ``shared[direction]`` and ``kinds[kind, direction]`` coefficients of the embedding.
    """

    embedding: Embedding
    work_costs: Floats
    shared: Floats
    kinds: Floats
    kind_names: tuple[str, ...]
    prior: Prior

    def work(self, pieces: Sequence[Floats]) -> Work:
        """Pieces of work, each the rows that ``unit_features`` gives for its operators."""
        rows = np.concatenate(list(pieces))
        owners = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
        points = self.embedding.points(rows)
        seconds = plain_seconds(self.work_costs, rows) * np.exp(self.shared @ points.T)
        return Work(len(pieces), owners, rows, points, seconds)

    def to_bytes(self) -> bytes:
        """As safetensors."""
        tensors: dict[str, Floats] = {
            "work_costs": self.work_costs,
            "shared": self.shared,
            "kinds": self.kinds,
            "scales": self.embedding.scales,
            "amplitudes": self.embedding.amplitudes,
            "levels": self.embedding.levels,
            "common": np.array([self.embedding.common]),
            "prior": np.array([getattr(self.prior, name) for name in Prior.__slots__]),
            **{f"typical/{name}": rows for name, rows in self.embedding.typical.items()},
        }
        plain = {name: np.ascontiguousarray(t, dtype=np.float32) for name, t in tensors.items()}
        metadata = {
            "format": _FORMAT,
            "version": _VERSION,
            "families": " ".join(FAMILIES),
            "features": " ".join(FEATURES),
            "kinds": " ".join(self.kind_names),
        }
        return bytes(safetensors.numpy.save(plain, metadata))

    @classmethod
    def from_bytes(cls, data: bytes) -> LatencyModel:
        """Read what ``to_bytes`` wrote; ``FormatError`` for a model of other features."""
        metadata = _metadata(data)
        expected = (_FORMAT, _VERSION, " ".join(FAMILIES), " ".join(FEATURES))
        found = tuple(metadata.get(key) for key in ("format", "version", "families", "features"))
        if found != expected:
            raise FormatError(
                "the latency model was made for other features than this package has "
                f"(version {metadata.get('version')}). Fit it again: "
                "python -m benchmarks.latency.fit."
            )
        tensors = {
            name: tensor.astype(np.float64) for name, tensor in safetensors.numpy.load(data).items()
        }
        typical = {
            name.removeprefix("typical/"): rows
            for name, rows in sorted(tensors.items())
            if name.startswith("typical/")
        }
        embedding = Embedding(
            typical,
            scales=tensors["scales"],
            amplitudes=tensors["amplitudes"],
            levels=tensors["levels"],
            common=float(tensors["common"][0]),
        )
        return cls(
            embedding=embedding,
            work_costs=tensors["work_costs"],
            shared=tensors["shared"],
            kinds=tensors["kinds"],
            kind_names=tuple(metadata["kinds"].split()),
            prior=Prior(*map(float, tensors["prior"])),
        )

    @classmethod
    @functools.cache
    def shipped(cls) -> LatencyModel:
        """The model that comes with the package."""
        path = resources.files("edgeweave.predict") / "model.safetensors"
        return cls.from_bytes(path.read_bytes())


def plain_seconds(work_costs: Floats, rows: Floats) -> Floats:
    """``[direction, operator]``: overhead, multiply-adds and bytes at the family's costs."""
    family = rows[:, 0].astype(int)
    macs, moved = macs_and_bytes(rows)
    costs = work_costs[:, family]
    return np.asarray(costs[..., 0] + costs[..., 1] * macs + costs[..., 2] * moved)


def _metadata(data: bytes) -> dict[str, str]:
    """The text that a safetensors file carries in its header."""
    size = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + size]).get("__metadata__", {}))
