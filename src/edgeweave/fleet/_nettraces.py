"""Follows recorded rates: tells when a piece of a trace begins. Knows no kernel and no ``tc``."""

from __future__ import annotations

import logging
import threading
from bisect import bisect_right
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Generic, Self, TypeVar

from edgeweave.core.clock import Clock
from edgeweave.core.errors import FleetError
from edgeweave.net.link import RateTrace

__all__ = ["TraceFollower", "piece_of"]

_log = logging.getLogger(__name__)

_SHORTEST_WAIT_SECONDS = 1e-3
_JOIN_SECONDS = 60.0

Link = TypeVar("Link")


def piece_of(trace: RateTrace, seconds: float) -> tuple[float, float]:
    """The rate at a moment of a trace, and the seconds until the next piece begins.

    >>> piece_of(RateTrace((0.0, 2.0), (1e6, 5e5), 3.0), 4.5)
    (1000000.0, 0.5)
    """
    place = seconds % trace.duration_seconds
    index = bisect_right(trace.seconds, place) - 1
    ends = (*trace.seconds[1:], trace.duration_seconds)
    return trace.bytes_per_second[index], ends[index] - place


class TraceFollower(Generic[Link]):
    """Calls ``change`` with the rates that are new, from a thread of its own, until it is closed.

    Moments count from ``began_seconds`` of the clock. An error of ``change`` ends the following and
    is raised as ``FleetError`` on leaving, or by ``check``.
    """

    def __init__(
        self,
        traces: Mapping[Link, RateTrace],
        change: Callable[[Mapping[Link, float]], None],
        *,
        clock: Clock,
        began_seconds: float,
    ) -> None:
        self._traces = dict(traces)
        self._change = change
        self._clock = clock
        self._began_seconds = began_seconds
        self._told: dict[Link, float] = {}
        self._stop = threading.Event()
        self._error: FleetError | None = None
        self._thread = threading.Thread(target=self._follow, name="link-traces")

    def __enter__(self) -> Self:
        if self._traces:
            self._tell()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_SECONDS)
            if self._thread.is_alive():
                _log.error("the thread of link traces did not end within %.0f s", _JOIN_SECONDS)
        if error is None:
            self.check()

    def check(self) -> None:
        """Raise what ended the following early."""
        if self._error is not None:
            raise self._error

    def _follow(self) -> None:
        try:
            while not self._stop.wait(self._tell()):
                continue
        except Exception as error:  # noqa: BLE001 - the boundary of the thread: raised on leaving
            _log.exception("the traces of the links are followed no longer")
            self._error = _as_fleet_error(error)

    def _tell(self) -> float:
        """Tell the rates that changed, and return the seconds until the next change."""
        moment = self._clock.now() - self._began_seconds
        pieces = {link: piece_of(trace, moment) for link, trace in self._traces.items()}
        changed = {link: rate for link, (rate, _) in pieces.items() if self._told.get(link) != rate}
        if changed:
            self._change(changed)
            self._told |= changed
        return max(_SHORTEST_WAIT_SECONDS, min(left for _, left in pieces.values()))


def _as_fleet_error(error: Exception) -> FleetError:
    if isinstance(error, FleetError):
        return error
    told = FleetError(
        "the recorded rates of the links are followed until the fleet ends (setting one failed: "
        f"{type(error).__name__}: {error}). Start the fleet anew, or give links of fixed rates."
    )
    told.__cause__ = error
    return told
