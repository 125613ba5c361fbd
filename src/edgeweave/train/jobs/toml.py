"""Plain values as TOML text, which ``tomllib`` reads back as equal values."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence

from edgeweave.core.errors import ConfigError

__all__ = ["to_toml", "toml_value"]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(document: Mapping[str, Mapping[str, object]]) -> str:
    """A document of sections; a table inside a section is written on one line.

    >>> print(to_toml({"train": {"batch_size": 64, "loss": {"weights": [1.0, 2.0]}}}))
    [train]
    batch_size = 64
    loss = {weights = [1.0, 2.0]}
    <BLANKLINE>
    """
    return "\n".join(
        f"[{_key(name)}]\n" + "".join(f"{_pair(*item)}\n" for item in section.items())
        for name, section in document.items()
    )


def toml_value(value: object) -> str:
    """One value; ``ConfigError`` for what TOML has no word for."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return "{" + ", ".join(_pair(*item) for item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    raise ConfigError(
        "a job file holds text, numbers, true and false, dates, lists and tables "
        f"(got {type(value).__name__}). Leave it out, or write it as one of these."
    )


def _pair(key: str, value: object) -> str:
    return f"{_key(key)} = {toml_value(value)}"


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else toml_value(key)
