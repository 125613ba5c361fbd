"""Requests and answers of any size over Zenoh, in pieces.

    asker                                       device
      |  query: total bytes, offer, deadline      |      a small payload travels in the query
      |------------------------------------------>|
      |      query to the offer's key             |      a large one is fetched by the device
      |<------------------------------------------|
      |  reply, reply, reply ... (64 kB each)     |
      |------------------------------------------>|      handler(payload)
      |        reply, reply, reply ...            |
      |<------------------------------------------|

Why not one message: Zenoh allows a blocking message ``wait_before_close`` *as a whole*, and closes
the link when it is over, so that 30 MB on 20 Mbit/s never arrive (measured). A piece has that time
for itself, lets others pass, and needs no second copy of the whole on either side.
"""

from __future__ import annotations

import io
import itertools
import queue
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import zenoh
from zenoh.handlers import Callback

from edgeweave.core.errors import EdgeweaveError, FleetError, WireError
from edgeweave.core.units import format_bytes
from edgeweave.net._zenoh import Recent, Server, drop
from edgeweave.net.pieces import PIECE_BYTES, chunks
from edgeweave.net.remote import (
    decode_error,
    encode_error,
    no_answer_error,
    request_too_large_error,
    timeout_error,
)
from edgeweave.net.transport import FIRST_SERVER_SECONDS, Buffer, Priority, Tally

__all__ = ["Asker", "Question", "Served", "answer"]

_LARGEST_ANSWER_BYTES = 8 * 1024**3
_LONGEST_SECONDS = 24 * 3600.0
_MOST_SERVERS = 256
_ERROR_ENCODING = "application/msgpack"

_ZENOH_PRIORITY = {
    # None of these is a priority of frames: two messages of one priority wait for each other.
    Priority.CONTROL: zenoh.Priority.INTERACTIVE_LOW,
    Priority.DATA: zenoh.Priority.DATA_HIGH,
    Priority.BACKGROUND: zenoh.Priority.DATA_LOW,
}


class _Envelope(msgspec.Struct, frozen=True, array_like=True):
    """What goes with a query: the size of its payload, where to fetch it, how long it counts."""

    total_bytes: int
    offer: str
    timeout_seconds: float
    priority: Priority


_envelope_decoder = msgspec.msgpack.Decoder(_Envelope)


@dataclass(frozen=True, slots=True)
class Question:
    """One request, as its caller put it."""

    key: str
    payload: Buffer
    device: str
    timeout_seconds: float
    priority: Priority


@dataclass(frozen=True, slots=True)
class Served:
    """A key that is served: who answers, and how much it takes."""

    key: str
    handler: Callable[[bytes], bytes]
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class _Finished:
    """Every reply to a query has come, or Zenoh gave up waiting for them."""


class _Gathering:
    """The replies to one query: pieces of an answer, or an error."""

    def __init__(self, device: str, on_finished: Callable[[], None]) -> None:
        self._device = device
        self._memory = io.BytesIO()
        self._total: int | None = None
        self._on_finished = on_finished
        self.error: EdgeweaveError | None = None
        self.timed_out = False

    def handler(self) -> Callback[zenoh.Reply]:
        """What Zenoh calls, on a thread of this query."""
        return Callback(self._take, self._on_finished, indirect=True)

    def answer(self) -> bytes | None:
        """The whole answer, without a copy; None if it has not come whole."""
        if self._total is None or self._memory.tell() != self._total:
            return None
        return self._memory.getvalue()

    def _take(self, reply: zenoh.Reply) -> None:
        try:
            self._take_reply(reply)
        except WireError as error:
            self.error = error

    def _take_reply(self, reply: zenoh.Reply) -> None:
        if reply.err is not None:
            if str(reply.err.encoding) == _ERROR_ENCODING:
                self.error = decode_error(reply.err.payload.to_bytes(), self._device)
            else:
                self.timed_out = True
            return
        sample = reply.ok
        if sample is None or sample.attachment is None:
            raise WireError(f"device {self._device!r} sent an answer that says not how long it is.")
        total = int.from_bytes(sample.attachment.to_bytes(), "little")
        if self._total is None:
            if not 0 <= total <= _LARGEST_ANSWER_BYTES:
                raise WireError(
                    f"an answer from {self._device!r} is at most "
                    f"{format_bytes(_LARGEST_ANSWER_BYTES)} (it announces {total} bytes)."
                )
            self._total = total
        self._memory.write(sample.payload.to_bytes())
        if total != self._total or self._memory.tell() > total:
            raise WireError(
                f"device {self._device!r} sent more than it announced "
                f"({format_bytes(self._total)})."
            )


class Asker:
    """Asks over one session, and hands large payloads to those who fetch them."""

    def __init__(self, session: zenoh.Session, fleet: str, tally: Tally) -> None:
        self._session = session
        self._tally = tally
        self._offers: dict[str, queue.SimpleQueue[zenoh.Query | _Finished]] = {}
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        # A prefix of this session alone, declared before any request mentions it.
        self._prefix = f"ew/{fleet}/bulk/{secrets.token_hex(8)}"
        self._servers: Recent[str, Server] = Recent(
            lambda key: Server(session, key), most=_MOST_SERVERS
        )
        self._fetches = session.declare_queryable(f"{self._prefix}/*", self._on_fetch)

    def close(self) -> None:
        """Let go of what was declared for requests; the session ends the rest."""
        for server in self._servers.take_all():
            server.close()

    def ask(self, question: Question) -> bytes:
        """See ``Transport.request``."""
        self._tally.add(requests_sent=1)
        try:
            return self._ask(question)
        except BaseException:
            self._tally.add(requests_failed=1)
            raise

    def _ask(self, question: Question) -> bytes:
        if not self._servers.get(question.key).is_there(FIRST_SERVER_SECONDS):
            raise no_answer_error(question.device, question.key)
        view = memoryview(question.payload).cast("B")
        events: queue.SimpleQueue[zenoh.Query | _Finished] = queue.SimpleQueue()
        gathering = _Gathering(question.device, lambda: events.put(_Finished()))
        offer = f"{self._prefix}/{next(self._numbers)}"
        small = len(view) <= PIECE_BYTES
        with self._lock:
            self._offers[offer] = events
        started = time.monotonic()
        try:
            self._session.get(
                question.key,
                gathering.handler(),
                consolidation=zenoh.ConsolidationMode.NONE,
                timeout=question.timeout_seconds,
                congestion_control=zenoh.CongestionControl.BLOCK,
                priority=_ZENOH_PRIORITY[question.priority],
                payload=bytes(view) if small else None,
                attachment=msgspec.msgpack.encode(
                    _Envelope(len(view), offer, question.timeout_seconds, question.priority)
                ),
            )
            self._wait(events, view, question, started)
        finally:
            with self._lock:
                del self._offers[offer]
            _drop_queries(events)
        return _outcome(gathering, question, time.monotonic() - started)

    def _wait(
        self,
        events: queue.SimpleQueue[zenoh.Query | _Finished],
        view: memoryview,
        question: Question,
        started: float,
    ) -> None:
        """Hand out the payload when it is fetched; return when the replies are complete."""
        while True:
            left = question.timeout_seconds - (time.monotonic() - started)
            try:
                event = events.get(timeout=max(left, 0) + 1)
            except queue.Empty:
                return
            if isinstance(event, _Finished):
                return
            with event:
                _reply_in_pieces(event, view)

    def _on_fetch(self, query: zenoh.Query) -> None:
        with self._lock:
            events = self._offers.get(str(query.key_expr))
            if events is not None:
                events.put(query)
                return
        with query:
            error = FleetError("this request is no longer waited for.")
            query.reply_err(encode_error(error), encoding=_ERROR_ENCODING)


def answer(session: zenoh.Session, query: zenoh.Query, served: Served) -> None:
    """Serve one query; whatever its handler raises becomes the answer."""
    with query:
        try:
            result = served.handler(_payload(session, query, served))
            pieces = memoryview(result).cast("B")
        except Exception as error:  # noqa: BLE001 - the asker gets it, with its traceback
            query.reply_err(encode_error(error), encoding=_ERROR_ENCODING)
            return
        _reply_in_pieces(query, pieces)


def _payload(session: zenoh.Session, query: zenoh.Query, served: Served) -> bytes:
    if query.attachment is None:
        raise WireError("a request comes with its length (it did not).")
    try:
        envelope = _envelope_decoder.decode(query.attachment.to_bytes())
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"a request comes with its length ({error}).") from error
    total = envelope.total_bytes
    if not 0 <= total <= served.limit_bytes:
        raise request_too_large_error(served.key, total, served.limit_bytes)
    if total <= PIECE_BYTES:
        data = b"" if query.payload is None else query.payload.to_bytes()
        if len(data) != total:
            raise WireError(
                f"a request is as long as it says (said {total}, got {len(data)} bytes)."
            )
        return data
    if not 0 < envelope.timeout_seconds <= _LONGEST_SECONDS:
        raise WireError(
            f"a request has a deadline within a day (got {envelope.timeout_seconds} seconds)."
        )
    return _fetch(session, envelope)


def _fetch(session: zenoh.Session, envelope: _Envelope) -> bytes:
    finished = threading.Event()
    gathering = _Gathering("the asker", finished.set)
    session.get(
        envelope.offer,
        gathering.handler(),
        consolidation=zenoh.ConsolidationMode.NONE,
        timeout=envelope.timeout_seconds,
        congestion_control=zenoh.CongestionControl.BLOCK,
        priority=_ZENOH_PRIORITY[envelope.priority],
    )
    finished.wait(envelope.timeout_seconds + 1)
    data = gathering.answer()
    if gathering.error is not None:
        raise gathering.error
    if data is None or len(data) != envelope.total_bytes:
        raise FleetError(
            f"the payload of a request did not arrive (announced: "
            f"{format_bytes(envelope.total_bytes)}). Ask again."
        )
    return data


def _outcome(gathering: _Gathering, question: Question, seconds: float) -> bytes:
    if gathering.error is not None:
        raise gathering.error
    data = gathering.answer()
    if data is not None:
        return data
    if gathering.timed_out or seconds >= question.timeout_seconds:
        raise timeout_error(question.device, question.key, question.timeout_seconds)
    raise no_answer_error(question.device, question.key)


def _reply_in_pieces(query: zenoh.Query, view: memoryview) -> None:
    total = len(view).to_bytes(8, "little")
    for piece in chunks((view,)):
        query.reply(query.key_expr, piece, attachment=total)


def _drop_queries(events: queue.SimpleQueue[zenoh.Query | _Finished]) -> None:
    """Let go of fetches that came too late, so that nobody waits for them."""
    while True:
        try:
            event = events.get_nowait()
        except queue.Empty:
            return
        if not isinstance(event, _Finished):
            drop(event)
