"""The one check that all numbers of a plan and its costs pass."""

from __future__ import annotations

import math

from edgeweave.core.errors import ConfigError

__all__ = ["require_not_negative"]


def require_not_negative(value: float, what: str, *, fix: str) -> None:
    """Refuse NaN, infinity and negative numbers."""
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"{what} must be finite and not negative (got {value}). {fix}")
