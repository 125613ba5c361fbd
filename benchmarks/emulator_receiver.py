"""The receiving process of the emulator's benchmark: when each frame arrived.

starts                          ->  {"endpoint": "tcp/127.0.0.1:7001"}
{"series": n, "seconds": s}     ->  {"arrived": [[number, sent at, arrived at], ...]}
                                    of the series, ``s`` seconds after its last frame has come

Moments are ``time.monotonic``, which all processes of a host share (CLOCK_MONOTONIC).
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import defaultdict
from typing import Any

from benchmarks.children import reply
from benchmarks.emulator_frames import LAST, RECEIVER, STAGE, pattern, settings_of
from edgeweave.core.clock import SystemClock
from edgeweave.core.errors import WireError
from edgeweave.net import Frame, Links, ShapedTransport, ZenohTransport

__all__ = ["main"]

_DEADLINE_SECONDS = 60.0
_LIMIT_BYTES = 16 << 20


class _Book:
    """What has arrived, by series."""

    def __init__(self) -> None:
        self._arrived: dict[int, list[tuple[int, float, float]]] = defaultdict(list)
        self._complete: dict[int, threading.Event] = defaultdict(threading.Event)

    def on_frame(self, frame: Frame) -> None:
        now, header = time.monotonic(), frame.header
        if header.kind == LAST:
            self._complete[header.step].set()
        else:
            entry = (header.microbatch, header.scalars["sent"], now)
            self._arrived[header.step].append(entry)

    def take(self, series: int, seconds: float) -> list[tuple[int, float, float]]:
        if not self._complete[series].wait(_DEADLINE_SECONDS):
            raise TimeoutError(f"the last frame of series {series} never came")
        time.sleep(seconds)  # loss-tolerant frames keep no order: some come after the last one
        return self._arrived.pop(series, [])


def main(settings: dict[str, Any]) -> None:
    """Serve until standard input closes."""
    book = _Book()
    transport = ShapedTransport(
        ZenohTransport(RECEIVER, settings_of(tuple(settings["connect"]))),
        Links(),
        clock=SystemClock(),
    )
    with transport:
        frames = transport.subscribe(
            pattern(STAGE),
            book.on_frame,
            on_error=_refuse,
            expect=lambda header: None,
            limit_bytes=_LIMIT_BYTES,
        )
        reply({})
        for line in sys.stdin:
            asked = json.loads(line)
            reply({"arrived": book.take(asked["series"], asked["seconds"])})
        frames.close()


def _refuse(error: WireError) -> None:
    # Raised on the transport's thread, which logs it; the sender's wait then ends by its deadline.
    raise error


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
