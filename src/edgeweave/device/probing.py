"""Measure the link to another device with requests that it answers with nothing."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean, median
from typing import Final

from edgeweave.device.messages import LinkTimings
from edgeweave.net.pieces import PIECE_BYTES

__all__ = ["BASES_BYTES", "probe_link"]

BASES_BYTES: Final = (1, PIECE_BYTES + 1)
"""What a payload of one piece is compared with, and one of more, which is fetched: that takes a
round trip of its own."""

_SAMPLES = 5
_SHORTEST_SECONDS = 1e-6


def probe_link(
    ask: Callable[[bytes], object], now: Callable[[], float], size_bytes: int
) -> LinkTimings:
    """Latency and rate by ``ask(payload)``, which returns when the empty answer is here.

    ``size_bytes`` is more than 1, and none of ``BASES_BYTES``.

    The latency is a median, the rate comes from means: frames wait for the packets that a link
    loses now and then, and a plan should know. Half of a small round trip is taken to be the way
    there, so links whose directions differ get their mean.
    """

    def seconds(n_bytes: int) -> float:
        started = now()
        ask(bytes(n_bytes))
        return now() - started

    base_bytes = max(base for base in BASES_BYTES if base <= size_bytes)
    ask(b"\0")  # opens the way
    small = median(seconds(1) for _ in range(_SAMPLES))
    base = small if base_bytes == 1 else fmean(seconds(base_bytes) for _ in range(_SAMPLES))
    large = fmean(seconds(size_bytes) for _ in range(_SAMPLES))
    rate = (size_bytes - base_bytes) / max(large - base, _SHORTEST_SECONDS)
    return LinkTimings(latency_seconds=small / 2, bytes_per_second=rate)
