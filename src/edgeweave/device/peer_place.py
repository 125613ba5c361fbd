"""Where gossip runs live on a device: at most one, which may outlast its own end.

    idle --enrol--> enrolled --begin--> working --all done--> kept --another run, release--> idle

A device is busy until its peer has done all steps, and free from then on; the model is kept, and
can be fetched, until another run of gossip wants the device, or this one is released.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import psutil

from edgeweave.core.errors import FleetError
from edgeweave.device.gossip_messages import BeginGossip, Enrol, ModelRequest, PeerStatus
from edgeweave.device.messages import decode_message, encode_message
from edgeweave.device.peer_run import PeerRun
from edgeweave.device.running import Workplace
from edgeweave.net.transport import REQUEST_BYTES

__all__ = ["PeerPlace"]

_log = logging.getLogger(__name__)

Verbs = dict[str, tuple[Callable[[bytes], bytes], int]]


class PeerPlace:
    """Answers what is asked about gossip. ``take`` makes the device busy, ``free`` idle."""

    def __init__(
        self, place: Workplace, *, take: Callable[[str], None], free: Callable[[], None]
    ) -> None:
        self._place = place
        self._take = take
        self._free = free
        self._changing = threading.RLock()
        self._peer: PeerRun | None = None
        self._is_busy = False

    def verbs(self) -> Verbs:
        """Verb -> handler, and the largest request it takes."""
        most = psutil.virtual_memory().total
        return {
            "enrol": (self._enrol, most),
            "begin": (self._begin, REQUEST_BYTES),
            "model": (self._model, REQUEST_BYTES),
            "peer": (self._status, REQUEST_BYTES),
        }

    def release(self, run: str | None = None) -> None:
        """End a run here, whichever it is or only this one."""
        with self._changing:
            peer = self._peer
            if peer is None or run not in (None, peer.run):
                return
            self._peer = None
        peer.close()
        self._become_free()
        _log.info("gossip run %s: ended here", peer.run)

    def _enrol(self, payload: bytes) -> bytes:
        message = decode_message(payload, Enrol)
        with self._changing:
            peer = self._peer
            if peer is None or peer.run != message.run:
                if not self._is_busy:
                    self.release()
                self._take(message.run)
                self._is_busy = True
                try:
                    peer = PeerRun(message, self._place, on_finished=self._become_free)
                except BaseException:
                    self._become_free()
                    raise
                self._peer = peer
            return encode_message(peer.enrolled())

    def _begin(self, payload: bytes) -> bytes:
        message = decode_message(payload, BeginGossip)
        self._required(message.run).begin(message)
        return b""

    def _model(self, payload: bytes) -> bytes:
        return self._required(decode_message(payload, ModelRequest).run).model()

    def _status(self, _payload: bytes) -> bytes:
        peer = self._peer
        return encode_message(PeerStatus(None) if peer is None else peer.status())

    def _required(self, run: str) -> PeerRun:
        peer = self._peer
        if peer is None or peer.run != run:
            raise FleetError(
                f"{self._place.settings.name} is no peer of run {run} (it is one of "
                f"{peer.run if peer else 'none'})."
            )
        return peer

    def _become_free(self) -> None:
        with self._changing:
            if not self._is_busy:
                return
            self._is_busy = False
        self._free()
