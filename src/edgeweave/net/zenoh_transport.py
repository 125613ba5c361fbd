"""The transport over Eclipse Zenoh: frames, requests, liveliness. Knows nothing of runs or stages.

How Zenoh's Python binding runs callbacks (measured, 1.10): each subscription, queryable and query
has a thread of its own, fed through a queue of 256 messages. One slow callback therefore delays its
own subscription only, until its queue is full: then the link that feeds it stops being read, its
sender waits, and after ``Timeouts.send`` Zenoh closes that link and drops what waited.
"""

from __future__ import annotations

import functools
import itertools
import logging
import secrets
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import zenoh
from zenoh.handlers import Callback

from edgeweave.core.errors import FleetError, WireError
from edgeweave.net._requests import Asker, Question, Served, answer
from edgeweave.net._session import open_session
from edgeweave.net._sink import Receiver, Sink, guarded
from edgeweave.net._zenoh import Entity, Publisher, Recent, close
from edgeweave.net.bursts import check_datagrams
from edgeweave.net.frame import Frame, FrameHeader, encode
from edgeweave.net.keys import check_device_name, check_key
from edgeweave.net.locators import reachable
from edgeweave.net.pieces import split
from edgeweave.net.remote import closed_error
from edgeweave.net.settings import NetSettings
from edgeweave.net.transport import (
    REQUEST_BYTES,
    Buffer,
    Priority,
    Reliability,
    Subscription,
    Tally,
    TransportStatistics,
)

__all__ = ["ZenohTransport"]

_log = logging.getLogger(__name__)

_MOST_PUBLISHERS = 256


class ZenohTransport:
    """One device on the fabric. Open from construction to ``close``.

    >>> with ZenohTransport("laptop", NetSettings()) as transport:
    ...     transport.endpoints()[0].startswith("tcp/127.0.0.1:")
    True
    """

    def __init__(self, name: str, settings: NetSettings) -> None:
        self._name = check_device_name(name)
        self._settings = settings
        self._tally = Tally()
        self._lock = threading.Lock()
        self._open: set[Entity] = set()
        self._closed = False
        self._sender = secrets.randbits(64)
        self._numbers = itertools.count()
        self._session, self._listen = open_session(settings)
        self._publishers = Recent(self._make_publisher, most=_MOST_PUBLISHERS)
        self._asker = Asker(self._session, settings.fleet, self._tally)

    @property
    def name(self) -> str:
        return self._name

    @property
    def fleet(self) -> str:
        """The fleet whose keys this transport uses."""
        return self._settings.fleet

    def endpoints(self) -> tuple[str, ...]:
        """Locators with real ports under which others reach this device.

        A wildcard such as ``0.0.0.0`` becomes the addresses of this machine that others can reach.
        """
        return tuple(str(each) for listen in self._listen for each in reachable(listen))

    def linked(self) -> int:
        """How many other processes are linked directly now."""
        return len(self._session.info.peers_zid()) + len(self._session.info.routers_zid())

    def send(
        self,
        key: str,
        frame: Frame,
        *,
        device: str,
        reliability: Reliability = Reliability.RELIABLE,
        priority: Priority = Priority.DATA,
    ) -> None:
        check_key(self.fleet, key)
        encoded = encode(frame)
        check_datagrams(frame, encoded, reliability)
        pieces = split(
            encoded.header, encoded.views, sender=self._sender, number=next(self._numbers)
        )
        try:
            publisher = self._publishers.get((key, priority, reliability))
            publisher.put(pieces, device, self._settings.timeouts.send)
        except zenoh.ZError as error:
            raise self._broken(error) from error
        size_bytes = sum(len(view) for view in encoded.views)
        self._tally.add(frames_sent=1, bytes_sent=size_bytes)

    def wait_for_listener(
        self,
        key: str,
        *,
        device: str,
        reliability: Reliability = Reliability.RELIABLE,
        priority: Priority = Priority.DATA,
    ) -> None:
        check_key(self.fleet, key)
        try:
            publisher = self._publishers.get((key, priority, reliability))
            publisher.wait_for_listener(device, self._settings.timeouts.send)
        except zenoh.ZError as error:
            raise self._broken(error) from error

    def subscribe(
        self,
        key: str,
        on_frame: Callable[[Frame], None],
        *,
        on_error: Callable[[WireError], None],
        expect: Callable[[FrameHeader], None],
        limit_bytes: int,
    ) -> Subscription:
        sink = Sink(key, Receiver(on_frame, on_error, expect, limit_bytes), self._tally)

        def on_sample(sample: zenoh.Sample) -> None:
            attachment = sample.attachment
            sink.take(
                b"" if attachment is None else attachment.to_bytes(), sample.payload.to_bytes()
            )

        return self._declare(
            key, lambda entity: entity.declare(self._session.declare_subscriber, on_sample)
        )

    def request(
        self,
        key: str,
        payload: Buffer,
        *,
        device: str,
        timeout_seconds: float,
        priority: Priority = Priority.DATA,
    ) -> bytes:
        key = check_key(self.fleet, key)
        try:
            return self._asker.ask(Question(key, payload, device, timeout_seconds, priority))
        except zenoh.ZError as error:
            raise self._broken(error) from error

    def serve(
        self, key: str, handler: Callable[[bytes], bytes], *, limit_bytes: int = REQUEST_BYTES
    ) -> Subscription:
        served = Served(key, handler, limit_bytes)

        def on_query(query: zenoh.Query) -> None:
            self._tally.add(requests_served=1)
            guarded(self._tally, key, lambda: answer(self._session, query, served))

        return self._declare(
            key, lambda entity: entity.declare(self._session.declare_queryable, on_query)
        )

    def announce(self, key: str) -> Subscription:
        declare = self._session.liveliness().declare_token
        return self._declare(key, lambda entity: entity.declare_token(declare))

    def watch(self, pattern: str, on_change: Callable[[str, bool], None]) -> Subscription:
        known: set[str] = set()

        def on_sample(sample: zenoh.Sample) -> None:
            key, alive = str(sample.key_expr), sample.kind == zenoh.SampleKind.PUT
            # History and news may tell of the same token.
            if alive != (key in known):
                (known.add if alive else known.discard)(key)
                guarded(self._tally, pattern, lambda: on_change(key, alive))

        declare = functools.partial(self._session.liveliness().declare_subscriber, history=True)
        return self._declare(pattern, lambda entity: entity.declare(declare, on_sample))

    def alive(self, pattern: str, *, timeout_seconds: float) -> tuple[str, ...]:
        found: set[str] = set()
        finished = threading.Event()

        def on_reply(reply: zenoh.Reply) -> None:
            if reply.ok is not None:
                found.add(str(reply.ok.key_expr))

        try:
            self._session.liveliness().get(
                check_key(self.fleet, pattern),
                Callback(on_reply, finished.set, indirect=True),
                timeout=timeout_seconds,
            )
        except zenoh.ZError as error:
            raise self._broken(error) from error
        finished.wait(timeout_seconds + 1)
        return tuple(sorted(found.copy()))

    def statistics(self) -> TransportStatistics:
        return self._tally.snapshot()

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            entities = list(self._open)
        for entity in entities:
            entity.close()
        for publisher in self._publishers.take_all():
            publisher.close()
        self._asker.close()
        try:
            close(self._session)
        except zenoh.ZError as error:
            _log.warning("%s: the session did not close cleanly (%s)", self._name, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _declare(self, key: str, declare: Callable[[Entity], None]) -> Subscription:
        entity = Entity(
            check_key(self.fleet, key),
            stop_seconds=self._settings.timeouts.stop,
            on_closed=self._forget,
        )
        try:
            declare(entity)
        except zenoh.ZError as error:
            raise self._broken(error) from error
        with self._lock:
            self._open.add(entity)
        return entity

    def _forget(self, entity: Entity) -> None:
        with self._lock:
            self._open.discard(entity)

    def _make_publisher(self, wanted: tuple[str, Priority, Reliability]) -> Publisher:
        return Publisher(self._session, *wanted)

    def _broken(self, error: zenoh.ZError) -> FleetError:
        if self._closed or self._session.is_closed():
            return closed_error(self._name)
        return FleetError(f"Zenoh refused ({error}).")
