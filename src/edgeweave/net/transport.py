"""The seam: what everything above the network may ask of it. Knows neither Zenoh nor memory.

``ZenohTransport`` is the real one, ``MemoryTransport`` the one that tests own; both keep the same
contract, and ``tests/net/test_transport_contract.py`` holds them to it.
"""

from __future__ import annotations

import enum
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Final, Protocol, Self

from edgeweave.core.errors import WireError
from edgeweave.net.frame import Frame, FrameHeader

__all__ = [
    "DATAGRAM_BYTES",
    "FIRST_SERVER_SECONDS",
    "REQUEST_BYTES",
    "Buffer",
    "Priority",
    "Reliability",
    "Subscription",
    "Tally",
    "Transport",
    "TransportStatistics",
]

FIRST_SERVER_SECONDS: Final = 1.0
"""How long a request waits for news that its key is served at all."""

DATAGRAM_BYTES: Final = 1200
"""The most that a loss-tolerant frame holds with its header: one datagram, so that the loss of any
packet is the loss of this frame alone."""

REQUEST_BYTES: Final = 1 << 20
"""The largest request a handler gets unless it says otherwise."""

Buffer = bytes | bytearray | memoryview


class Priority(enum.IntEnum):
    """Who goes first on a link that is full: a larger value overtakes a smaller one."""

    BACKGROUND = 1
    """Replicas, statistics, weights moved while a run goes on."""
    DATA = 2
    """Activations, gradients, ordinary requests."""
    CONTROL = 3
    """Heartbeats, stop, new term: small and urgent."""


class Reliability(enum.Enum):
    """What happens to a frame that a link lost."""

    RELIABLE = enum.auto()
    """It is sent again: every frame arrives, in order, and late if it must."""
    LOSS_TOLERANT = enum.auto()
    """Nothing: it arrives soon or never. At most 1200 bytes."""
    ROW_TOLERANT = enum.auto()
    """Nothing, row by row: it is a burst of datagrams (``net.bursts``), and what is left of its
    tensors' rows arrives as one frame. A link that loses nothing carries it as a reliable one."""


class Subscription(Protocol):
    """Something that goes on until it is closed. Closing twice is harmless."""

    def close(self) -> None:
        """End it. Its callback is not entered again once this returns."""


@dataclass(frozen=True, slots=True)
class TransportStatistics:
    """What one transport has moved so far. Bytes are payload, without headers."""

    frames_sent: int = 0
    bytes_sent: int = 0
    frames_received: int = 0
    bytes_received: int = 0
    frames_refused: int = 0
    """Frames that came and were not used: malformed, too large, unexpected or incomplete."""
    callbacks_failed: int = 0
    """Callbacks that raised; each one is in the log."""
    requests_sent: int = 0
    requests_failed: int = 0
    requests_served: int = 0


class Tally:
    """Counts under one lock, for the fields of ``TransportStatistics``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, **increments: int) -> None:
        """Add to the named fields."""
        with self._lock:
            self._counts.update(increments)

    def snapshot(self) -> TransportStatistics:
        """The counts at this moment."""
        with self._lock:
            counts = dict(self._counts)
        return TransportStatistics(
            **{field.name: counts.get(field.name, 0) for field in fields(TransportStatistics)}
        )


class Transport(Protocol):
    """Frames, requests and liveliness between the devices of one fleet.

    Callbacks run on threads of the transport. Each ``subscribe``, ``serve`` and ``watch`` has its
    own sequence of calls, one at a time and in order of arrival, so a callback that takes minutes
    delays later calls of the same subscription and nothing else. A frame callback must still be
    quick: past about 16 MB of waiting pieces it holds up everything its senders send here. An
    exception in a callback is logged and counted, and the next call is made all the same.

    Keys lie inside the transport's fleet (``ConfigError`` if not); see ``edgeweave.net.keys``.
    """

    @property
    def name(self) -> str:
        """The device name, unique on the fabric."""

    def send(
        self,
        key: str,
        frame: Frame,
        *,
        device: str,
        reliability: Reliability = Reliability.RELIABLE,
        priority: Priority = Priority.DATA,
    ) -> None:
        """Hand a frame for ``device`` to the network, to every subscriber of ``key``.

        Safe from several threads. The frame's tensors must not change any more. Waits as
        ``wait_for_listener`` does, and raises what it raises; also ``FleetError`` when the link
        took no piece for ``Timeouts.send``, and ``ConfigError`` for a loss-tolerant frame of more
        than 1200 bytes, or a row-tolerant one with such rows. A frame that was handed over when its
        receiver died is lost without an error: liveliness and deadlines tell.
        """

    def wait_for_listener(
        self,
        key: str,
        *,
        device: str,
        reliability: Reliability = Reliability.RELIABLE,
        priority: Priority = Priority.DATA,
    ) -> None:
        """Return when somebody subscribes to ``key``, for frames sent with these options.

        Waits up to ``Timeouts.send`` for the first subscriber of a key to appear. Raises
        ``FleetError`` naming ``device`` if none does, and at once if those who were there have
        gone.
        """

    def subscribe(
        self,
        key: str,
        on_frame: Callable[[Frame], None],
        *,
        on_error: Callable[[WireError], None],
        expect: Callable[[FrameHeader], None],
        limit_bytes: int,
    ) -> Subscription:
        """Receive the frames of a key or pattern.

        ``expect`` sees each header before its payload is allocated and raises ``WireError`` to
        refuse it; ``limit_bytes`` bounds one payload. What is refused goes to ``on_error``.
        """

    def request(
        self,
        key: str,
        payload: Buffer,
        *,
        device: str,
        timeout_seconds: float,
        priority: Priority = Priority.DATA,
    ) -> bytes:
        """Ask ``device``, which serves ``key``, and return its answer.

        Raises ``FleetError`` if nobody answers (nobody serves the key, which is known within a
        second, or the device vanished while it answered), ``DeviceTimeout`` if it lives and the
        deadline passed, and what its handler raised: the same class if Edgeweave has it, else
        ``DeviceFailed`` with the remote traceback.
        """

    def serve(
        self, key: str, handler: Callable[[bytes], bytes], *, limit_bytes: int = REQUEST_BYTES
    ) -> Subscription:
        """Answer requests to ``key`` with what ``handler`` returns or raises.

        A request of more than ``limit_bytes`` is answered with ``WireError`` before anything is
        allocated for it.
        """

    def announce(self, key: str) -> Subscription:
        """Put up a liveliness token: gone when closed, and when this process dies.

        Who sees the token knows what was subscribed and served before it.
        """

    def watch(self, pattern: str, on_change: Callable[[str, bool], None]) -> Subscription:
        """Call ``on_change(key, alive)`` for tokens that are there, that come and that go."""

    def alive(self, pattern: str, *, timeout_seconds: float) -> tuple[str, ...]:
        """The keys of all tokens there are now, sorted."""

    def statistics(self) -> TransportStatistics:
        """What this transport has moved so far."""

    def close(self) -> None:
        """End everything begun here. Closing twice is harmless."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
