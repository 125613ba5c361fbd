"""Measures devices that came, one after another, beside everything else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from edgeweave.core.errors import EdgeweaveError
from edgeweave.fleet import Fleet
from edgeweave.net import check_hello, hello_of
from edgeweave.plan import DeviceCosts, Link
from edgeweave.serving.measuring import Measuring

__all__ = ["Meetings", "Met"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Met:
    """Who is told of a meeting, on its thread."""

    met: Callable[[DeviceCosts, Mapping[tuple[str, str], Link]], None]
    failed: Callable[[str, EdgeweaveError], None]


class Meetings:
    """Begins no measurement after its ``with`` block, and waits for none: measuring takes a slow
    device a minute. One under way ends with the device's answer, or with the fleet.
    """

    def __init__(self, fleet: Fleet, measuring: Measuring, told: Met) -> None:
        self._fleet = fleet
        self._measuring = measuring
        self._told = told
        self._pool = ThreadPoolExecutor(1, "edgeweave-meeting")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def begin(self, device: str, others: Sequence[str]) -> None:
        """Measure a device, and its links with these others."""
        self._pool.submit(self._meet, device, others)

    def _meet(self, device: str, others: Sequence[str]) -> None:
        try:
            check_hello(hello_of(self._fleet.transport.name), self._fleet.greet(device).hello)
            costs, links = self._measuring.device(device, others)
        except EdgeweaveError as error:
            self._told.failed(device, error)
        except Exception:  # noqa: BLE001 - a thread's boundary: told, never lost
            _log.exception("measuring %s failed", device)
        else:
            self._told.met(costs, links)
