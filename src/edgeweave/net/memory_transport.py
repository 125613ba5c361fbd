"""One device on a ``MemoryFabric``: the contract of ``Transport`` without sockets."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from edgeweave.core.errors import EdgeweaveError, WireError
from edgeweave.net._ears import Ear, Role
from edgeweave.net._sink import Receiver, Sink, guarded
from edgeweave.net.bursts import check_datagrams
from edgeweave.net.frame import Frame, FrameHeader, encode
from edgeweave.net.keys import check_key
from edgeweave.net.pieces import split
from edgeweave.net.remote import (
    closed_error,
    decode_error,
    encode_error,
    no_answer_error,
    no_listener_error,
    request_too_large_error,
    timeout_error,
)
from edgeweave.net.transport import (
    FIRST_SERVER_SECONDS,
    REQUEST_BYTES,
    Buffer,
    Priority,
    Reliability,
    Subscription,
    Tally,
    TransportStatistics,
)

if TYPE_CHECKING:
    from edgeweave.net.memory import MemoryFabric

__all__ = ["MemoryTransport"]


class MemoryTransport:
    """One device on a ``MemoryFabric``; made by its ``join``."""

    def __init__(self, name: str, fabric: MemoryFabric) -> None:
        self.fabric = fabric
        self.gone = False
        self._name = name
        self._tally = Tally()
        self._numbers = itertools.count()
        self._ever_heard: set[str] = set()
        self._ever_served: set[str] = set()

    @property
    def name(self) -> str:
        return self._name

    def check_open(self) -> None:
        """Raise ``FleetError`` if this transport was closed or killed."""
        if self.gone:
            raise closed_error(self._name)

    def send(
        self,
        key: str,
        frame: Frame,
        *,
        device: str,
        reliability: Reliability = Reliability.RELIABLE,
        priority: Priority = Priority.DATA,
    ) -> None:
        encoded = encode(frame)
        check_datagrams(frame, encoded, reliability)
        ears = self._wait_for_listeners(check_key(self.fabric.fleet, key), device)
        pieces = list(
            split(encoded.header, encoded.views, sender=id(self), number=next(self._numbers))
        )
        size_bytes = sum(len(view) for view in encoded.views)
        self._tally.add(frames_sent=1, bytes_sent=size_bytes)
        for ear in ears:
            if not self.fabric.is_dropped(self._name, ear.owner):
                self.fabric.post(ear, pieces)

    def wait_for_listener(
        self,
        key: str,
        *,
        device: str,
        reliability: Reliability = Reliability.RELIABLE,
        priority: Priority = Priority.DATA,
    ) -> None:
        self._wait_for_listeners(check_key(self.fabric.fleet, key), device)

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

        def take(pieces: list[tuple[bytes, bytes]]) -> None:
            for attachment, chunk in pieces:
                sink.take(attachment, chunk)

        return self._add(Role.FRAMES, key, take)

    def request(
        self,
        key: str,
        payload: Buffer,
        *,
        device: str,
        timeout_seconds: float,
        priority: Priority = Priority.DATA,
    ) -> bytes:
        self._tally.add(requests_sent=1)
        try:
            return self._request(key, bytes(payload), device, timeout_seconds)
        except EdgeweaveError:
            self._tally.add(requests_failed=1)
            raise

    def serve(
        self, key: str, handler: Callable[[bytes], bytes], *, limit_bytes: int = REQUEST_BYTES
    ) -> Subscription:
        def answer(payload: bytes) -> bytes:
            self._tally.add(requests_served=1)
            if len(payload) > limit_bytes:
                raise request_too_large_error(key, len(payload), limit_bytes)
            return handler(payload)

        return self._add(Role.REQUESTS, key, answer)

    def announce(self, key: str) -> Subscription:
        return self._add(Role.TOKEN, key, lambda: None)

    def watch(self, pattern: str, on_change: Callable[[str, bool], None]) -> Subscription:
        def tell(key: str, alive: bool) -> None:
            guarded(self._tally, pattern, lambda: on_change(key, alive))

        return self._add(Role.NEWS, pattern, tell)

    def alive(self, pattern: str, *, timeout_seconds: float) -> tuple[str, ...]:
        self.check_open()
        return tuple(self.fabric.keys_of_tokens(check_key(self.fabric.fleet, pattern)))

    def statistics(self) -> TransportStatistics:
        return self._tally.snapshot()

    def close(self) -> None:
        self.fabric.leave(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _add(self, role: Role, key: str, call: Callable[..., Any]) -> Ear:
        self.check_open()
        return self.fabric.add(Ear(role, check_key(self.fabric.fleet, key), self._name, call))

    def _wait_for_listeners(self, key: str, device: str) -> list[Ear]:
        fabric = self.fabric
        wait_seconds = 0.0 if key in self._ever_heard else fabric.timeouts.send
        with fabric.changed:
            self.check_open()
            fabric.changed.wait_for(
                lambda: self.gone or fabric.hearing(Role.FRAMES, key), wait_seconds
            )
            self.check_open()
            ears = fabric.hearing(Role.FRAMES, key)
            if not ears:
                raise no_listener_error(device, key, wait_seconds)
            self._ever_heard.add(key)
        return ears

    def _request(self, key: str, payload: bytes, device: str, timeout_seconds: float) -> bytes:
        fabric = self.fabric
        answers: list[bytes | EdgeweaveError] = []
        check_key(fabric.fleet, key)
        with fabric.changed:
            self.check_open()
            wait_seconds = 0.0 if key in self._ever_served else FIRST_SERVER_SECONDS
            fabric.changed.wait_for(
                lambda: self.gone or fabric.hearing(Role.REQUESTS, key), wait_seconds
            )
            self.check_open()
            servers = fabric.hearing(Role.REQUESTS, key)
            self._ever_served.update([key] if servers else [])
        if not servers:
            raise no_answer_error(device, key)
        server = servers[0]
        if not fabric.is_dropped(self._name, server.owner):
            fabric.work(functools.partial(self._serve_one, server, payload, answers))
        with fabric.changed:
            fabric.changed.wait_for(
                lambda: bool(answers) or server.closed or self.gone, timeout_seconds
            )
            vanished = server.closed or self.gone
        for answer in answers:
            if isinstance(answer, EdgeweaveError):
                raise answer
            return answer
        raise (
            no_answer_error(device, key)
            if vanished
            else timeout_error(device, key, timeout_seconds)
        )

    def _serve_one(
        self, server: Ear, payload: bytes, answers: list[bytes | EdgeweaveError]
    ) -> None:
        device = server.owner
        result: bytes | EdgeweaveError
        with server.calling:
            if server.closed:
                return
            try:
                result = bytes(server.call(payload))
            except Exception as error:  # noqa: BLE001 - the asker gets it, with its traceback
                result = decode_error(encode_error(error), device)
        if not self.fabric.is_dropped(device, self._name):
            with self.fabric.changed:
                answers.append(result)
                self.fabric.changed.notify_all()
