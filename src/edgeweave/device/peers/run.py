"""One gossip run on one device: the state machine of ``edgeweave.mixing.peer`` with a real clock.

    transport's threads --events--> peer thread: mixes, updates  --work--> learner thread: gradients
                                        |
                                        '--frames--> one outbox thread per neighbour

The peer thread never computes a gradient and never waits for the network, so that a neighbour that
asks is answered while this device trains. Nobody is asked how to go on: neighbours that come back
without the run are enrolled anew by whoever sees them first.
"""

from __future__ import annotations

import functools
import heapq
import logging
import queue
import secrets
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from edgeweave.core.errors import FleetError, WireError
from edgeweave.device import memory
from edgeweave.device.frames.outbox import Outboxes
from edgeweave.device.peers.frames import check_header, frame_of, message_of
from edgeweave.device.peers.messages import Admit, BeginGossip, Enrol, Enrolled, PeerStatus
from edgeweave.device.peers.preparing import prepare
from edgeweave.device.peers.returns import admit, enrol_again, wait_until_without
from edgeweave.device.threads import adopt_torch_threads
from edgeweave.device.workplace import Workplace
from edgeweave.mixing import (
    LARGEST_INCARNATION,
    Effect,
    Peer,
    Send,
    Train,
    Trained,
    Wake,
)
from edgeweave.net import (
    Frame,
    control_pattern,
    device_of,
    frame_key,
    frame_pattern,
)
from edgeweave.program import encode_state

__all__ = ["PeerRun"]

_log = logging.getLogger(__name__)

_MOST_EVENTS = 4096
_RECENT = 20
"""Steps that a status is about."""

_Event = Callable[[float], list[Effect]]


class PeerRun:
    """A device's part in a run, from ``Enrol`` to ``close``. It works from ``begin`` on."""

    def __init__(
        self, message: Enrol, place: Workplace, *, on_finished: Callable[[], None]
    ) -> None:
        self.run = message.run
        self._message = message
        self._place = place
        self._on_finished = on_finished
        peers = message.settings.graph.peers
        self._ranks = {name: rank for rank, name in enumerate(peers)}
        if message.rank is not None:
            self._ranks[message.name] = message.rank
        self._ready = prepare(message, place, number=self._ranks[message.name])
        self._learner, self._first = self._ready.learner, self._ready.first
        self._limit_bytes = self._first.nbytes + 4096
        self._throttle = place.throttle.on_another_thread()
        self._events: queue.Queue[_Event | None] = queue.Queue(_MOST_EVENTS)
        self._work: queue.Queue[Train | None] = queue.Queue(2)
        self._wakes: list[float] = []
        self._outboxes = Outboxes(stop_seconds=place.timeouts.stop)
        self._handling_seconds = 0.0
        self._peer: Peer | None = None
        self._error: BaseException | None = None
        self._began_at: float | None = None
        self._ended_at: float | None = None
        self._beginning = threading.Lock()
        self._closed = False
        self._stack = ExitStack()

    def enrolled(self) -> Enrolled:
        """What the device brings."""
        return self._ready.enrolled()

    def begin(self, message: BeginGossip) -> None:
        """Start to work. A second time changes nothing."""
        with self._beginning:
            if self._closed:
                raise FleetError(f"run {self.run} has ended on {self._message.name}.")
            if self._peer is not None:
                return
            place, settings = self._place, self._message.settings
            me = self._message.name
            self._peer = peer = Peer(
                settings,
                me,
                self._first,
                steps=message.steps,
                apply=self._learner.apply,
                incarnation=1 + secrets.randbelow(LARGEST_INCARNATION - 1),
                patience_seconds=place.timeouts.frame,
            )
            self._began_at = place.clock.now()
            with ExitStack() as stack:
                stack.callback(self._outboxes.close)
                for target in (self._train, self._loop):
                    thread = threading.Thread(target=target, name=f"edgeweave-{target.__name__}")
                    stack.callback(thread.join)
                    thread.start()
                stack.callback(lambda: self._put_last(self._events))
                stack.callback(lambda: self._put_last(self._work))
                fleet = place.settings.fleet
                heard = place.transport.subscribe(
                    frame_pattern(fleet, self.run, 0, self._ranks[me]),
                    self._take,
                    on_error=lambda error: _log.warning("run %s: %s", self.run, error),
                    expect=check_header,
                    limit_bytes=self._limit_bytes,
                )
                stack.callback(heard.close)
                self._post(lambda now: peer.start(now, returning=message.returning))
                watch = place.transport.watch(control_pattern(fleet, "alive"), self._noticed)
                stack.callback(watch.close)
                self._stack = stack.pop_all()

    def end_unless_begun(self) -> bool:
        """Let it not begin any more; False if it has begun."""
        with self._beginning:
            self._closed = self._closed or self._peer is None
            return self._closed

    def status(self) -> PeerStatus:
        """How the peer is doing."""
        peer = self._peer
        peers = self._message.settings.graph.peers
        error = None if self._error is None else f"{type(self._error).__name__}: {self._error}"
        if peer is None:
            return PeerStatus(self.run, "enrolled", error=error, peers=peers)
        told = peer.statistics
        losses, busy = told.losses[-_RECENT:], told.busy_seconds[-_RECENT:]
        counts = told.n_samples[-_RECENT:]
        whole = min(self._message.settings.batch_size, self._learner.n_samples)
        return PeerStatus(
            run=self.run,
            phase=peer.phase,
            step=peer.step,
            steps=peer.steps,
            loss=sum(losses) / len(losses) if losses else None,
            neighbours=peer.open_peers,
            n_samples=sum(told.n_samples),
            share=sum(counts) / (len(counts) * whole) if counts else 1.0,
            iteration_seconds=sum(busy) / len(busy) if busy else 0.0,
            waited_seconds=sum(told.waited_seconds),
            scoring_seconds=told.scoring_seconds,
            bytes_sent=told.bytes_sent,
            edges_lost=told.n_closed,
            steps_here=len(told.losses),
            seconds=self._seconds(),
            error=error,
            peers=peers,
        )

    def _seconds(self) -> float:
        now = self._place.clock.now() if self._ended_at is None else self._ended_at
        return 0.0 if self._began_at is None else now - self._began_at

    def model(self) -> bytes:
        """The model now, as safetensors."""
        model = self._first if self._peer is None else self._peer.model
        return encode_state(self._learner.state_dict(model))

    def stop(self) -> bool:
        """Do no more steps. What is being computed is not used. False if it has not begun."""
        peer = self._peer
        if peer is not None and self._error is None and not self._have_done(peer.stop):
            raise FleetError(f"{self._message.name} is too busy to stop. Ask again.")
        return peer is not None

    def leave(self) -> None:
        """Tell neighbours that this device goes, and hand on what must not be lost.

        Returns once they have heard it, or after ``Timeouts.stop``: they see it go in any case.
        """
        peer = self._peer
        if peer is None or self._error is not None:
            return
        neighbours = peer.open_peers
        if self._have_done(peer.leave):
            wait_until_without(self._message, neighbours, self._place)

    def admit(self, message: Admit) -> None:
        """Give the run to a device that is no peer of it yet."""
        peer = self._peer
        if peer is None or peer.phase == "finished":
            raise FleetError(f"run {self.run} is not at work on {self._message.name}. Ask another.")
        admit(self._message, message, peer.steps, self._place)

    def close(self) -> None:
        """End its threads and subscriptions."""
        with self._beginning:
            self._closed = True
            self._stack.close()
        memory.release_freed()

    # The peer thread.

    def _loop(self) -> None:
        try:
            while True:
                event = self._next_event()
                if event is None:
                    return
                began = self._place.clock.now()
                with self._throttle.pace("peer"):
                    effects = self._happened(event, began)
                self._handling_seconds += self._place.clock.now() - began
                self._perform(effects)
        except BaseException as error:  # noqa: BLE001 - a thread's boundary: told by ``status``
            self._fail(error)

    def _happened(self, event: _Event, now: float) -> list[Effect]:
        """What follows; nothing from a message that makes no sense: its sender's edge times out."""
        try:
            return event(now)
        except WireError as error:
            _log.warning("run %s: a message is dropped: %s", self.run, error)
            return []

    def _next_event(self) -> _Event | None:
        """What happened, or that a moment to wake at has come."""
        now = self._place.clock.now()
        timeout = max(self._wakes[0] - now, 0.0) if self._wakes else None
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            heapq.heappop(self._wakes)
            peer = self._peer
            return None if peer is None else peer.woke

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._send(effect)
            elif isinstance(effect, Train):
                self._work.put_nowait(effect)
            elif isinstance(effect, Wake):
                heapq.heappush(self._wakes, effect.at_seconds)
            else:
                self._ended_at = self._place.clock.now()
                _log.info("run %s: no more steps here", self.run)
                self._on_finished()

    def _send(self, send: Send) -> None:
        message, me = send.message, self._message.name
        rank = self._ranks.get(send.to)
        if rank is None:
            return
        frame = frame_of(message, me, self._ranks[me])
        transport = self._place.transport
        key = frame_key(self._place.settings.fleet, self.run, 0, rank, message.kind)
        self._outboxes.to(send.to).post(lambda: transport.send(key, frame, device=send.to))

    # The learner thread.

    def _train(self) -> None:
        adopt_torch_threads()
        try:
            while (train := self._work.get()) is not None:
                trained = self._learner.train(train.model, train.n_samples, train.step)
                other, self._handling_seconds = self._handling_seconds, 0.0
                measured = replace(trained, other_seconds=other)
                self._post(functools.partial(self._trained, measured))
        except BaseException as error:  # noqa: BLE001 - a thread's boundary: told by ``status``
            self._fail(error)

    def _trained(self, trained: Trained, now: float) -> list[Effect]:
        return [] if self._peer is None else self._peer.trained(now, trained)

    # The transport's threads.

    def _take(self, frame: Frame) -> None:
        header, peer = frame.header, self._peer
        if peer is None:
            return
        self._ranks.setdefault(header.device, header.stage)
        message = message_of(frame)
        self._post(lambda now: peer.heard(now, header.device, message))

    def _noticed(self, key: str, alive: bool) -> None:
        other, peer = device_of(key), self._peer
        if peer is None or other == self._message.name or other not in peer.neighbours:
            return
        if alive:
            self._outboxes.to(other).post(lambda: self._enrol_again(other))
            self._post(lambda now: peer.found(now, other))
        else:
            self._post(lambda now: peer.lost(now, other))

    # The outboxes' threads.

    def _enrol_again(self, other: str) -> None:
        peer = self._peer
        if peer is None or peer.phase == "finished":
            return
        done = enrol_again(self._message, other, peer.steps, self._place)
        if done:
            _log.info("run %s: %s is there, and was %s", self.run, other, done)

    # All threads.

    def _have_done(self, event: _Event) -> bool:
        """Let the peer thread do something, and wait for it; whether it did in time."""
        done = threading.Event()

        def tell(_now: float) -> list[Effect]:
            done.set()
            return []

        try:
            self._post(event)
            self._post(tell)  # once what follows from the event was performed
        except queue.Full:
            return False
        return done.wait(self._place.timeouts.stop)

    def _post(self, event: _Event) -> None:
        if self._error is not None:
            return
        self._events.put(event, timeout=self._place.timeouts.send)

    @staticmethod
    def _put_last(queue_: queue.Queue[_Event | None] | queue.Queue[Train | None]) -> None:
        """Let a thread end, whatever is still waiting for it."""
        while True:
            try:
                queue_.put_nowait(None)
            except queue.Full:
                queue_.get_nowait()
            else:
                return

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
            _log.error("run %s: this peer cannot go on: %s", self.run, error, exc_info=error)
            self._on_finished()
