"""The coordinator's copy of the whole state: fetched beside training, then taken over."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from edgeweave.core.errors import EdgeweaveError
from edgeweave.device import Replicate, encode_message, received_state
from edgeweave.fleet import Fleet
from edgeweave.net import Priority, control_key
from edgeweave.train.weights import Weights

__all__ = ["Copies"]

_log = logging.getLogger(__name__)


class Copies:
    """At most one copy that is wanted is on its way; a device that is lost may owe one for long.

    ``close`` waits for all that was asked, no longer than for a thread's end. What is still owed
    then ends with the fleet's transport.
    """

    def __init__(self, fleet: Fleet, weights: Weights) -> None:
        self._fleet = fleet
        self._weights = weights
        self._pool = ThreadPoolExecutor(thread_name_prefix="edgeweave-copies")
        self._coming: tuple[int, Mapping[str, Future[bytes]]] | None = None
        self._owed: set[Future[bytes]] = set()

    def begin(self, run: str, term: int, step: int, devices: Sequence[str]) -> None:
        """Fetch the states after ``step`` steps, behind all that training sends.

        Nothing happens while the copy before is on its way.
        """
        if self._coming is not None:
            return
        fleet, message = self._fleet, encode_message(Replicate(run, term, step))
        futures = {
            device: self._pool.submit(
                fleet.transport.request,
                control_key(fleet.name, device, "replicate"),
                message,
                device=device,
                timeout_seconds=fleet.timeouts.work,
                priority=Priority.BACKGROUND,
            )
            for device in devices
        }
        self._coming = step, futures
        self._owed = {each for each in self._owed if not each.done()} | set(futures.values())

    def take(self, done: int) -> None:
        """Take over what is here, if it is whole and of no step after the ``done`` ones."""
        if self._coming is None or self._coming[0] > done:
            return
        if not all(each.done() for each in self._coming[1].values()):
            return
        (step, futures), self._coming = self._coming, None
        try:
            states = [received_state(future.result(), d) for d, future in futures.items()]
        except EdgeweaveError as error:
            _log.warning("the state after step %d was not copied here: %s", step, error)
            return
        self._weights.take(step, states)

    def forget(self) -> None:
        """What is on its way belongs to a term that is over."""
        self._coming = None

    def close(self) -> None:
        """Ask for nothing any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        late = wait(self._owed, self._fleet.timeouts.stop).not_done
        if not late:
            self._pool.shutdown()
