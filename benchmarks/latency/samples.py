"""Timings of units on kinds of devices, and the file that keeps them.

    python -m benchmarks.latency.samples

measures them anew: an hour and a quarter of a quiet machine with two cores. There are three
rounds, each a third of the random networks on every kind; known networks and the probe are in all
three, and medians count.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn import functional

from benchmarks.latency.drawing import Example
from benchmarks.latency.kinds import KINDS, time_as, write_programs
from benchmarks.latency.known import KNOWN
from benchmarks.latency.networks import random_examples
from benchmarks.latency.probe_networks import NETWORKS, ProbeNetwork
from edgeweave.core.errors import CaptureError
from edgeweave.predict import unit_features
from edgeweave.predict.features import Floats
from edgeweave.program import Captured, capture

__all__ = ["PATH", "Part", "Samples", "Units"]

Part = Literal["random", "known", "probe"]
Units = np.ndarray[tuple[int], np.dtype[np.intp]]

PATH = Path(__file__).with_name("samples.npz")
_N_EACH = {
    "images": 80,
    "late": 48,
    "deep": 24,
    "perceptron": 30,
    "tokens": 32,
    "series": 20,
    "heavy": 36,
    "trunk": 120,
    "encoder": 50,
    "padded": 70,
    "tiny": 50,
    "wide": 40,
}
_N_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Samples:
    """``rows[i]`` is an operator of unit ``owners[i]``; ``seconds[kind][unit, direction]``."""

    networks: tuple[str, ...]
    """The network of each unit."""
    parts: tuple[Part, ...]
    """What each unit is for: random networks teach, known ones judge, and devices run the probe."""
    rows: Floats
    owners: np.ndarray[tuple[int], np.dtype[np.int64]]
    seconds: Mapping[str, Floats]
    """NaN where a kind did not run a random network."""
    rounds: Mapping[str, Floats] = field(default_factory=dict)
    """``[round, unit, direction]`` of each kind: what single rounds took, NaN for random networks,
    which are in one round only."""

    def units(self, part: Part) -> Units:
        """The units that are for this."""
        return np.flatnonzero(np.array(self.parts) == part)

    def pieces(self, units: Iterable[int]) -> list[Floats]:
        """The operators of some units."""
        return [self.rows[self.owners == unit] for unit in units]

    def save(self, path: Path) -> None:
        """As a compressed npz of plain numbers."""
        np.savez_compressed(
            path,
            networks=np.array(self.networks),
            parts=np.array(self.parts),
            rows=self.rows.astype(np.float32),
            owners=self.owners.astype(np.int32),
            **_arrays("seconds", self.seconds),  # type: ignore[arg-type]
            **_arrays("rounds", self.rounds),  # type: ignore[arg-type]
        )

    @classmethod
    def load(cls, path: Path = PATH) -> Samples:
        """Read what ``save`` wrote."""
        with np.load(path) as found:
            return cls(
                networks=tuple(found["networks"].tolist()),
                parts=tuple(found["parts"].tolist()),
                rows=found["rows"].astype(np.float64),
                owners=found["owners"].astype(np.int64),
                seconds=_by_kind("seconds", found),
                rounds=_by_kind("rounds", found),
            )


def _arrays(prefix: str, by_kind: Mapping[str, Floats]) -> dict[str, Floats]:
    return {f"{prefix}/{kind}": each.astype(np.float32) for kind, each in by_kind.items()}


def _by_kind(prefix: str, found: Mapping[str, Floats]) -> dict[str, Floats]:
    return {
        name.removeprefix(f"{prefix}/"): found[name].astype(np.float64)
        for name in found
        if name.startswith(f"{prefix}/")
    }


Programs = dict[str, tuple[Captured, int]]
Round = Mapping[str, Mapping[str, Floats]]
"""Seconds ``[unit, direction]`` by kind, then by network."""


def makers() -> Mapping[Part, Sequence[Callable[[], Example]]]:
    """What makes the networks of each part."""
    return {
        "random": random_examples(_N_EACH),
        "known": KNOWN,
        "probe": [partial(_probed, network) for network in NETWORKS],
    }


def _measure() -> Samples:
    programs: Programs = {}
    parts: dict[str, Part] = {}
    for part, each in makers().items():
        for make in each:
            example = make()
            try:
                programs[example.name] = _captured(example), len(example.inputs)
            except CaptureError as error:
                if part != "random":
                    raise
                warnings.warn(f"{example.name} is left out: {error}", stacklevel=1)
            parts[example.name] = part
    features = {
        name: list(unit_features(captured.program, size).values())
        for name, (captured, size) in programs.items()
    }
    timed = [_timed(names, programs) for names in in_rounds(programs, parts)]
    return assembled(features, parts, timed)


def in_rounds(names: Iterable[str], parts: Mapping[str, Part]) -> list[list[str]]:
    """The networks of each round: a share of the random ones, and all others."""
    random = [name for name in names if parts[name] == "random"]
    always = [name for name in names if parts[name] != "random"]
    return [[*random[number::_N_ROUNDS], *always] for number in range(_N_ROUNDS)]


def _timed(names: Iterable[str], programs: Programs) -> Round:
    with tempfile.TemporaryDirectory(prefix="latency-") as folder:
        write_programs(Path(folder), {name: programs[name] for name in names})
        return {kind: time_as(kind, Path(folder)) for kind in KINDS}


def assembled(
    features: Mapping[str, Sequence[Floats]], parts: Mapping[str, Part], timed: Sequence[Round]
) -> Samples:
    """All that was timed, in the order of ``features``, the operators of each network's units."""
    pieces = [piece for each in features.values() for piece in each]
    networks = [name for name, each in features.items() for _ in each]
    rounds = {kind: np.stack([_in_order(r[kind], features) for r in timed]) for kind in KINDS}
    once = np.array([parts[name] == "random" for name in networks])[:, None]
    return Samples(
        networks=tuple(networks),
        parts=tuple(parts[name] for name in networks),
        rows=np.concatenate(pieces),
        owners=np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces]),
        seconds={kind: np.nanmedian(each, axis=0) for kind, each in rounds.items()},
        rounds={kind: np.where(once, np.nan, each) for kind, each in rounds.items()},
    )


def _in_order(found: Mapping[str, Floats], features: Mapping[str, Sequence[Floats]]) -> Floats:
    """NaN where a network was not timed."""
    each = [found.get(name, np.full((len(own), 2), np.nan)) for name, own in features.items()]
    return np.concatenate(each)


def _probed(network: ProbeNetwork) -> Example:
    torch.manual_seed(0)
    size = (network.microbatch_size, *network.shape)
    inputs = torch.zeros(size) if network.n_words is None else torch.zeros(size, dtype=torch.long)
    targets = torch.zeros(network.microbatch_size, dtype=torch.long)
    model = network.build()
    return Example(f"probe-{network.name}", model, inputs, targets, functional.cross_entropy)


def _captured(example: Example) -> Captured:
    return capture(example.model.train(), example.loss, example.inputs, example.targets)


if __name__ == "__main__":
    _measure().save(PATH)
