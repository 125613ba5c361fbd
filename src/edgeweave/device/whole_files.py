"""Files that are there as a whole or not at all, for what is kept beyond a process."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, with the folders above it, beside its place and move it there.

    ``OSError`` if that fails: then the file that was there before is there still, and no other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        written.write_bytes(data)
        written.replace(path)
    except OSError:
        written.unlink(missing_ok=True)
        raise
