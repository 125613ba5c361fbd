"""Where gossip runs live on a device: at most one, which may outlast its own end.

    idle --enrol--> enrolled --begin--> working --all done, stop--> kept --release--> idle
                                                                        --another run--> enrolled

A device is busy until its peer has done all steps, or was stopped, and free from then on; the model
is kept, and can be fetched, until another run of gossip wants the device, or this one is released.

A release may come before the request that it takes back, which is longer on its way, or while that
is being done: runs that were released are remembered, and nobody is enrolled in them any more. One
who enrols a device and never lets it begin, nor releases it, has gone or cannot reach it: the
device is free again after a while.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

import psutil

from edgeweave.core.errors import FleetError
from edgeweave.device.messages import decode_message, encode_message
from edgeweave.device.peers.messages import (
    Admit,
    BeginGossip,
    Enrol,
    ModelRequest,
    PeerStatus,
    StopGossip,
)
from edgeweave.device.peers.run import PeerRun
from edgeweave.device.workplace import Workplace
from edgeweave.net.transport import REQUEST_BYTES

__all__ = ["PeerPlace"]

_log = logging.getLogger(__name__)

_REMEMBERED_RELEASES = 64

Verbs = dict[str, tuple[Callable[[bytes], bytes], int]]


class PeerPlace:
    """Answers what is asked about gossip. ``take`` makes the device busy, ``free`` idle."""

    def __init__(
        self, place: Workplace, *, take: Callable[[str], None], free: Callable[[], None]
    ) -> None:
        self._place = place
        self._take = take
        self._free = free
        self._changing = threading.Lock()
        self._enrolling = threading.Lock()
        self._peer: PeerRun | None = None
        self._is_busy = False
        self._coming: str | None = None
        """The run that is being enrolled."""
        self._released: deque[str] = deque(maxlen=_REMEMBERED_RELEASES)
        self._expiry: threading.Timer | None = None

    def verbs(self) -> Verbs:
        """Verb -> handler, and the largest request it takes."""
        most = psutil.virtual_memory().total
        return {
            "enrol": (self._enrol, most),
            "begin": (self._begin, REQUEST_BYTES),
            "model": (self._model, REQUEST_BYTES),
            "stop": (self._stop, REQUEST_BYTES),
            "admit": (self._admit, REQUEST_BYTES),
            "peer": (self._status, REQUEST_BYTES),
        }

    def leave(self) -> None:
        """Let the peer say good-bye, if there is one at work; the device goes."""
        peer = self._peer
        if peer is not None:
            peer.leave()

    def release(self, run: str | None = None) -> None:
        """End a run here, whichever it is or only this one. One that is being enrolled ends once
        it is, and one that is still to come never begins.
        """
        with self._changing:
            released = self._coming if run is None else run
            if released is not None:
                self._released.append(released)
            peer = self._peer
            if peer is None or run not in (None, peer.run):
                return
            self._peer = None
            self._stay()
        # Without the lock: its threads may be telling that they are done, and are waited for.
        peer.close()
        self._become_free()
        _log.info("gossip run %s: ended here", peer.run)

    def _enrol(self, payload: bytes) -> bytes:
        message = decode_message(payload, Enrol)
        with self._enrolling:
            peer = self._peer
            if peer is None or peer.run != message.run:
                peer = self._new_peer(message)
            return encode_message(peer.enrolled())

    def _new_peer(self, message: Enrol) -> PeerRun:
        """A peer of another run than before."""
        run = message.run
        if not self._is_busy:
            self.release()
        self._take(run)
        with self._changing:
            self._is_busy = True
            self._coming = run
        peer: PeerRun | None = None
        try:
            self._check_wanted(run)
            peer = PeerRun(message, self._place, on_finished=self._become_free)
            with self._changing:
                self._check_wanted(run)
                self._coming, self._peer = None, peer
                self._expire_unless_begun(peer)
        except BaseException:
            with self._changing:
                self._coming = None
            if peer is not None:
                peer.close()
            self._become_free()
            raise
        return peer

    def _check_wanted(self, run: str) -> None:
        if run in self._released:
            raise FleetError(f"run {run} was released before it was enrolled. Start it again.")

    def _expire_unless_begun(self, peer: PeerRun) -> None:
        """Whoever enrols has as long for the slowest device of a run, and then lets all begin."""
        seconds = self._place.timeouts.work + self._place.timeouts.request

        def expire() -> None:
            if peer.end_unless_begun():
                _log.warning("gossip run %s: nobody let it begin for %.0f s", peer.run, seconds)
                self.release(peer.run)

        self._expiry = threading.Timer(seconds, expire)
        self._expiry.start()

    def _stay(self) -> None:
        """Do not end by itself any more."""
        timer, self._expiry = self._expiry, None
        if timer is not None:
            timer.cancel()

    def _begin(self, payload: bytes) -> bytes:
        message = decode_message(payload, BeginGossip)
        self._required(message.run).begin(message)
        with self._changing:
            self._stay()
        return b""

    def _stop(self, payload: bytes) -> bytes:
        """Keep what was learnt; a run that did not begin has learnt nothing, and goes."""
        run = decode_message(payload, StopGossip).run
        peer = self._required(run)
        if not peer.stop():
            self.release(run)
        return b""

    def _admit(self, payload: bytes) -> bytes:
        message = decode_message(payload, Admit)
        self._required(message.run).admit(message)
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
