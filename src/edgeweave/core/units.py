"""Sizes and durations: how a person writes them, and how they are shown."""

from __future__ import annotations

import re
from decimal import Decimal

from edgeweave.core.errors import ConfigError

__all__ = ["format_bytes", "format_seconds", "parse_bytes"]

_FACTORS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}


def parse_bytes(text: str | int) -> int:
    """Read a size such as ``"512MiB"`` or ``"1.5 GB"``; a bare number is bytes.

    >>> parse_bytes("1.5 KiB")
    1536
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(text).lower())
    if match is None or match[2] not in _FACTORS:
        raise ConfigError(
            f"a size is a number and a unit (got {text!r}). Write it like 512MiB or 1.5GB."
        )
    return int(Decimal(match[1]) * _FACTORS[match[2]])


def format_bytes(size_bytes: float) -> str:
    """Show a size in the largest binary unit that keeps it above one.

    >>> format_bytes(1536)
    '1.5 KiB'
    """
    for unit in ("B", "KiB", "MiB"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} GiB"


def format_seconds(seconds: float) -> str:
    """Show a duration with three significant digits.

    >>> format_seconds(0.00123), format_seconds(75)
    ('1.23 ms', '1 min 15 s')
    """
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} us"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"
