"""Where commands keep what they can make again: probes of this device, experience with others."""

from __future__ import annotations

import os
from pathlib import Path

from edgeweave.device.probes.cache import user_cache_directory

__all__ = ["cache_directory"]


def cache_directory() -> Path | None:
    """This user's; None for a user without a home, a container's mostly."""
    try:
        home = Path("~").expanduser()
    except RuntimeError:
        return None
    return user_cache_directory(os.environ, home)
