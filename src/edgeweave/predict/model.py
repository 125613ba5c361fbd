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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
import safetensors.numpy

from edgeweave.core.errors import FormatError
from edgeweave.predict.embedding import Alikeness, Embedding
from edgeweave.predict.features import FAMILIES, FEATURES, Floats, macs_and_bytes

__all__ = ["DIRECTIONS", "LatencyModel", "Prior", "Work"]

DIRECTIONS = ("forward", "backward")

_FORMAT = "edgeweave/latency"
_VERSION = "2"


@dataclass(frozen=True, slots=True)
class Work:
    """The operators of several pieces of work (units, stages), and what each takes typically.

    ``owners[i]`` is the piece that operator ``i`` belongs to; ``seconds[direction, i]``, and
    ``kinds[direction, i, kind]`` by how much each known kind is off, as logarithms.
    """

    owners: np.ndarray[tuple[int], np.dtype[np.int64]]
    rows: Floats
    seconds: Floats
    kinds: Floats


@dataclass(frozen=True, slots=True)
class Prior:
    """What is expected of a new device and of what is measured on it; deviations of log seconds.

    ``own``, ``mixture``: how much its own part and each known kind count. ``local``: how far off
    what all share may be, where operators are unlike those that taught it. ``likeness``: how alike
    forward and backward are. ``noise``: of a measurement; ``small_noise``: what is added where it
    takes much less than ``small_seconds``.
    """

    own: float
    local: float
    mixture: float
    likeness: float
    noise: float
    small_noise: float
    small_seconds: float

    def noise_variance(self, log_seconds: Floats) -> Floats:
        """Of a measurement that takes so long."""
        small = smallness(log_seconds, self.small_seconds)
        return np.asarray(self.noise**2 + self.small_noise**2 * small)


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """``work_costs[direction, family]`` are seconds of overhead, per multiply-add and per byte;
    ``shared[direction]`` and ``kinds[kind, direction]`` coefficients of the embeddings.
    """

    embedding: Embedding
    """For what all devices share."""
    own: Embedding
    """For how a device differs."""
    work_costs: Floats
    shared: Floats
    kinds: Floats
    kind_names: tuple[str, ...]
    prior: Prior

    def work(self, pieces: Sequence[Floats]) -> Work:
        """Pieces of work, each the rows that ``unit_features`` gives for its operators."""
        rows = np.concatenate(list(pieces))
        owners = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
        believed = self.shared @ self.embedding.points(rows).T
        seconds = plain_seconds(self.work_costs, rows) * np.exp(believed)
        kinds = self.own.points(rows) @ self.kinds.transpose(1, 2, 0)
        return Work(owners, rows, seconds, kinds)

    def covariance(self, a: Floats, b: Floats) -> Floats:
        """What is expected of a device's own function at operators, beside known kinds.

        Exact also far from what is typical.
        """
        own, local = self.own.alikeness.covariance(a, b), self.embedding.alikeness.covariance(a, b)
        return np.asarray(self.prior.own**2 * own + self.prior.local**2 * local)

    def to_bytes(self) -> bytes:
        """As safetensors."""
        tensors: dict[str, Floats] = {
            "work_costs": self.work_costs,
            "shared": self.shared,
            "kinds": self.kinds,
            "prior": np.array([getattr(self.prior, name) for name in Prior.__slots__]),
            **_embedding_tensors("embedding", self.embedding),
            **_embedding_tensors("own", self.own),
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
        return cls(
            embedding=_embedding("embedding", tensors),
            own=_embedding("own", tensors),
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


def smallness(log_seconds: Floats, small_seconds: float) -> Floats:
    """Near 1 for what takes much less than ``small_seconds``, near 0 for much more."""
    return np.asarray(1 / (1 + np.exp(log_seconds - np.log(small_seconds))))


def plain_seconds(work_costs: Floats, rows: Floats) -> Floats:
    """``[direction, operator]``: overhead, multiply-adds and bytes at the family's costs."""
    family = rows[:, 0].astype(int)
    macs, moved = macs_and_bytes(rows)
    costs = work_costs[:, family]
    return np.asarray(costs[..., 0] + costs[..., 1] * macs + costs[..., 2] * moved)


def _embedding_tensors(name: str, embedding: Embedding) -> dict[str, Floats]:
    alikeness = embedding.alikeness
    return {
        f"{name}/scales": alikeness.scales,
        f"{name}/amplitudes": alikeness.amplitudes,
        f"{name}/levels": alikeness.levels,
        f"{name}/common": np.array([alikeness.common]),
        **{f"{name}/typical/{family}": rows for family, rows in embedding.typical.items()},
    }


def _embedding(name: str, tensors: Mapping[str, Floats]) -> Embedding:
    prefix = f"{name}/typical/"
    typical = {
        key.removeprefix(prefix): rows
        for key, rows in sorted(tensors.items())
        if key.startswith(prefix)
    }
    scales, amplitudes, levels, common = (
        tensors[f"{name}/{part}"] for part in ("scales", "amplitudes", "levels", "common")
    )
    return Embedding(typical, Alikeness(scales, amplitudes, levels, float(common[0])))


def _metadata(data: bytes) -> dict[str, str]:
    """The text that a safetensors file carries in its header."""
    size = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + size]).get("__metadata__", {}))
