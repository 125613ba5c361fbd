"""Messages between members as they arrive, datagram by datagram, and waiting for them.

    datagrams   0 1 . 3 4 | end end end    2 is lost: that is known once an end is here
    closed      whole, ended, nothing was sent, its sender is gone, or its deadline is over

Nothing is asked for again. An end says how many datagrams there were; it travels as they do, and
may be lost too, so every message has several. Deadlines are learnt from how long messages took, for
each sender and way; they are for messages whose ends are lost, and for devices that fall silent.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import torch

from edgeweave.core.clock import Clock
from edgeweave.core.deadline import Deadline
from edgeweave.core.errors import EdgeweaveError

__all__ = ["Parcel", "ParcelId", "Parcels", "Way"]

Way = Literal["values", "gradients"]

Outcome = Literal["whole", "ended", "nothing", "gone", "overdue"]

_DISORDER_KEPT: Final = 0.98
_REMEMBERED_ROUNDS: Final = 64
"""For which deadlines learn from what comes late."""


class ParcelId(NamedTuple):
    """Which message: ``transfer`` is a number in ``Sliced.transfers``."""

    way: Way
    round: int
    transfer: int


@dataclass(frozen=True, slots=True)
class Parcel:
    """What came of one message: a tensor or None for each datagram that was sent."""

    parts: tuple[torch.Tensor | None, ...]
    """None at all if it is not known how many were sent."""
    outcome: Outcome


@dataclass(slots=True)
class _Box:
    """A message that is arriving."""

    parts: dict[int, torch.Tensor] = field(default_factory=dict)
    count: int | None = None
    ended_at: float | None = None

    def outcome(self) -> Outcome | None:
        """Whether it is complete."""
        if self.count == 0:
            return "nothing"
        return "whole" if self.count == len(self.parts) else None


class Parcels:
    """All messages to one member. ``put`` and ``end`` are for the transport's threads."""

    def __init__(self, clock: Clock, *, first_seconds: float, least_seconds: float) -> None:
        """Deadlines are ``first_seconds`` until something came, and at least ``least_seconds``."""
        self._clock = clock
        self._unknown = Deadline(first_seconds=first_seconds, floor_seconds=least_seconds)
        self._changed = threading.Condition()
        self._boxes: dict[ParcelId, _Box] = {}
        self._closed: dict[ParcelId, float | None] = {}
        """Messages that were closed with something missing -> when their end came."""
        self._first_round = 0
        self._gone: set[int] = set()
        self._deadlines: dict[tuple[int, Way], Deadline] = {}
        self._disorder: dict[int, float] = {}
        """By sender, how long after an end its datagrams may still come, in seconds."""
        self._error: EdgeweaveError | None = None
        self.overdue: dict[int, int] = {}
        self.late: dict[int, int] = {}

    def put(self, key: ParcelId, sender: int, index: int, count: int, part: torch.Tensor) -> None:
        """A datagram has come."""
        with self._changed:
            if self._is_late(key, sender):
                return
            box = self._boxes.setdefault(key, _Box())
            box.count = count
            box.parts[index] = part
            if box.outcome() is not None:
                self._changed.notify_all()

    def end(self, key: ParcelId, sender: int, count: int) -> None:
        """An end has come: ``count`` datagrams were sent, perhaps none."""
        with self._changed:
            if key in self._closed or key.round < self._first_round:
                return
            box = self._boxes.setdefault(key, _Box())
            box.count = count
            if box.ended_at is None:
                box.ended_at = self._clock.now()
                self._changed.notify_all()

    def wait(
        self, wanted: Mapping[ParcelId, int], *, seconds: float | None = None
    ) -> dict[ParcelId, Parcel]:
        """Take messages out, by their senders, as soon as nothing more is to be expected of them.

        That is at the latest when a message's learnt deadline is over, or ``seconds`` where given.
        """
        found: dict[ParcelId, Parcel] = {}
        with self._changed:
            began = self._clock.now()
            while True:
                if self._error is not None:
                    raise self._error
                now, next_at = self._clock.now(), float("inf")
                for key in wanted.keys() - found.keys():
                    at, outcome = self._closes(key, wanted[key], began, seconds)
                    if at <= now:
                        found[key] = self._close(key, wanted[key], outcome, now - began)
                    else:
                        next_at = min(next_at, at)
                if len(found) == len(wanted):
                    return found
                self._changed.wait(next_at - now)

    def set_gone(self, sender: int, gone: bool) -> None:
        """A device has vanished, or is back: nothing is waited for from one that is gone."""
        with self._changed:
            (self._gone.add if gone else self._gone.discard)(sender)
            self._changed.notify_all()

    def is_gone(self, sender: int) -> bool:
        with self._changed:
            return sender in self._gone

    def forget_before(self, round: int) -> None:  # noqa: A002  the protocol's word
        """Nobody waits for messages of earlier rounds any more."""
        with self._changed:
            self._first_round = round
            self._boxes = {k: box for k, box in self._boxes.items() if k.round >= round}
            oldest = round - _REMEMBERED_ROUNDS
            self._closed = {k: at for k, at in self._closed.items() if k.round >= oldest}

    def fail(self, error: EdgeweaveError) -> None:
        """Make every wait, now and later, raise ``error``. The first error stays."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def _closes(
        self, key: ParcelId, sender: int, began: float, seconds: float | None
    ) -> tuple[float, Outcome]:
        """When nothing more is to be expected of a message, and why."""
        box = self._boxes.get(key)
        complete = None if box is None else box.outcome()
        if complete is not None:
            return began, complete
        if sender in self._gone:
            return began, "gone"
        if box is not None and box.ended_at is not None:
            return box.ended_at + self._disorder.get(sender, 0.0), "ended"
        learnt = self._deadline(sender, key.way).seconds if seconds is None else seconds
        return began + learnt, "overdue"

    def _close(self, key: ParcelId, sender: int, outcome: Outcome, waited: float) -> Parcel:
        box = self._boxes.pop(key, _Box())
        if outcome in ("ended", "overdue", "gone"):
            self._closed[key] = box.ended_at
        if outcome == "overdue":
            self.overdue[sender] = self.overdue.get(sender, 0) + 1
        elif outcome != "gone":
            self._deadlines[sender, key.way] = self._deadline(sender, key.way).heard(waited)
        return Parcel(tuple(box.parts.get(index) for index in range(box.count or 0)), outcome)

    def _is_late(self, key: ParcelId, sender: int) -> bool:
        """Whether a datagram comes after its message was closed; waits learn from that."""
        if key not in self._closed and key.round >= self._first_round:
            return False
        self.late[sender] = self.late.get(sender, 0) + 1
        if key not in self._closed:
            return True
        ended_at = self._closed[key]
        if ended_at is None:
            way: Way = key.way
            self._deadlines[sender, way] = self._deadline(sender, way).was_too_short()
            self._closed[key] = self._clock.now()
        else:
            disorder = _DISORDER_KEPT * self._disorder.get(sender, 0.0)
            self._disorder[sender] = max(disorder, self._clock.now() - ended_at)
        return True

    def _deadline(self, sender: int, way: Way) -> Deadline:
        return self._deadlines.get((sender, way), self._unknown)
