"""Sizes, rates and durations: how a person writes them, and how they are shown."""

from __future__ import annotations

import re
from decimal import Decimal

from edgeweave.core.errors import ConfigError

__all__ = ["format_bytes", "format_seconds", "parse_bytes", "parse_rate", "parse_seconds"]

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
_PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_SECONDS = {"us": Decimal("1e-6"), "ms": Decimal("1e-3"), "s": Decimal(1), "min": Decimal(60)}


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


def parse_rate(text: str) -> float:
    """Read a rate such as ``"20Mbit/s"`` or ``"2.5 MB/s"``, in bytes per second.

    Bits and bytes are told apart by the word: ``bit`` is a bit, a capital ``B`` is a byte.

    >>> parse_rate("20Mbit/s"), parse_rate("1.5 MiB/s")
    (2500000.0, 1572864.0)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*((?:[kKmMgG]i?)?)(bit|B)/s\s*", text)
    if match is None:
        raise ConfigError(
            f"a rate is a number and bits or bytes per second (got {text!r}). "
            "Write it like 20Mbit/s or 2.5MB/s."
        )
    bits = 1 if match[3] == "bit" else 8
    return float(Decimal(match[1]) * _PREFIXES[match[2].lower()] * bits / 8)


def parse_seconds(text: str) -> float:
    """Read a duration such as ``"3ms"`` or ``"1.5 s"``, in seconds.

    >>> parse_seconds("3ms")
    0.003
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(us|ms|s|min)\s*", text)
    if match is None:
        raise ConfigError(
            f"a duration is a number and us, ms, s or min (got {text!r}). "
            "Write it like 3ms or 1.5s."
        )
    return float(Decimal(match[1]) * _SECONDS[match[2]])


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
