"""What a run leaves beside its checkpoints, so that a later process can go on with its devices.

    DIRECTORY/run.json              the run's name and how many terms it had
    DIRECTORY/progress-XXXXXXXX.json    where it was after a step whose state devices keep

The devices of a coordinator that vanished keep their last states for ``Timeouts.keep``; together
with the progress of the same step that is a checkpoint nobody had to move.

A disk that takes no notes when a run begins ends it: checkpoints would fail there too. Later that
is a warning: without its notes a run only loses the way back to its devices, if it is killed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgeweave.core.errors import CheckpointError
from edgeweave.device import write_whole
from edgeweave.train.checkpoint import Progress, progress_from_json, progress_to_json

__all__ = ["Journal", "RunRecord", "noted"]

_log = logging.getLogger(__name__)

_KEPT = 4
"""Devices keep two states each, one of which may not be everywhere yet."""
_RUN = "run.json"
_NOTES = "progress-*.json"


class RunRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Under which name devices know a run, and the number of its newest term."""

    run: str
    term: int


@dataclass(frozen=True, slots=True)
class Journal:
    """The files of one directory. Each is written whole or not at all; ``CheckpointError`` says why
    one cannot be written, deleted or read.
    """

    directory: Path

    def begin_term(self, record: RunRecord) -> None:
        """A term begins: from now on devices answer to its number. What is left of another run,
        which nobody went on with, goes.
        """
        if record.term == 0:
            self.end()
        self._write(_RUN, msgspec.json.encode(record))

    def note(self, progress: Progress) -> None:
        """Devices keep their states after this step, and none of later ones: a run that went back
        does those again.
        """
        name = f"progress-{progress.step:08d}.json"
        others = [path for path in self._noted() if path.name != name]
        earlier = [path for path in others if path.name < name]
        self._delete({*others} - {*earlier[1 - _KEPT :]})  # first: they take room
        self._write(name, progress_to_json(progress))

    def end(self) -> None:
        """Nobody keeps anything of the run any more."""
        patterns = (_RUN, _NOTES, *(f"{name}.[0-9]*" for name in (_RUN, _NOTES)))  # half-written
        self._delete(path for pattern in patterns for path in self.directory.glob(pattern))

    def record(self) -> RunRecord | None:
        """The run that was under way when its process ended, if it did not end by itself."""
        try:
            return msgspec.json.decode((self.directory / _RUN).read_bytes(), type=RunRecord)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise CheckpointError(
                f"{self.directory / _RUN} cannot be read ({error}). Delete it to resume from the "
                "last checkpoint."
            ) from error

    def progress(self) -> dict[int, Progress]:
        """What was noted, by step."""
        found = (progress_from_json(self._read(path), path) for path in self._noted())
        return {progress.step: progress for progress in found}

    def _noted(self) -> Sequence[Path]:
        return sorted(self.directory.glob(_NOTES))

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read ({error.strerror or error}). Delete it to resume from the "
                "last checkpoint."
            ) from error

    def _delete(self, paths: Iterable[Path]) -> None:
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise CheckpointError(
                    f"{path} cannot be deleted ({error.strerror or error}). Make its disk writable "
                    "or choose another directory."
                ) from error

    def _write(self, name: str, data: bytes) -> None:
        path = self.directory / name
        try:
            write_whole(path, data)
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be written ({error.strerror or error}). Earlier checkpoints there "
                "are whole; free space or choose another directory."
            ) from error


@contextmanager
def noted(journal: Journal | None) -> Iterator[Callable[[str, int], None]]:
    """Notes the terms of a run. At its end, good or bad, the devices were let go, and all notes go;
    they stay only where the process had no time for an end, or the disk does not let them go.
    """
    if journal is None:
        yield lambda _run, _term: None
        return

    def begin_term(run: str, term: int) -> None:
        try:
            journal.begin_term(RunRecord(run, term))
        except CheckpointError as error:
            if term == 0:
                raise
            _log.warning("term %d of %s goes on without being noted: %s", term, run, error)

    try:
        yield begin_term
    finally:
        try:
            journal.end()
        except CheckpointError as error:
            _log.warning("what was noted of a run that is over stays: %s", error)
