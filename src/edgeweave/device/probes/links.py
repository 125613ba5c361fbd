"""Measure the link to another device with requests that it answers with nothing."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean, median
from typing import Final

from edgeweave.core.loss import loss_from_rounds, mean_rounds
from edgeweave.device.probes.messages import LinkTimings
from edgeweave.net.pieces import PIECE_BYTES

__all__ = ["BASES_BYTES", "probe_link"]

BASES_BYTES: Final = (1, PIECE_BYTES + 1)
"""What a payload of one piece is compared with, and one of more, which is fetched: that takes a
round trip of its own."""

_SAMPLES = 8
_SHORTEST_SECONDS = 1e-6
_SHORTEST_WAIT_SECONDS = 2e-3
"""Shorter delays are the scheduler's."""


def probe_link(
    ask: Callable[[bytes], object], now: Callable[[], float], size_bytes: int
) -> LinkTimings:
    """Latency, rate and loss by ``ask(payload)``, which returns when the empty answer is here.

    ``size_bytes`` is more than 1, and none of ``BASES_BYTES``.

    The latency is half the median of small round trips, so links whose directions differ get their
    mean. What payloads of some fifty packets take beyond the quickest of them is put down to lost
    packets, each of which costs a round trip, unless it is less than half of one: eight payloads
    tell 1 % of loss from none, not from half or twice as much.
    """

    def seconds(n_bytes: int) -> list[float]:
        payload, taken = bytes(n_bytes), []
        for _ in range(_SAMPLES):
            started = now()
            ask(payload)
            taken.append(now() - started)
        return taken

    base_bytes = max(base for base in BASES_BYTES if base <= size_bytes)
    ask(b"\0")  # opens the way
    small = seconds(1)
    base = small if base_bytes == 1 else seconds(base_bytes)
    large = seconds(size_bytes)
    round_trip = median(small)
    watched_bytes, watched = (size_bytes, large) if base_bytes == 1 else (base_bytes, base)
    waits = [taken - min(watched) for taken in watched]
    least_wait = max(round_trip / 2, _SHORTEST_WAIT_SECONDS)
    lost = [wait if wait >= least_wait else 0.0 for wait in waits]
    rounds = fmean(lost) / max(round_trip, _SHORTEST_SECONDS)
    loss = loss_from_rounds(watched_bytes, rounds)

    def without_waits(n_bytes: int, taken: list[float]) -> float:
        return fmean(taken) - round_trip * mean_rounds(n_bytes, loss)

    base_seconds = round_trip if base_bytes == 1 else without_waits(base_bytes, base)
    added_seconds = without_waits(size_bytes, large) - base_seconds
    rate = (size_bytes - base_bytes) / max(added_seconds, _SHORTEST_SECONDS)
    return LinkTimings(round_trip / 2, rate, loss)
