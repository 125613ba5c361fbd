"""What a device declares on a memory fabric: something under a key that hears, or is seen."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from typing import Any

import zenoh

__all__ = ["Ear", "Role"]


class Role(enum.Enum):
    """What an ear takes; a token takes nothing."""

    FRAMES = enum.auto()
    REQUESTS = enum.auto()
    NEWS = enum.auto()
    TOKEN = enum.auto()


class Ear:
    """One declaration. Keys match as they do in Zenoh, because Zenoh matches them."""

    def __init__(self, role: Role, key: str, owner: str, call: Callable[..., Any]) -> None:
        self.role = role
        self.key = key
        self.owner = owner
        self.call = call
        self.calling = threading.RLock()
        """Held while ``call`` runs."""
        self.closed = False
        self.on_close: Callable[[Ear], None] = lambda ear: None
        self._pattern = zenoh.KeyExpr(key)

    def close(self) -> None:
        self.on_close(self)

    def hears(self, key: str) -> bool:
        """Whether something said under ``key`` is for this ear."""
        return self._pattern.intersects(zenoh.KeyExpr(key))
