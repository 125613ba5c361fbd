"""A transport behind emulated links: what it sends takes as long as the links say, or is lost.

It works in any container and needs no root, because the sender itself holds messages back. Every
member of a fleet is behind one of these, or none is: requests are signed by who asks, so that the
answer can be held back at the server.

    send      me -> device                          handed to the inner transport on arrival
    request   me -> device, handler, device -> me   over both links
    watch     tokens go after a lease without a link, and come back with it
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Self

from edgeweave.core.clock import Clock
from edgeweave.core.errors import DeviceTimeout, WireError
from edgeweave.core.timeouts import Timeouts
from edgeweave.core.units import format_seconds
from edgeweave.net._shaper import Shaper
from edgeweave.net._signed import MOST_SIGNATURE_BYTES, Signature, sign, unsign
from edgeweave.net._sink import guarded
from edgeweave.net._watch import Silences, Watch
from edgeweave.net.bursts import N_ENDS, check_datagrams, left_of, n_rows
from edgeweave.net.frame import Frame, FrameHeader, encode, payload_bytes
from edgeweave.net.link import Links
from edgeweave.net.link_queue import Message
from edgeweave.net.remote import encode_error, timeout_error
from edgeweave.net.settings import LEASE_SECONDS
from edgeweave.net.transport import (
    REQUEST_BYTES,
    Buffer,
    Priority,
    Reliability,
    Subscription,
    Tally,
    Transport,
    TransportStatistics,
)

__all__ = ["ShapedTransport"]


class ShapedTransport:
    """``inner`` behind ``links``, whose name in them is its own (the coordinator's: see ``Links``).

    A link that holds nothing back is passed by, without a thread and without a copy. Closing this
    closes ``inner``; what is on its way is lost. News of tokens travels without delay, and an
    answer that is on its way holds up later requests to the same key.

    ``caller_driven`` is for tests: nothing arrives until somebody calls ``deliver``.
    """

    def __init__(
        self,
        inner: Transport,
        links: Links,
        *,
        clock: Clock,
        timeouts: Timeouts | None = None,
        lease_seconds: float = LEASE_SECONDS,
        caller_driven: bool = False,
    ) -> None:
        self._inner = inner
        self._clock = clock
        self._timeouts = timeouts or Timeouts()
        self._tally = Tally()
        self._threaded = not caller_driven
        self._watches: list[Watch] = []
        self._silences = Silences(inner.name, links, now=clock.now(), lease_seconds=lease_seconds)
        self._shaper = Shaper(
            inner.name,
            links,
            clock=clock,
            timeouts=self._timeouts,
            threaded=self._threaded,
            look=self._look,
        )

    @property
    def name(self) -> str:
        return self._inner.name

    def reshape(self, links: Links) -> None:
        """Be behind other links from now on.

        What is on its way keeps its times. What waits at a link goes by its new shape: at once
        where the link came up, and not before it does where it went down.
        """
        with self._shaper.changed:
            self._silences.reshape(links, self._clock.now())
            self._shaper.reshape(links)

    def deliver(self) -> int:
        """Deliver what has arrived by now and tell the news, on this thread; how many."""
        n_messages = self._shaper.deliver()
        with self._shaper.changed:
            watches = tuple(self._watches)
        return n_messages + sum(watch.drain() for watch in watches)

    def send(
        self,
        key: str,
        frame: Frame,
        *,
        device: str,
        reliability: Reliability = Reliability.RELIABLE,
        priority: Priority = Priority.DATA,
    ) -> None:
        def hand_over(left: Frame = frame) -> None:
            self._inner.send(key, left, device=device, reliability=reliability, priority=priority)

        size_bytes = payload_bytes(frame.header.tensors)
        if self._shaper.is_plain(device):
            hand_over()
        else:
            encoded = encode(frame)
            check_datagrams(frame, encoded, reliability)
            self._inner.wait_for_listener(
                key, device=device, reliability=reliability, priority=priority
            )
            by_row = reliability is Reliability.ROW_TOLERANT
            n_datagrams = n_rows(frame) + N_ENDS if by_row else 1
            message = Message(
                n_datagrams * len(encoded.header) + size_bytes,
                hand_over,
                key=key,
                priority=priority,
                reliability=reliability,
                n_datagrams=n_datagrams,
                deliver_left=(lambda lost: hand_over(left_of(frame, lost))) if by_row else None,
            )
            self._shaper.post(device, key, message)
        self._tally.add(frames_sent=1, bytes_sent=size_bytes)

    def wait_for_listener(
        self,
        key: str,
        *,
        device: str,
        reliability: Reliability = Reliability.RELIABLE,
        priority: Priority = Priority.DATA,
    ) -> None:
        self._inner.wait_for_listener(
            key, device=device, reliability=reliability, priority=priority
        )

    def subscribe(
        self,
        key: str,
        on_frame: Callable[[Frame], None],
        *,
        on_error: Callable[[WireError], None],
        expect: Callable[[FrameHeader], None],
        limit_bytes: int,
    ) -> Subscription:
        return self._inner.subscribe(
            key, on_frame, on_error=on_error, expect=expect, limit_bytes=limit_bytes
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
        started = self._clock.now()
        signed = sign(Signature(self.name, timeout_seconds, priority), payload)
        arrived = self._travel(device, len(signed), priority, timeout_seconds)
        left = started + timeout_seconds - self._clock.now()
        if not arrived or left <= 0:
            self._tally.add(requests_sent=1, requests_failed=1)
            raise timeout_error(device, key, timeout_seconds)
        try:
            return self._inner.request(
                key, signed, device=device, timeout_seconds=left, priority=priority
            )
        except DeviceTimeout as error:
            if str(error) == str(timeout_error(device, key, left)):
                # What the caller waited, not what was left of it.
                raise timeout_error(device, key, timeout_seconds) from error
            raise

    def request_beside(
        self, key: str, payload: Buffer, *, device: str, timeout_seconds: float
    ) -> bytes:
        """Like ``request``, past the links both ways: orders to the emulator itself.

        Signed as the device's own, whose answer to itself nothing holds back.
        """
        signed = sign(Signature(device, timeout_seconds, Priority.CONTROL), payload)
        return self._inner.request(
            key,
            signed,
            device=device,
            timeout_seconds=timeout_seconds,
            priority=Priority.CONTROL,
        )

    def serve(
        self, key: str, handler: Callable[[bytes], bytes], *, limit_bytes: int = REQUEST_BYTES
    ) -> Subscription:
        def answer(data: bytes) -> bytes:
            asker, payload = unsign(data)
            try:
                result = handler(payload)
            except Exception as error:
                self._answer(asker, key, len(encode_error(error)))
                raise
            self._answer(asker, key, len(result))
            return result

        return self._inner.serve(key, answer, limit_bytes=limit_bytes + MOST_SIGNATURE_BYTES)

    def announce(self, key: str) -> Subscription:
        return self._inner.announce(key)

    def watch(self, pattern: str, on_change: Callable[[str, bool], None]) -> Subscription:
        def tell(key: str, alive: bool) -> None:
            guarded(self._tally, pattern, lambda: on_change(key, alive))

        watch = Watch(tell, self._silences, threaded=self._threaded)

        def take(key: str, alive: bool) -> None:
            with self._shaper.changed:
                watch.take(key, alive=alive)
                if watch.look(self._clock.now()) < float("inf"):
                    self._shaper.wake()

        with self._shaper.changed:
            self._watches.append(watch)
        try:
            watching = self._inner.watch(pattern, take)
        except BaseException:
            self._end(watch)
            raise
        return _Watching(watching, lambda: self._end(watch))

    def alive(self, pattern: str, *, timeout_seconds: float) -> tuple[str, ...]:
        found = self._inner.alive(pattern, timeout_seconds=timeout_seconds)
        with self._shaper.changed:
            now = self._clock.now()
            gone = {key: self._silences.gone_at(key) for key in found}
        return tuple(key for key, at in gone.items() if at is None or now < at)

    def statistics(self) -> TransportStatistics:
        inner, own = self._inner.statistics(), self._tally.snapshot()
        return replace(
            inner,
            frames_sent=own.frames_sent,
            bytes_sent=own.bytes_sent,
            callbacks_failed=inner.callbacks_failed + own.callbacks_failed,
            requests_sent=inner.requests_sent + own.requests_sent,
            requests_failed=inner.requests_failed + own.requests_failed,
        )

    def close(self) -> None:
        self._shaper.close()
        with self._shaper.changed:
            watches = tuple(self._watches)
        for watch in watches:
            self._end(watch)
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _travel(
        self, device: str, size_bytes: int, priority: Priority, timeout_seconds: float
    ) -> bool:
        """Whether so many bytes arrived at ``device`` in time; this returns when they have."""
        if self._shaper.is_plain(device):
            return True
        message = Message(size_bytes, None, priority=priority)
        return self._shaper.travel(device, message, timeout_seconds=timeout_seconds)

    def _answer(self, asker: Signature, key: str, size_bytes: int) -> None:
        if not self._travel(asker.device, size_bytes, asker.priority, asker.timeout_seconds):
            raise DeviceTimeout(
                f"the answer of {self.name} to {key} did not get through to {asker.device} within "
                f"{format_seconds(asker.timeout_seconds)}. Look at the link between them.",
                device=asker.device,
            )

    def _look(self, now: float) -> float:
        return min((watch.look(now) for watch in self._watches), default=float("inf"))

    def _end(self, watch: Watch) -> None:
        with self._shaper.changed:
            if watch in self._watches:
                self._watches.remove(watch)
        watch.close(self._timeouts.stop)


class _Watching:
    """A watch of the inner transport, and ours that it feeds."""

    def __init__(self, inner: Subscription, end: Callable[[], None]) -> None:
        self._inner = inner
        self._end = end

    def close(self) -> None:
        self._inner.close()
        self._end()
