"""How long a message waits for packets that a link lost. Every function is about one message.

A sender like TCP repeats what was lost one round trip later, until all of it is there. A message of
``n`` packets, each lost with probability ``p``, waits for more than ``k`` rounds with probability
``1 - (1 - p ** (k + 1)) ** n``: its unluckiest packet decides.
"""

from __future__ import annotations

import functools
import math
from typing import Final

__all__ = ["PACKET_BYTES", "drawn_rounds", "loss_from_rounds", "mean_rounds", "n_packets"]

PACKET_BYTES: Final = 1448
"""What one packet carries: an Ethernet frame without the headers of IP and TCP."""

_MOST_LOSS = 0.5
_MOST_ROUNDS = 64


def n_packets(size_bytes: float) -> int:
    """How many packets a message takes."""
    return max(1, math.ceil(size_bytes / PACKET_BYTES))


@functools.lru_cache(maxsize=4096)
def mean_rounds(size_bytes: float, loss: float) -> float:
    """How many round trips a message waits on average."""
    count, total = n_packets(size_bytes), 0.0
    for power in range(1, _MOST_ROUNDS):
        late = -math.expm1(count * math.log1p(-(loss**power)))
        total += late
        if late < 1e-6:
            break
    return total


def drawn_rounds(size_bytes: float, loss: float, chance: float) -> int:
    """How many round trips a message waits that is unluckier than a share ``chance`` of all."""
    if loss == 0 or chance == 0:
        return 0
    # The probability to be done after k rounds, (1 - loss ** (k + 1)) ** n, reaches ``chance``.
    left = -math.expm1(math.log(chance) / n_packets(size_bytes))
    return max(0, math.ceil(math.log(left) / math.log(loss)) - 1) if left > 0 else _MOST_ROUNDS


def loss_from_rounds(size_bytes: float, rounds: float) -> float:
    """The loss with which a message waits so many round trips on average; at most a half."""
    low, high = 0.0, _MOST_LOSS
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_rounds(size_bytes, middle) < rounds else (low, middle)
    return low
