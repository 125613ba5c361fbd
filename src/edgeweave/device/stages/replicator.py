"""Keep a replica of another stage: fetch its state once in a while, beside everything else."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from edgeweave.core.errors import EdgeweaveError
from edgeweave.device.stages.snapshots import Snapshots, State

__all__ = ["Replicator"]

_log = logging.getLogger(__name__)


class Replicator:
    """A thread that ``fetch``es the state after a step, as told. Owned by ``with``.

    While one is on its way, only the newest of those asked for meanwhile is fetched after it. Its
    end does not wait for that one: the device that keeps it may be the one that stands still. A
    state that comes after the end is not kept: it would push out older ones that were said to be
    here.
    """

    def __init__(
        self, fetch: Callable[[int], State], snapshots: Snapshots, *, stop_seconds: float
    ) -> None:
        self._fetch = fetch
        self._snapshots = snapshots
        self._stop_seconds = stop_seconds
        self._steps: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._asking = threading.Event()
        self._keeping = threading.Lock()
        self._is_open = True
        # A daemon: an answer on a slow link may be long in coming, and nobody waits for it.
        self._thread = threading.Thread(target=self._run, name="edgeweave-replicas", daemon=True)

    def replicate(self, step: int) -> None:
        """Fetch the state after ``step`` steps soon."""
        self._steps.put(step)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._keeping:
            self._is_open = False
        self._steps.put(None)
        if not self._asking.is_set():
            self._thread.join(self._stop_seconds)

    def _run(self) -> None:
        while (step := self._newest()) is not None:
            self._asking.set()
            try:
                self._keep(step, self._fetch(step))
            except EdgeweaveError as error:
                _log.warning("no replica of the state after step %d: %s", step, error)
            self._asking.clear()

    def _keep(self, step: int, state: State) -> None:
        with self._keeping:
            if self._is_open:
                self._snapshots.add_replica(step, state)

    def _newest(self) -> int | None:
        step = self._steps.get()
        while step is not None and not self._steps.empty():
            step = self._steps.get()
        return step
