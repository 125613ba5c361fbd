"""Which edges are open: sessions both ends agreed on, so that no message of an older one counts.

    a: hello(mine=5) --------> b: knows a by 5
    a knows b by 9   <-------- hello(mine=9, theirs=5)      a opens: b knows it
    hello(mine=5, theirs=9) -> b opens: a knows it

A number names an end in one session: the process's incarnation and a count. What follows carries
both numbers, and is dropped if either is not of now; and its place in the session, so that a
message that was lost is noticed by the next. Values in, values out; no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeweave.core.errors import WireError

__all__ = ["LARGEST_INCARNATION", "Heard", "Sessions"]

_COUNTS = 1 << 20
LARGEST_INCARNATION = (1 << 31) - 1
"""With a count it is still exact as a float, as frames carry scalars."""


@dataclass(slots=True)
class _Session:
    mine: int = 0
    theirs: int = 0
    is_open: bool = False
    n_sent: int = 0
    n_heard: int = 0

    def open(self) -> None:
        self.is_open = True
        self.n_sent = self.n_heard = 0


@dataclass(frozen=True, slots=True)
class Heard:
    """What a hello changes: whether the edge closes, whether it opens, whether to answer."""

    closes: bool
    opens: bool
    answers: bool


class Sessions:
    """The edges of one peer, by neighbour."""

    def __init__(self, incarnation: int) -> None:
        self._incarnation = incarnation
        self._n_greeted = 0
        self._sessions: dict[str, _Session] = {}

    def is_open(self, peer: str) -> bool:
        return peer in self._sessions and self._sessions[peer].is_open

    def open_peers(self) -> tuple[str, ...]:
        """Neighbours with an open edge."""
        # A copy in one go: ``status`` asks from another thread.
        return tuple(peer for peer, each in list(self._sessions.items()) if each.is_open)

    def incarnation_of(self, peer: str) -> int:
        """Which process of that name is at the other end."""
        return self._sessions[peer].theirs // _COUNTS

    def greet(self, peer: str) -> dict[str, float]:
        """Ask for a session; the scalars of the hello that does so.

        What was asked for before and is not open yet is asked for again, under the same number:
        the other end may have opened it already and count on it. Only an open session is left
        for a new one.
        """
        session = self._sessions.get(peer)
        if session is None or session.is_open or not session.mine:
            self._n_greeted += 1
            mine = self._incarnation * _COUNTS + self._n_greeted % _COUNTS
            session = self._sessions[peer] = _Session(mine)
        return {"mine": float(session.mine), "theirs": 0.0}

    def stamp(self, peer: str) -> dict[str, float]:
        """The numbers of the session, as hellos carry them."""
        session = self._sessions.setdefault(peer, _Session())
        if not session.mine:
            return self.greet(peer)
        return {"mine": float(session.mine), "theirs": float(session.theirs)}

    def number(self, peer: str) -> dict[str, float]:
        """What the next message over an open edge carries: the session, and its place in it."""
        stamp = self.stamp(peer)
        session = self._sessions[peer]
        session.n_sent += 1
        return {**stamp, "place": float(session.n_sent)}

    def hello(self, peer: str, scalars: Mapping[str, float]) -> Heard:
        """A neighbour said hello."""
        theirs, echo = int(scalars.get("mine", 0)), int(scalars.get("theirs", 0))
        if theirs <= 0:
            raise WireError(f"a hello names its session ({peer} sent none).")
        session = self._sessions.setdefault(peer, _Session())
        if not session.mine:
            self.greet(peer)
            session = self._sessions[peer]
        is_new = theirs != session.theirs
        closes = is_new and session.is_open
        session.theirs = theirs
        if is_new:
            session.is_open = False
        opens = echo == session.mine and not session.is_open
        if opens:
            session.open()
        return Heard(closes, opens, is_new or echo != session.mine)

    def is_current(self, peer: str, scalars: Mapping[str, float]) -> bool:
        """Whether a message is of the open session."""
        session = self._sessions.get(peer)
        return (
            session is not None
            and session.is_open
            and (int(scalars.get("mine", 0)), int(scalars.get("theirs", 0)))
            == (session.theirs, session.mine)
        )

    def follows(self, peer: str, scalars: Mapping[str, float]) -> bool:
        """Count a message of the open session; whether none before it was lost."""
        session = self._sessions[peer]
        session.n_heard += 1
        return int(scalars.get("place", 0)) == session.n_heard

    def close(self, peer: str) -> bool:
        """End a session from this end; whether it was open."""
        session = self._sessions.pop(peer, None)
        return session is not None and session.is_open
