"""TOML tables read strictly: every key is known, every error says the file and the place.

A reader turns one TOML value into ours and raises ``ConfigError`` with a rule; the table adds where
it was found. Knows no fleet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

from edgeweave.core.errors import ConfigError
from edgeweave.core.words import suggest

__all__ = ["Reader", "Table", "flag", "number", "shortened", "text", "whole"]

_Value = TypeVar("_Value")
Reader = Callable[[object], _Value]


class Table:
    """One table of a file. ``with`` it, take keys; what nobody took is refused at the end."""

    def __init__(self, value: object, origin: str, place: str) -> None:
        self.origin = origin
        self.place = place
        if not isinstance(value, Mapping):
            raise self.refused(f"{place} is a table (got {shortened(value)}). Write keys into it.")
        self._left = dict(value)
        self._known: list[str] = []

    def __enter__(self) -> Table:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        if kind is None and self._left:
            name = next(iter(self._left))
            place = f"{self.place}." if self.place else ""
            raise self.refused(f"{place}{name} is not a key here. {suggest(name, self._known)}")

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, reader: Reader[_Value], default: _Value) -> _Value:
        """The value of a key that may be left out."""
        self._known.append(name)
        return self._read(name, reader) if name in self._left else default

    def need(self, name: str, reader: Reader[_Value], example: str) -> _Value:
        """The value of a key that must be there; ``example`` is what one could write."""
        self._known.append(name)
        if name not in self._left:
            raise self.refused(f"{self.at(name)} is needed. Write for example {example}.")
        return self._read(name, reader)

    def tables(self, name: str) -> tuple[Table, ...]:
        """The tables of a ``[[name]]``, in order."""
        self._known.append(name)
        found = self._left.pop(name, [])
        if not isinstance(found, list):
            raise self.refused(
                f"{self.at(name)} is a list of tables (got {shortened(found)}). Write "
                f"[[{self.at(name)}]] above each."
            )
        return tuple(
            Table(each, self.origin, f"{self.at(name)}[{index}]")
            for index, each in enumerate(found)
        )

    def table(self, name: str) -> Table:
        """The table of a ``[name]``; empty if it is left out."""
        self._known.append(name)
        return Table(self._left.pop(name, {}), self.origin, self.at(name))

    def checked(self, make: Callable[[], _Value]) -> _Value:
        """What ``make`` returns; the ``ConfigError`` it raises says this place."""
        try:
            return make()
        except ConfigError as error:
            place = f"{self.place}: " if self.place else ""
            raise self.refused(f"{place}{error}") from error

    def at(self, name: str) -> str:
        """How messages name a key."""
        return f"{self.place}.{name}" if self.place else name

    def refused(self, why: str) -> ConfigError:
        """An error of this file."""
        return ConfigError(f"{self.origin}: {why}")

    def _read(self, name: str, reader: Reader[_Value]) -> _Value:
        value = self._left.pop(name)
        try:
            return reader(value)
        except ConfigError as error:
            raise self.refused(f"{self.at(name)}: {error}") from error


def text(value: object) -> str:
    """A reader of text that is not empty."""
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ConfigError(f"expected text (got {shortened(value)}). Put it in quotes.")
    return value


def flag(value: object) -> bool:
    """A reader of ``true`` and ``false``."""
    if not isinstance(value, bool):
        raise ConfigError(f"expected true or false (got {shortened(value)}). Write one of them.")
    return value


def number(value: object) -> float:
    """A reader of finite numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        raise ConfigError(f"expected a number (got {shortened(value)}). Write it like 0.5.")
    if not math.isfinite(value):
        raise ConfigError(f"expected a finite number (got {value}). Write it like 0.5.")
    return float(value)


def whole(value: object) -> int:
    """A reader of whole numbers of 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ConfigError(
            f"expected a whole number of 0 or more (got {shortened(value)}). Write it like 3."
        )
    return value


def shortened(value: object) -> str:
    """A value as messages show it."""
    try:
        shown = repr(value)
    except ValueError:  # an integer of more digits than Python converts
        shown = f"a very large {type(value).__name__}"
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
