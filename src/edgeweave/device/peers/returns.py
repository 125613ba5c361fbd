"""Who comes to a run and who goes. It is given on by its peers: to a neighbour that has died and
come back, by whoever sees it first, and to a device that nobody knew, by the peer that is asked to.

So is its begin: whoever begins lets its neighbours begin too. A coordinator that is killed while it
tells one after the other leaves no run of which only some are at work.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Collection
from dataclasses import replace

import msgspec

from edgeweave.core.errors import ConfigError, EdgeweaveError
from edgeweave.device.messages import decode_message, encode_message
from edgeweave.device.peers.messages import Admit, BeginGossip, Enrol, PeerStatus
from edgeweave.device.workplace import Workplace
from edgeweave.net import control_key

__all__ = ["admit", "enrol_again", "wait_until_without"]

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.05

_OPEN = ("d-psgd", "push-sum")
"""Algorithms whose peers need not all know the same graph."""
_FIRST_RANK = 1 << 20


def enrol_again(own: Enrol, other: str, steps: int, place: Workplace) -> str:
    """Give ``other`` the run of ``own``, if it is in none and its data are files on it; let it
    begin, if it only waits for that.

    What was done, in a word; empty if nothing was. ``EdgeweaveError`` if it cannot be asked.
    """
    status = decode_message(_ask(place, other, "peer", b""), PeerStatus)
    if status.run == own.run and status.phase == "enrolled" and status.error is None:
        _ask(place, other, "begin", encode_message(BeginGossip(own.run, steps)))
        return "begun"
    data = own.others.get(other)
    if data is None or status.run is not None:
        return ""
    _give(msgspec.structs.replace(own, name=other, data=data), steps, place)
    return "enrolled"


def admit(own: Enrol, message: Admit, steps: int, place: Workplace) -> None:
    """Give a device that is none of the peers the run of ``own``.

    ``ConfigError`` if it is one already, if those it is to be near to are none, or if pairs or
    sides of the algorithm were agreed on by all: they could not know of another one.
    """
    settings = own.settings
    if settings.algorithm not in _OPEN:
        raise ConfigError(
            f"devices join runs of {' and '.join(_OPEN)} ({own.run} is of {settings.algorithm}). "
            "Start a run anew with the device in it."
        )
    graph = settings.graph.with_peer(message.device, message.near)
    enrol = msgspec.structs.replace(
        own,
        name=message.device,
        settings=replace(settings, graph=graph),
        data=message.data,
        rank=_FIRST_RANK + secrets.randbelow(_FIRST_RANK),
    )
    _give(enrol, steps, place)


def wait_until_without(own: Enrol, neighbours: Collection[str], place: Workplace) -> None:
    """Wait until neighbours have heard that this device leaves, at most for ``Timeouts.stop``.

    Its token may otherwise be gone before they have: then what it hands on comes too late.
    """
    clock = place.clock
    deadline = clock.now() + place.timeouts.stop
    waiting = list(neighbours)
    while waiting and clock.now() < deadline:
        seconds = deadline - clock.now()
        waiting = [other for other in waiting if _still_counts(own, other, seconds, place)]
        if waiting:
            clock.sleep(_LOOK_SECONDS)


def _still_counts(own: Enrol, other: str, seconds: float, place: Workplace) -> bool:
    """Whether a neighbour mixes with this device; one that does not answer does not."""
    try:
        answer = _ask(place, other, "peer", b"", seconds=seconds)
    except EdgeweaveError as error:
        _log.info("%s does not say whom it mixes with: %s", other, error)
        return False
    status = decode_message(answer, PeerStatus)
    return status.run == own.run and own.name in status.neighbours


def _give(enrol: Enrol, steps: int, place: Workplace) -> None:
    _ask(place, enrol.name, "enrol", encode_message(enrol), seconds=place.timeouts.work)
    begin = BeginGossip(enrol.run, steps, returning=True)
    _ask(place, enrol.name, "begin", encode_message(begin))


def _ask(
    place: Workplace, other: str, verb: str, payload: bytes, *, seconds: float | None = None
) -> bytes:
    return place.transport.request(
        control_key(place.settings.fleet, other, verb),
        payload,
        device=other,
        timeout_seconds=place.timeouts.request if seconds is None else seconds,
    )
