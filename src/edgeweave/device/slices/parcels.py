"""Messages between members as they arrive, some of them in part, and waiting for them.

    whole       all of its datagrams are there
    ended       some are, and no more will come
    nothing     its sender had nothing to send
    gone        its sender has vanished
    overdue     its deadline is over

Nothing is asked for again. Deadlines are learnt from how long messages took, for each sender and
way; they are for messages of which nothing arrives, and for devices that fall silent.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, get_args

import torch

from edgeweave.core.clock import Clock
from edgeweave.core.deadline import Deadline
from edgeweave.core.errors import EdgeweaveError

__all__ = ["Parcel", "ParcelId", "Parcels", "Way"]

Way = Literal["values", "gradients"]

Outcome = Literal["whole", "ended", "nothing", "gone", "overdue"]

_NO_ROWS: Final = torch.zeros(0)
_REMEMBERED_ROUNDS: Final = 64
"""For which deadlines learn from what comes late."""


class ParcelId(NamedTuple):
    """Which message: ``transfer`` is a number in ``Sliced.transfers``."""

    way: Way
    round: int
    transfer: int


@dataclass(frozen=True, slots=True)
class Parcel:
    """What came of one message: of ``count`` datagrams those of these numbers, as rows."""

    outcome: Outcome
    count: int = 0
    """0: there was nothing to send, or it is not known how many were sent."""
    numbers: torch.Tensor = _NO_ROWS
    rows: torch.Tensor = _NO_ROWS

    @property
    def n_arrived(self) -> int:
        return len(self.numbers)

    @property
    def arrived(self) -> torch.Tensor:
        """Which datagrams did."""
        found = torch.zeros(self.count, dtype=torch.bool)
        found[self.numbers.long()] = True
        return found


class Parcels:
    """All messages to one member. ``put`` is for the transport's threads."""

    def __init__(self, clock: Clock, *, first_seconds: float, least_seconds: float) -> None:
        """Deadlines are ``first_seconds`` until something came, and at least ``least_seconds``."""
        self._clock = clock
        self._unknown = Deadline(first_seconds=first_seconds, floor_seconds=least_seconds)
        self._changed = threading.Condition()
        self._arrived: dict[ParcelId, Parcel] = {}
        self._overdue: set[ParcelId] = set()
        """Messages that were given up at their deadlines, and have not come since."""
        self._first_round = 0
        self._gone: set[int] = set()
        self._deadlines: dict[tuple[int, Way], Deadline] = {}
        self._error: EdgeweaveError | None = None
        self.overdue: dict[int, int] = {}
        self.late: dict[int, int] = {}

    def put(
        self, key: ParcelId, sender: int, count: int, numbers: torch.Tensor, rows: torch.Tensor
    ) -> None:
        """What arrives of a message is here, and no more of it will come: of ``count`` datagrams,
        perhaps none, those with these numbers.
        """
        with self._changed:
            if self._is_late(key, sender, len(numbers)):
                return
            outcome: Outcome = "nothing" if not count else "ended"
            if 0 < count == len(numbers):
                outcome = "whole"
            self._arrived[key] = Parcel(outcome, count, numbers, rows)
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
                    at, parcel = self._closes(key, wanted[key], began, seconds)
                    if at <= now:
                        found[key] = parcel
                        self._close(key, wanted[key], parcel.outcome, now - began)
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

    def forget_sender(self, sender: int) -> None:
        """What is known of a sender is no more true: it is on another device."""
        with self._changed:
            for way in get_args(Way):
                self._deadlines.pop((sender, way), None)
            self.overdue.pop(sender, None)
            self.late.pop(sender, None)

    def forget_before(self, round: int) -> None:  # noqa: A002  the protocol's word
        """Nobody waits for messages of earlier rounds any more."""
        with self._changed:
            self._first_round = round
            self._arrived = {k: box for k, box in self._arrived.items() if k.round >= round}
            oldest = round - _REMEMBERED_ROUNDS
            self._overdue = {key for key in self._overdue if key.round >= oldest}

    def fail(self, error: EdgeweaveError) -> None:
        """Make every wait, now and later, raise ``error``. The first error stays."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def _closes(
        self, key: ParcelId, sender: int, began: float, seconds: float | None
    ) -> tuple[float, Parcel]:
        """When nothing more is to be expected of a message, and what it then is."""
        arrived = self._arrived.get(key)
        if arrived is not None:
            return began, arrived
        if sender in self._gone:
            return began, Parcel("gone")
        learnt = self._deadline(sender, key.way).seconds if seconds is None else seconds
        return began + learnt, Parcel("overdue")

    def _close(self, key: ParcelId, sender: int, outcome: Outcome, waited: float) -> None:
        self._arrived.pop(key, None)
        if outcome == "overdue":
            self._overdue.add(key)
            self.overdue[sender] = self.overdue.get(sender, 0) + 1
        elif outcome != "gone":
            self._deadlines[sender, key.way] = self._deadline(sender, key.way).heard(waited)

    def _is_late(self, key: ParcelId, sender: int, n_arrived: int) -> bool:
        """Whether a message comes after it was given up; waits learn from that."""
        if key not in self._overdue and key.round >= self._first_round:
            return False
        self.late[sender] = self.late.get(sender, 0) + n_arrived
        if key in self._overdue:
            self._overdue.discard(key)
            way: Way = key.way
            self._deadlines[sender, way] = self._deadline(sender, way).was_too_short()
        return True

    def _deadline(self, sender: int, way: Way) -> Deadline:
        return self._deadlines.get((sender, way), self._unknown)
