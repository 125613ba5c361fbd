"""How fast the links to a stage are, from the frames that arrive anyway. No clock in common.

Every frame tells when it was sent, on its sender's clock. Clocks differ by an unknown constant, so
only differences count::

    delay     = arrived - sent
    waited    = delay - the least delay of the round
    jitter    = median distance of the delays of successive rounds' first frames: these never wait
    spacing   = arrived - the frame before arrived

A frame that waited for the one before began its passage when that one ended: its spacing is what
its bytes take of the link (the packet pair of network measurement). It is believed to have waited
if it was later than six times the jitter, which the latest of many frames hardly is, and by half of
the spacing; pings, which take nothing of the link, do not say what is early. A link that changes
makes one large distance, no jitter. A frame without bytes takes nothing, however late it is.

Frames that do not wait tell nothing that way. So now and then one is sent right behind a ping, a
frame of no bytes: what it comes later than the ping, it takes of the link itself::

    passage   = delay of the frame - delay of its ping
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from math import inf
from statistics import median
from typing import NamedTuple

__all__ = ["Arrival", "LinkRates"]

_LEAST_SPACING_SECONDS = 0.02
"""What a busy receiver is late by looks like a slow link, but is shorter."""

_LEAST_WAITED = 0.5
"""As a share of the spacing."""

_JITTERS = 6.0
"""And as a multiple of the jitter."""

_LEAST_ROUNDS, _MOST_ROUNDS = 4, 16
"""From how many rounds jitter is known."""

_MOST_FRAMES = 256


class Arrival(NamedTuple):
    """A frame is here: seconds sent (the sender's clock) and arrived (ours), and its bytes."""

    sent: float
    arrived: float
    size_bytes: int
    is_ping: bool = False

    @property
    def delay(self) -> float:
        """Up to a constant."""
        return self.arrived - self.sent


class LinkRates:
    """Notes arrivals by round and sending stage, on any thread."""

    def __init__(self) -> None:
        self._arrivals: dict[tuple[int, int], deque[Arrival]] = {}
        self._first_delays: dict[int, deque[float]] = {}
        self._lock = threading.Lock()

    def add(self, round_: int, sender: int, arrival: Arrival) -> None:
        """A frame of ``sender`` is here."""
        with self._lock:
            frames = self._arrivals.setdefault((round_, sender), deque(maxlen=_MOST_FRAMES))
            frames.append(arrival)

    def end_round(self, round_: int) -> dict[int, float]:
        """Bytes per second from each stage whose frames tell; forgets the rounds until here."""
        with self._lock:
            ended = {key: frames for key, frames in self._arrivals.items() if key[0] <= round_}
            for key in ended:
                del self._arrivals[key]
        found = {}
        for (at, sender), frames in ended.items():
            if at == round_:
                firsts = self._first_delays.setdefault(sender, deque(maxlen=_MOST_ROUNDS))
                firsts.append(frames[0].delay)
                if len(firsts) >= _LEAST_ROUNDS and (rates := _rates(frames, firsts)):
                    found[sender] = median(rates)
        return found


def _rates(frames: Sequence[Arrival], first_delays: Sequence[float]) -> list[float]:
    """Of the frames that waited, or came behind a ping."""
    jitter = median(abs(after - before) for before, after in pairwise(first_delays))
    least_delay = min((frame.delay for frame in frames if not frame.is_ping), default=inf)
    found = []
    for before, frame in pairwise(frames):
        passage = frame.delay - before.delay
        least = max(_LEAST_SPACING_SECONDS, _JITTERS * jitter)
        if before.is_ping and frame.size_bytes and least <= passage < inf:
            found.append(frame.size_bytes / passage)
            continue
        spacing = frame.arrived - before.arrived
        waited = frame.delay - least_delay
        least = max(_JITTERS * jitter, _LEAST_WAITED * spacing)
        if frame.size_bytes and spacing >= _LEAST_SPACING_SECONDS and waited >= least:
            found.append(frame.size_bytes / spacing)
    return found
