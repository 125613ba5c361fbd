"""Parts of a long benchmark, each kept when it is done: one that was cut off goes on from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgeweave.device.whole_files import write_whole

__all__ = ["kept_or_made"]

Made = TypeVar("Made")


def kept_or_made(folder: Path | None, name: str, kind: Any, make: Callable[[], Made]) -> Made:
    """What lies in the folder under the name, as a ``kind``; else it is made, and put there."""
    if folder is None:
        return make()
    path = folder / f"{name}.json"
    if path.exists():
        found: Made = msgspec.json.decode(path.read_bytes(), type=kind)
        return found
    made = make()
    write_whole(path, msgspec.json.encode(made))
    return made
