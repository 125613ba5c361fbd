"""What waits at one emulated link, who goes next, and when it arrives. No thread, no clock."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeweave.core.loss import PACKET_BYTES
from edgeweave.net.link_model import LinkModel
from edgeweave.net.transport import Priority, Reliability

__all__ = ["MOST_WAITING_BYTES", "LinkQueue", "Message"]

_TURN_BYTES: Final = 44 * PACKET_BYTES
"""What goes in one turn, before a message of a higher priority may overtake: almost 64 kB."""

MOST_WAITING_BYTES: Final = 256 * 1024
"""What may wait at a link, by priority, before senders do; one message may be larger."""

_AHEAD_SECONDS: Final = 0.005
"""Turns are given out this much ahead, and on fast links last that long: up to 200 wake-ups a
second, whatever the rate."""


class Message:
    """Something on its way over one link. ``deliver`` is called when it arrives."""

    __slots__ = (
        "_deliver_left",
        "deliver",
        "key",
        "left_bytes",
        "n_datagrams",
        "offered_at",
        "priority",
        "reliability",
        "size_bytes",
    )

    def __init__(
        self,
        size_bytes: int,
        deliver: Callable[[], None] | None,
        *,
        key: str = "",
        priority: Priority = Priority.DATA,
        reliability: Reliability = Reliability.RELIABLE,
        n_datagrams: int = 1,
        deliver_left: Callable[[npt.NDArray[np.bool_]], None] | None = None,
    ) -> None:
        """``deliver=None``: it takes its place on the link and gets lost there. What may be lost
        travels in ``n_datagrams``; ``deliver_left`` is called with those that are, instead of
        ``deliver``, where some arrive.
        """
        self.key = key
        self.size_bytes = size_bytes
        self.left_bytes = size_bytes
        self.deliver = deliver
        self.priority = priority
        self.reliability = reliability
        self.n_datagrams = n_datagrams
        self.offered_at = -math.inf
        self._deliver_left = deliver_left

    def lose(self, lost: npt.NDArray[np.bool_]) -> None:
        """These of its datagrams do not arrive."""
        left = self._deliver_left
        if lost.all():
            self.deliver = None
        elif left is not None:
            self.deliver = lambda: left(lost)


class LinkQueue:
    """Messages waiting for one link: the most urgent first, in order within a priority.

    The caller asks for ``advance`` at ``next_at``, or later: a turn begins when the one before has
    ended, not when somebody looks.
    """

    def __init__(self, model: LinkModel) -> None:
        self.model = model
        self.waiting_bytes = dict.fromkeys(Priority, 0)
        """Offered and not begun, by priority: the urgent need not wait for room of others."""
        self.begun_bytes = 0
        """Begun since the beginning: it grows while the link takes anything."""
        self.n_under_way = 0
        """Messages offered and not delivered; whoever delivers counts it down."""
        self._lanes: dict[Priority, deque[Message]] = {
            priority: deque() for priority in sorted(Priority, reverse=True)
        }
        self._up_since = -math.inf

    def offer(self, now: float, message: Message) -> None:
        """Let a message wait for its turn."""
        message.offered_at = now
        self.waiting_bytes[message.priority] += message.left_bytes
        self.n_under_way += 1
        self._lanes[message.priority].append(message)

    def has_room(self, message: Message) -> bool:
        """Whether a message may be offered without too much waiting before it."""
        waiting_bytes = self.waiting_bytes[message.priority]
        return not waiting_bytes or waiting_bytes + message.size_bytes <= MOST_WAITING_BYTES

    def withdraw(self, message: Message) -> None:
        """Take a message back, unless all of it has left."""
        lane = self._lanes[message.priority]
        if message in lane:
            lane.remove(message)
            self.waiting_bytes[message.priority] -= message.left_bytes
            self.n_under_way -= 1

    def advance(self, now: float) -> list[tuple[float, Message]]:
        """Give turns to what waits; (arrival, message) for each whose last turn that was."""
        gone = []
        while (lane := self._next_lane()) and self.next_at() <= now:
            message = lane[0]
            start = max(self.model.free_at, self._up_since, message.offered_at)
            soon_bytes = self.model.bytes_between(start, start + _AHEAD_SECONDS)
            turn_bytes = int(min(message.left_bytes, max(soon_bytes, _TURN_BYTES)))
            if message.reliability is Reliability.RELIABLE:
                passage = self.model.carry(start, turn_bytes)
            else:
                share = turn_bytes / message.size_bytes
                n_datagrams = math.ceil(message.n_datagrams * share)
                passage = self.model.carry_datagrams(start, turn_bytes, n_datagrams)
            message.left_bytes -= turn_bytes
            self.waiting_bytes[message.priority] -= turn_bytes
            self.begun_bytes += turn_bytes
            if not message.left_bytes:
                gone.append((passage.arrives_at, lane.popleft()))
        return gone

    def next_at(self) -> float:
        """When the next turn can be given; infinite if nothing waits or the link is down."""
        if not self.model.shape.up or self._next_lane() is None:
            return math.inf
        return self.model.free_at - _AHEAD_SECONDS

    def came_up(self, now: float) -> None:
        """The link was down until now: what waits begins now, not before."""
        self._up_since = now

    def _next_lane(self) -> deque[Message] | None:
        return next((lane for lane in self._lanes.values() if lane), None)
