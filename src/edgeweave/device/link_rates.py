"""How fast the links to a stage are, from the frames that arrive anyway. No clock in common.

Every frame tells when it was sent, on its sender's clock. Clocks differ by an unknown constant, so
only differences count::

    delay     = arrived - sent              the least of a step: a frame that waited for no other
    waited    = delay - least delay         behind the frame before it, on a full link
    spacing   = arrived - the frame before arrived

A frame that waited for the one before began its passage when that one ended: its spacing is what
its bytes take of the link (the packet pair of network measurement). A frame that did not wait tells
nothing: where no frame ever waits, the link is fast enough and nobody needs to know how fast.
"""

from __future__ import annotations

import threading
from collections import deque
from itertools import pairwise
from statistics import median
from typing import NamedTuple

__all__ = ["LinkRates"]

_LEAST_SPACING_SECONDS = 0.02
"""What a busy receiver is late by looks like a slow link, but is shorter."""

_LEAST_WAITED = 0.5
"""As a share of the spacing: a frame that was merely late by jitter waited less."""

_MOST_FRAMES = 256


class _Arrival(NamedTuple):
    sent: float
    arrived: float
    size_bytes: int


class LinkRates:
    """Notes arrivals by round and sending stage, on any thread."""

    def __init__(self) -> None:
        self._arrivals: dict[tuple[int, int], deque[_Arrival]] = {}
        self._lock = threading.Lock()

    def add(self, round_: int, sender: int, arrival: tuple[float, float, int]) -> None:
        """A frame of ``sender`` is here: seconds sent (its clock) and arrived (ours), and bytes."""
        with self._lock:
            frames = self._arrivals.setdefault((round_, sender), deque(maxlen=_MOST_FRAMES))
            frames.append(_Arrival(*arrival))

    def end_round(self, round_: int) -> dict[int, float]:
        """Bytes per second from each stage whose frames waited; forgets the rounds until here."""
        with self._lock:
            ended = {key: frames for key, frames in self._arrivals.items() if key[0] <= round_}
            for key in ended:
                del self._arrivals[key]
        rates = {sender: _rate(frames) for (at, sender), frames in ended.items() if at == round_}
        return {sender: rate for sender, rate in rates.items() if rate > 0}


def _rate(frames: deque[_Arrival]) -> float:
    """The median over the frames that waited; 0 if none did."""
    least_delay = min(each.arrived - each.sent for each in frames)
    rates = []
    for before, frame in pairwise(frames):
        spacing = frame.arrived - before.arrived
        waited = frame.arrived - frame.sent - least_delay
        if spacing >= _LEAST_SPACING_SECONDS and waited >= _LEAST_WAITED * spacing:
            rates.append(frame.size_bytes / spacing)
    return median(rates) if rates else 0.0
