"""What ``tc`` is told so that a network interface is like a set of links. Pure text, no I/O.

    egress of one device                 htb 1:
                                 ┌────────┼────────┐
    one class per destination   1:1      1:2      1:3      rate; filters by destination address
                                 │        │        │
    one leaf per class         pfifo    netem  blackhole   plain; delay, jitter, loss; down

What no filter matches (ARP) passes unshaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from edgeweave.net.link import GilbertElliott, LinkShape, RateTrace

__all__ = [
    "LOWEST_RATE",
    "class_line",
    "leaf_line",
    "most_segments",
    "needs_netem",
    "tree_lines",
]

LOWEST_RATE = 8e3
"""Bytes per second of a trace's piece of rate 0. ``htb`` knows no standstill; and a class waits out
the packet it sent last at the rate it had then, here 0.2 s."""

_FRAME_BYTES = 1514
"""A full Ethernet frame as ``htb`` counts it: 1500 bytes and the Ethernet header."""
_BURST_SECONDS = 0.004
"""How late the kernel's timer may be without loss of rate; also what an idle link gains at once."""
_SEGMENT_SECONDS = 0.001
"""How much of a link's time one packet may take when the kernel joins segments (GSO)."""
_UNLIMITED = 12.5e9
_LARGEST_BURST_BYTES = 1 << 20
_MOST_SEGMENTS = 43
"""What 64 KiB hold, the most that TCP joins."""
_QUEUE_PACKETS = 1000
_QUEUE_SECONDS = 1.0


def tree_lines(interface: str, addresses: Sequence[str]) -> list[str]:
    """The tree and its filters: class ``n`` (from 1) takes what goes to the ``n``-th address."""
    lines = [f"qdisc add dev {interface} root handle 1: htb"]
    for number, address in enumerate(addresses, start=1):
        lines += [
            class_line(interface, number, None),
            f"filter add dev {interface} parent 1: protocol ip prio 1 "
            f"u32 match ip dst {address}/32 flowid 1:{number:x}",
        ]
    return lines


def class_line(interface: str, number: int, bytes_per_second: float | None) -> str:
    """Give a class its rate; what waits in it stays.

    The quantum is two packets: it matters only where classes borrow, and none does.
    """
    rate = _UNLIMITED if bytes_per_second is None else max(bytes_per_second, LOWEST_RATE)
    burst = max(2 * _FRAME_BYTES, min(round(rate * _BURST_SECONDS), _LARGEST_BURST_BYTES))
    return (
        f"class replace dev {interface} parent 1: classid 1:{number:x} htb "
        f"rate {round(rate * 8)}bit burst {burst} cburst {burst} quantum {2 * _FRAME_BYTES}"
    )


def leaf_line(interface: str, number: int, shape: LinkShape) -> str:
    """Give a class its delay, jitter and loss, or shut it; what waited in it is lost.

    ``netem`` draws jitter evenly (its normal distribution is a file that many systems lack); the
    spread is chosen for the standard deviation asked for.
    """
    start = f"qdisc replace dev {interface} parent 1:{number:x}"
    if not shape.up:
        return f"{start} blackhole"
    if not needs_netem(shape):
        return f"{start} pfifo limit {_QUEUE_PACKETS}"
    words = [start, "netem limit", str(_waiting_packets(shape))]
    if shape.delay_seconds or shape.jitter_seconds:
        words += ["delay", _microseconds(shape.delay_seconds)]
    if shape.jitter_seconds:
        words.append(_microseconds(shape.jitter_seconds * math.sqrt(3)))
    return " ".join([*words, *_loss_words(shape.loss)])


def needs_netem(shape: LinkShape) -> bool:
    """Whether the shape has what ``htb`` alone does not do."""
    return bool(shape.delay_seconds or shape.jitter_seconds or shape.loss)


def most_segments(shapes: Iterable[LinkShape]) -> int:
    """How many segments the kernel may join into one packet (GSO) on an interface.

    One packet is shaped, and lost, as a whole: many segments spoil slow and lossy links, one each
    costs a fast link processor time (on a slow core no more than 400 Mbit/s pass).
    """
    most = _MOST_SEGMENTS
    for shape in shapes:
        rate = shape.bytes_per_second
        if isinstance(rate, RateTrace):
            rate = min(rate.bytes_per_second)
        if rate is not None:
            most = min(most, int(rate * _SEGMENT_SECONDS / _FRAME_BYTES))
        if shape.loss:
            most = 1
    return max(most, 1)


def _waiting_packets(shape: LinkShape) -> int:
    """Room for all that is on its way, and for a queue before it."""
    rate = shape.bytes_per_second
    if isinstance(rate, RateTrace):
        rate = max(rate.bytes_per_second)
    seconds = shape.delay_seconds + 4 * shape.jitter_seconds + _QUEUE_SECONDS
    flying = (_UNLIMITED / 100 if rate is None else rate) * seconds / _FRAME_BYTES
    return _QUEUE_PACKETS + math.ceil(flying)


def _loss_words(loss: float | GilbertElliott) -> list[str]:
    if isinstance(loss, GilbertElliott):
        shares = (loss.to_bad, loss.to_good, loss.loss_bad, loss.loss_good)
        return ["loss", "gemodel", *map(_percent, shares)]
    return ["loss", "random", _percent(loss)] if loss else []


def _microseconds(seconds: float) -> str:
    return f"{round(seconds * 1e6)}us"


def _percent(share: float) -> str:
    return f"{share * 100:.6g}%"
