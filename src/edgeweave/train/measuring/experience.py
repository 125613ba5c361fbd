"""What was learnt of devices, kept on the coordinator beyond a run: a file for each device and its
facts, or memory alone.

A device with other facts is another device: it begins from its probe again. A file that cannot be
read counts as none, one that cannot be written is a warning, as with probes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from edgeweave.device.whole_files import write_whole
from edgeweave.predict import FAMILIES, FEATURES, DeviceLatency, LatencyModel, Measurement
from edgeweave.predict.facts import DeviceFacts
from edgeweave.predict.features import Floats
from edgeweave.predict.learning import MOST_KEPT, MOST_WAITING, Lessons, learn
from edgeweave.predict.probe import Probe

__all__ = ["Experience"]

_log = logging.getLogger(__name__)

_WORDS = (*FAMILIES, *FEATURES)
_NUMBER = np.dtype("<f4")
_MOST_BYTES = 64 << 20

Seconds = Annotated[float, msgspec.Meta(gt=0, le=1e6)]


class _Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A measurement; its rows as little-endian float32, row after row."""

    rows: bytes
    forward_seconds: Seconds
    backward_seconds: Seconds | None


_Batch = Annotated[tuple[_Measured, ...], msgspec.Meta(max_length=MOST_KEPT)]


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file. ``words`` are what rows are made of: with others they are of no use any more."""

    words: tuple[str, ...]
    facts: DeviceFacts
    kept: _Batch
    waiting: Annotated[tuple[_Batch, ...], msgspec.Meta(max_length=MOST_WAITING)]


class Experience:
    """Notes what devices took, and predicts from what was noted and proved itself.

    ``directory=None`` keeps all of it while this lives. Two coordinators that write at the same
    moment do not spoil a file; the later one is right.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._known: dict[tuple[str, DeviceFacts], Lessons] = {}

    def note(self, device: str, facts: DeviceFacts, batch: Sequence[Measurement]) -> None:
        """Remember what a device took in one profile or one run. Judged by the next ``latency``."""
        if batch:
            self._keep(device, facts, self.lessons(device, facts).noted(batch))

    def latency(self, device: str, probe: Probe) -> DeviceLatency:
        """What is known of a device: its probe, and what was learnt with these facts.

        What was noted and makes predictions worse is rolled back, and said so at INFO.
        """
        probed = DeviceLatency(LatencyModel.shipped(), probe.measurements())
        lessons = self.lessons(device, probe.facts)
        learnt = learn(probed, lessons)
        for verdict in learnt.verdicts:
            _log.info("%s: %s", device, verdict)
        if learnt.lessons is not lessons:
            self._keep(device, probe.facts, learnt.lessons)
        return learnt.latency

    def lessons(self, device: str, facts: DeviceFacts) -> Lessons:
        """All that is remembered of a device with these facts."""
        path = self._path(device, facts)
        if (device, facts) in self._known or path is None or not path.exists():
            return self._known.get((device, facts), Lessons())
        try:
            return _read(path, facts)
        except (OSError, UnicodeDecodeError, ValueError) as error:
            _log.warning("%s is learnt anew: %s holds no measurements (%s)", device, path, error)
            return Lessons()

    def _keep(self, device: str, facts: DeviceFacts, lessons: Lessons) -> None:
        self._known[device, facts] = lessons
        path = self._path(device, facts)
        if path is None:
            return
        waiting = tuple(map(_encoded, lessons.waiting))
        document = _Document(_WORDS, facts, _encoded(lessons.kept), waiting)
        try:
            data = msgspec.json.encode(document)
            _lessons_in(data, facts)  # What reading refuses must not replace what it takes.
            write_whole(path, data)
        except (OSError, ValueError) as error:
            _log.warning("what %s took is kept in memory alone (%s)", device, error)

    def _path(self, device: str, facts: DeviceFacts) -> Path | None:
        if self._directory is None:
            return None
        return self._directory / f"learnt-{device}-{facts.digest()}.json"


def _read(path: Path, facts: DeviceFacts) -> Lessons:
    """What is of use in a file; ``ValueError`` (of which msgspec's are) if it is no such file."""
    _check_size(path.stat().st_size)
    return _lessons_in(path.read_bytes(), facts)


def _lessons_in(data: bytes, facts: DeviceFacts) -> Lessons:
    """What is of use in a file of these bytes."""
    _check_size(len(data))
    found = msgspec.json.decode(data, type=_Document)
    if (found.facts, found.words) != (facts, _WORDS):
        return Lessons()
    return Lessons(_decoded(found.kept), tuple(map(_decoded, found.waiting)))


def _check_size(n_bytes: int) -> None:
    if n_bytes > _MOST_BYTES:
        raise ValueError(f"more than {_MOST_BYTES >> 20} MiB")


def _encoded(measurements: Sequence[Measurement]) -> tuple[_Measured, ...]:
    return tuple(
        _Measured(each.rows.astype(_NUMBER).tobytes(), each.forward_seconds, each.backward_seconds)
        for each in measurements
    )


def _decoded(measured: Sequence[_Measured]) -> tuple[Measurement, ...]:
    return tuple(
        Measurement(_rows(each.rows), each.forward_seconds, each.backward_seconds)
        for each in measured
    )


def _rows(data: bytes) -> Floats:
    """Operators; ``ValueError`` if they are none."""
    rows = np.frombuffer(data, _NUMBER).astype(np.float64).reshape(-1, 1 + len(FEATURES))
    families = np.isin(rows[:, 0], np.arange(len(FAMILIES)))
    if not (len(rows) and families.all() and np.isfinite(rows).all()):
        raise ValueError("an operator is a family's number and finite features")
    return rows
