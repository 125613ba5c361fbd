"""Trainings of `benchmarks/edgepipe.py` that were done are not done again, if somebody says where
they are kept: they count slots and draw from seeds, so the same code finds the same.

    EDGEPIPE_FOUND=/tmp/found python -m benchmarks.edgepipe_found 0      the trainings of seed 0
    EDGEPIPE_FOUND=/tmp/found python -m benchmarks edgepipe              the rest, and the result

Seeds may run at once, and be interrupted. A file is named by what is trained and by the code that
trains: after a change of either it is done anew.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.edgepipe_runs import Found, Job, train

__all__ = ["found"]

_ROOT = Path(__file__).resolve().parent.parent
_CODE = (
    "benchmarks/edgepipe_runs.py",
    "benchmarks/small_data.py",
    "benchmarks/data.py",
    "src/edgeweave/codec/datagrams.py",
    "src/edgeweave/net/_loss.py",
    "src/edgeweave/plan/mapping.py",
    "src/edgeweave/plan/reception.py",
    "src/edgeweave/plan/stream.py",
    "src/edgeweave/plan/super_neurons.py",
    "src/edgeweave/program",
    "src/edgeweave/train/link_fates.py",
    "src/edgeweave/train/rehearsal.py",
)


def found(job: Job, do: Callable[[Job], Found] = train) -> Found:
    """What a training comes to: as it was found before, or trained now."""
    directory = os.environ.get("EDGEPIPE_FOUND")
    if directory is None:
        return do(job)
    path = Path(directory) / f"{_digest(repr(job).encode() + _code())[:24]}.json"
    if path.exists():
        return Found(**json.loads(path.read_text(encoding="utf-8")))
    result = do(job)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps(dataclasses.asdict(result)), encoding="utf-8")
    partial.rename(path)
    return result


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@functools.cache
def _code() -> bytes:
    """A digest of everything that decides what a training finds."""
    paths = [_ROOT / name for name in _CODE]
    files = [f for path in paths for f in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    return _digest(b"".join(file.read_bytes() for file in files)).encode()


def main() -> None:
    """Do the trainings of the seeds that the command line names."""
    from benchmarks.edgepipe import of_seed  # noqa: PLC0415  it asks this module

    for seed in map(int, sys.argv[1:]):
        of_seed({}, seed, quick=False)


if __name__ == "__main__":
    main()
