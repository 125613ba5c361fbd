"""Timings of units on kinds of devices, and the file that keeps them.

    python -m benchmarks.latency.samples

measures them anew: a quarter of an hour of a quiet machine with two cores.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
_N_EACH = {"images": 80, "late": 48, "deep": 12, "perceptron": 30, "tokens": 32, "series": 20}


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
            **{f"seconds/{kind}": s.astype(np.float32) for kind, s in self.seconds.items()},  # type: ignore[arg-type]
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
                seconds={
                    name.removeprefix("seconds/"): found[name].astype(np.float64)
                    for name in found.files
                    if name.startswith("seconds/")
                },
            )


def _measure() -> Samples:
    makers: dict[Part, Sequence[Callable[[], Example]]] = {
        "random": random_examples(_N_EACH),
        "known": KNOWN,
        "probe": [partial(_probed, network) for network in NETWORKS],
    }
    programs: dict[str, tuple[Captured, int]] = {}
    parts: dict[str, Part] = {}
    for part, each in makers.items():
        for make in each:
            example = make()
            try:
                programs[example.name] = _captured(example), len(example.inputs)
            except CaptureError as error:
                if part != "random":
                    raise
                warnings.warn(f"{example.name} is left out: {error}", stacklevel=1)
            parts[example.name] = part
    with tempfile.TemporaryDirectory(prefix="latency-") as folder:
        write_programs(Path(folder), programs)
        timed = {kind: time_as(kind, Path(folder)) for kind in KINDS}
    features = {
        name: list(unit_features(captured.program, size).values())
        for name, (captured, size) in programs.items()
    }
    pieces = [piece for each in features.values() for piece in each]
    networks = [name for name, each in features.items() for _ in each]
    return Samples(
        networks=tuple(networks),
        parts=tuple(parts[name] for name in networks),
        rows=np.concatenate(pieces),
        owners=np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces]),
        seconds={
            kind: np.concatenate([found[name] for name in programs])
            for kind, found in timed.items()
        },
    )


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
