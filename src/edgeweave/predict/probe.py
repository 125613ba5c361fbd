"""What a device is asked to run so that predictions about it can begin, and what that took.

The networks are fixed and come with the package (``benchmarks/latency/probe_networks.py`` made
them), so that what two devices took can be compared. This module runs nothing.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import msgspec
import numpy as np

from edgeweave.core.errors import FormatError
from edgeweave.predict.device import Measurement
from edgeweave.predict.facts import DeviceFacts
from edgeweave.predict.features import FAMILIES, Floats, macs_and_bytes, unit_features
from edgeweave.program import Program, decode_program, encode_program

__all__ = [
    "NetworkSeconds",
    "Probe",
    "ProbeProgram",
    "Rates",
    "decode_probe_programs",
    "encode_probe_programs",
    "probe_digest",
    "probe_programs",
    "rates_of",
]


@dataclass(frozen=True, slots=True)
class ProbeProgram:
    """One network, and the microbatch it runs with."""

    name: str
    microbatch_size: int
    program: Program


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A network in the file."""

    name: str
    microbatch_size: int
    graph: msgspec.Raw


class NetworkSeconds(msgspec.Struct, frozen=True):
    """What the units of a network took: medians over ``n_passes``. No gradient: a backward of 0."""

    name: str
    forward_seconds: tuple[float, ...]
    backward_seconds: tuple[float, ...]
    n_passes: int

    @property
    def seconds(self) -> float:
        """One whole pass, forward and backward."""
        return sum(self.forward_seconds) + sum(self.backward_seconds)


class Rates(msgspec.Struct, frozen=True):
    """A device in four numbers; None where the probe does not tell."""

    convolution_macs_per_second: float | None
    matmul_macs_per_second: float | None
    bytes_per_second: float | None
    operator_seconds: float | None
    """What an operator takes that has next to nothing to do."""


class Probe(msgspec.Struct, frozen=True):
    """A device's facts and its seconds, network by network in the order of ``probe_programs``."""

    facts: DeviceFacts
    networks: tuple[NetworkSeconds, ...]
    left_out: tuple[str, ...]
    """Networks that the time did not suffice for: the last ones."""
    digest: str
    """Of the networks' file; ``probe_digest()`` where this package has the same."""

    def stretched(self, factor: float) -> Probe:
        """The probe of a device that takes ``factor`` times as long."""
        networks = tuple(
            msgspec.structs.replace(
                each,
                forward_seconds=tuple(factor * seconds for seconds in each.forward_seconds),
                backward_seconds=tuple(factor * seconds for seconds in each.backward_seconds),
            )
            for each in self.networks
        )
        return msgspec.structs.replace(self, networks=networks)

    def check(self) -> None:
        """``FormatError`` if this is no probe with the networks that this package has."""
        names = tuple(each.name for each in self.networks)
        known = {name: len(rows) for name, rows in _unit_rows().items()}
        sound = (
            self.digest == probe_digest()
            and names
            and (*names, *self.left_out) == tuple(known)
            and all(_is_of(each, known[each.name]) for each in self.networks)
        )
        if not sound:
            raise FormatError(
                "a probe has a time for every unit of the networks that this package has (got "
                f"networks {', '.join(names) or 'none'} of digest {self.digest[:8]!r}, here "
                f"{probe_digest()[:8]!r}). Install the same edgeweave on every device."
            )

    def measurements(self) -> list[Measurement]:
        """One for each unit of each network that ran, for ``DeviceLatency.given``.

        ``FormatError`` if the device ran other networks than this package has.
        """
        self.check()
        rows = _unit_rows()
        return [
            Measurement(work, forward, backward or None)
            for ran in self.networks
            for work, forward, backward in zip(
                rows[ran.name], ran.forward_seconds, ran.backward_seconds, strict=True
            )
            if len(work)
        ]

    def rates(self) -> Rates:
        """What fits this probe best."""
        return rates_of(self.measurements())


def rates_of(measurements: Sequence[Measurement]) -> Rates:
    """What fits forward passes best, of non-negative costs per multiply-add, byte and operator.

    For people, and for what is no unit: those are predicted by ``DeviceLatency``.
    """
    measured = [each for each in measurements if each.forward_seconds > 0]
    if not measured:
        return Rates(None, None, None, None)
    work = np.stack([_work(each.rows) for each in measured])
    seconds = np.array([each.forward_seconds for each in measured])
    costs = [float(cost) or None for cost in _non_negative(work / seconds[:, None])]
    convolution, matmul, moved = (None if cost is None else 1 / cost for cost in costs[:3])
    return Rates(convolution, matmul, moved, costs[3])


def encode_probe_programs(programs: Sequence[ProbeProgram]) -> bytes:
    """As compressed JSON, the same bytes for the same programs."""
    entries = [
        _Entry(each.name, each.microbatch_size, msgspec.Raw(encode_program(each.program)))
        for each in programs
    ]
    return gzip.compress(msgspec.json.encode(entries), mtime=0)


def decode_probe_programs(data: bytes, *, trusted: bool = False) -> tuple[ProbeProgram, ...]:
    """Read them; ``trusted`` leaves out the checks of ``edgeweave.program.check``, which take long
    on small devices.
    """
    entries = msgspec.json.decode(gzip.decompress(data), type=list[_Entry])
    examine = (lambda _checked: None) if trusted else None
    return tuple(
        ProbeProgram(
            each.name, each.microbatch_size, decode_program(bytes(each.graph), examine=examine)
        )
        for each in entries
    )


@functools.cache
def probe_programs() -> tuple[ProbeProgram, ...]:
    """The networks that come with the package, what tells most first."""
    return decode_probe_programs(_file(), trusted=True)


@functools.cache
def probe_digest() -> str:
    """Tells the networks of one version of this package from those of another."""
    return hashlib.sha256(gzip.decompress(_file())).hexdigest()


def _file() -> bytes:
    return (resources.files("edgeweave.predict") / "probe.json.gz").read_bytes()


@functools.cache
def _unit_rows() -> dict[str, tuple[Floats, ...]]:
    """The operators of every unit, by network."""
    return {
        each.name: tuple(unit_features(each.program, each.microbatch_size).values())
        for each in probe_programs()
    }


def _is_of(ran: NetworkSeconds, n_units: int) -> bool:
    seconds = (*ran.forward_seconds, *ran.backward_seconds)
    lengths = {len(ran.forward_seconds), len(ran.backward_seconds)}
    return lengths == {n_units} and all(0 <= each < math.inf for each in seconds)


_CONVOLUTIONS = [FAMILIES.index(name) for name in ("conv", "depthwise")]
_BETTER = 1e-9
_FREE = [FAMILIES.index(name) for name in ("view", "pass")]


def _work(rows: Floats) -> Floats:
    """Multiply-adds of convolutions, those of all else, bytes moved, operators."""
    family = rows[:, 0].astype(int)
    macs, moved = macs_and_bytes(rows)
    convolves, works = np.isin(family, _CONVOLUTIONS), ~np.isin(family, _FREE)
    parts = macs[convolves], macs[~convolves], moved[works], works
    return np.array([part.sum() for part in parts], dtype=np.float64)


def _non_negative(shares: Floats) -> Floats:
    """The non-negative ``x`` whose ``shares @ x`` is nearest to ones, with as few costs as will do.

    Every support is tried, small ones first.
    """
    n_costs = shares.shape[1]
    scale = np.maximum(np.abs(shares).max(axis=0), np.finfo(np.float64).tiny)
    scaled, ones = shares / scale, np.ones(len(shares))
    best, least = np.zeros(n_costs), float(len(shares))
    for support in sorted(itertools.product((False, True), repeat=n_costs), key=sum):
        chosen = np.flatnonzero(support)
        if not len(chosen):
            continue
        found, *_ = np.linalg.lstsq(scaled[:, chosen], ones, rcond=None)
        error = float(((scaled[:, chosen] @ found - ones) ** 2).sum())
        if error < least - _BETTER and (found >= 0).all():
            best, least = np.zeros(n_costs), error
            best[chosen] = found
    return np.asarray(best / scale)
