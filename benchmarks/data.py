"""Where data lie that are no part of the checkout."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["DATA"]

DATA = Path(
    os.environ.get("EDGEWEAVE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)
"""Beside the project, or where EDGEWEAVE_DATA says."""
