"""Holds messages back for as long as emulated links take: one queue per link, one worker for all.

    post, travel --> queue of the link --turns--> on the way --arrived--> deliver()
    (block while it is full)            worker                   worker

Whoever sends is blocked as by a full socket; the worker wakes up for turns and arrivals. Threads
wake up late, by a tenth of a millisecond or two: the worker learns how late it delivers, and is so
much early.

One worker delivers for all links of a device: where a receiver holds up ``deliver()``, by at most
``Timeouts.send`` for each piece of a frame, what arrived over the other links waits too.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import threading
from collections.abc import Callable

from edgeweave.core.clock import Clock
from edgeweave.core.errors import EdgeweaveError, FleetError
from edgeweave.core.timeouts import Timeouts
from edgeweave.core.units import format_seconds
from edgeweave.net._punctuality import Punctuality
from edgeweave.net.link import Links, LinkShape, link_name
from edgeweave.net.link_model import LinkModel
from edgeweave.net.link_queue import MOST_WAITING_BYTES, LinkQueue, Message
from edgeweave.net.remote import closed_error, stuck_link_error
from edgeweave.net.transport import Reliability

__all__ = ["Shaper"]

_log = logging.getLogger(__name__)

_LONGEST_WAIT_SECONDS = 60.0
_MOST_FAILURES = 64


class Shaper:
    """The links from one device to all others, on a clock.

    Without a worker (``threaded=False``) the caller moves the clock and calls ``deliver``.
    """

    def __init__(
        self,
        name: str,
        links: Links,
        *,
        clock: Clock,
        timeouts: Timeouts,
        threaded: bool,
        look: Callable[[float], float],
    ) -> None:
        """``look(now)`` is called whenever time has passed; it returns when it wants to be next."""
        self.changed = threading.Condition()
        """Guards everything here, and is notified of every change."""
        self._name = name
        self._links = links
        self._clock = clock
        self._timeouts = timeouts
        self._threaded = threaded
        self._look_too = look
        self._began = clock.now()
        self._queues: dict[str, LinkQueue] = {}
        self._failures: dict[str, EdgeweaveError] = {}
        """By key, because who sends there next is told: not who sends for another run."""
        self._on_the_way: list[tuple[float, int, str, Message]] = []
        self._numbers = itertools.count()
        self._worker: threading.Thread | None = None
        self._punctuality = Punctuality()
        self._closed = False

    def is_plain(self, device: str) -> bool:
        """Whether messages to ``device`` may pass straight on: nothing holds them, or is ahead."""
        with self.changed:
            target = link_name(device)
            queue = self._queues.get(target)
            return self._shape(target).is_plain and (queue is None or not queue.n_under_way)

    def post(self, device: str, key: str, message: Message) -> None:
        """Put a message on its way to ``device``; blocks as ``Transport.send`` says."""
        target = link_name(device)
        with self.changed:
            queue = self._queue(target)
            failure = self._failures.pop(key, None)
            if failure is not None:
                raise failure
            self._wait_for_room(queue, device, key, message)
            if message.reliability is not Reliability.RELIABLE:
                message.lose(queue.model.lose_datagrams(message.n_datagrams))
                if not queue.model.shape.up:
                    return
            queue.offer(self._clock.now(), message)
            self.wake()

    def travel(self, device: str, message: Message, *, timeout_seconds: float) -> bool:
        """Return when the message has arrived; False if the time was over before."""
        deadline = self._clock.now() + timeout_seconds
        arrived = False

        def arrive() -> None:
            nonlocal arrived
            arrived = True

        message.deliver = arrive
        with self.changed:
            queue = self._queue(link_name(device))
            queue.offer(self._clock.now(), message)
            self.wake()
            while not arrived:
                left = deadline - self._clock.now()
                if left <= 0 or self._closed:
                    queue.withdraw(message)
                    self._check_open()
                    return False
                self.changed.wait(min(left, _LONGEST_WAIT_SECONDS))
        return True

    def reshape(self, links: Links) -> None:
        """Be other links from now on. What is on its way keeps its times."""
        with self.changed:
            now = self._clock.now()
            self._look(now)
            self._links = links
            for target, queue in self._queues.items():
                shape, was_up = self._shape(target), queue.model.shape.up
                queue.model.reshape(shape, return_seconds=self._return_seconds(target))
                if shape.up and not was_up:
                    queue.came_up(now)
            self.wake()

    def wake(self) -> None:
        """Something changed: see to it now, and let everybody who waits look again."""
        with self.changed:
            if self._threaded and self._worker is None and not self._closed:
                self._worker = threading.Thread(target=self._run, name="edgeweave-links")
                self._worker.start()
            self._look(self._clock.now())
            self.changed.notify_all()

    def deliver(self) -> int:
        """Deliver what has arrived by now, on this thread; how many messages that were."""
        with self.changed:
            self._look(self._clock.now())
            arrived = self._arrived()
            self.changed.notify_all()  # time has passed: who waits may have waited long enough
        for target, message in arrived:
            self._deliver(target, message)
        return len(arrived)

    def close(self) -> None:
        """End the worker. What is on its way is lost, and who waits is told."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()
        if self._worker is not None and self._worker is not threading.current_thread():
            self._worker.join(self._timeouts.stop)
            if self._worker.is_alive():
                _log.warning(
                    "%s: the thread of its links still runs %s after it was told to end; "
                    "a receiver holds it up",
                    self._name,
                    format_seconds(self._timeouts.stop),
                )

    def _run(self) -> None:
        while True:
            with self.changed:
                while not self._closed:
                    now = self._clock.now()
                    wait_seconds = self._look(now) - now
                    if wait_seconds <= 0:
                        break
                    self.changed.wait(min(wait_seconds, _LONGEST_WAIT_SECONDS))
                if self._closed:
                    return
            self.deliver()

    def _look(self, now: float) -> float:
        """Give turns to what waits; when something happens next."""
        for target, queue in self._queues.items():
            waiting = queue.waiting_bytes.copy()
            for arrives_at, message in queue.advance(now):
                entry = (arrives_at, next(self._numbers), target, message)
                heapq.heappush(self._on_the_way, entry)
            # Not for every turn: those who wait for room would wake up to find none.
            if any(
                left < min(waiting[priority], MOST_WAITING_BYTES)
                for priority, left in queue.waiting_bytes.items()
            ):
                self.changed.notify_all()
        next_at = min((queue.next_at() for queue in self._queues.values()), default=math.inf)
        arrival = self._on_the_way[0][0] if self._on_the_way else math.inf
        return min(next_at, arrival - self._punctuality.early_seconds, self._look_too(now))

    def _arrived(self) -> list[tuple[str, Message]]:
        now, found = self._clock.now(), []
        while self._on_the_way and self._on_the_way[0][0] <= now + self._punctuality.early_seconds:
            arrives_at, _, target, message = heapq.heappop(self._on_the_way)
            found.append((target, message))
            if self._threaded:
                self._punctuality.learn(now - arrives_at)
        return found

    def _deliver(self, target: str, message: Message) -> None:
        failure = None
        try:
            if message.deliver is not None:
                message.deliver()
        except EdgeweaveError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - a thread's boundary: the next sender is told
            failure = FleetError(f"sending failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
        with self.changed:
            self._queues[target].n_under_way -= 1
            if failure is not None and not self._closed:
                _log.warning("%s: a message to %s was lost: %s", self._name, target, failure)
                self._failures.setdefault(message.key, failure)
                if len(self._failures) > _MOST_FAILURES:  # of runs that send nothing any more
                    del self._failures[next(iter(self._failures))]
            self.changed.notify_all()

    def _wait_for_room(self, queue: LinkQueue, device: str, key: str, message: Message) -> None:
        since, begun_bytes = self._clock.now(), queue.begun_bytes
        while True:
            self._check_open()
            now = self._clock.now()
            self._look(now)  # the worker may be late, or held up by a receiver
            if queue.has_room(message):
                return
            if queue.begun_bytes != begun_bytes:
                since, begun_bytes = now, queue.begun_bytes
            left = since + self._timeouts.send - now
            if left <= 0:
                raise stuck_link_error(device, key, self._timeouts.send)
            self.changed.wait(min(left, _LONGEST_WAIT_SECONDS))

    def _check_open(self) -> None:
        if self._closed:
            raise closed_error(self._name)

    def _queue(self, target: str) -> LinkQueue:
        self._check_open()
        if target not in self._queues:
            self._queues[target] = LinkQueue(
                LinkModel(
                    self._shape(target),
                    (link_name(self._name), target),
                    seed=self._links.seed,
                    return_seconds=self._return_seconds(target),
                    began=self._began,
                )
            )
        return self._queues[target]

    def _shape(self, target: str) -> LinkShape:
        return self._links.shape(link_name(self._name), target)

    def _return_seconds(self, target: str) -> float:
        return self._links.shape(target, link_name(self._name)).delay_seconds
