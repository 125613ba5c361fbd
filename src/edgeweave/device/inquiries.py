"""What others ask of a device whatever it works on: its links, its codecs, a neighbour's pulse."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from edgeweave.core.errors import WireError
from edgeweave.device.messages import Relay, decode_message, encode_message
from edgeweave.device.probes.coding_speed import coding_seconds
from edgeweave.device.probes.links import BASES_BYTES, probe_link
from edgeweave.device.probes.messages import CodingProbe, CodingSeconds, LinkProbe
from edgeweave.device.workplace import Workplace
from edgeweave.net import Priority, control_key
from edgeweave.net.transport import REQUEST_BYTES

__all__ = ["inquiries"]

_LARGEST_PROBE_BYTES = 16 << 20


def inquiries(place: Workplace) -> Mapping[str, tuple[Callable[[bytes], bytes], int]]:
    """The verbs with their handlers and the largest requests, in bytes."""
    return {
        "echo": (lambda _payload: b"", _LARGEST_PROBE_BYTES),
        "measure": (functools.partial(_measured, place), REQUEST_BYTES),
        "coding": (functools.partial(_coding, place), REQUEST_BYTES),
        "relay": (functools.partial(_relayed, place), REQUEST_BYTES),
    }


def _measured(place: Workplace, payload: bytes) -> bytes:
    message = decode_message(payload, LinkProbe)
    in_range = 1 < message.size_bytes <= _LARGEST_PROBE_BYTES
    if not in_range or message.size_bytes in BASES_BYTES:
        raise WireError(
            f"a link is probed with 2 to {_LARGEST_PROBE_BYTES} bytes, and not with "
            f"{max(BASES_BYTES)} (asked for {message.size_bytes})."
        )
    key = control_key(place.settings.fleet, message.target, "echo")

    def ask(payload: bytes) -> bytes:
        return place.transport.request(
            key,
            payload,
            device=message.target,
            timeout_seconds=place.timeouts.request,
        )

    return encode_message(probe_link(ask, place.clock.now, message.size_bytes))


def _coding(place: Workplace, payload: bytes) -> bytes:
    message = decode_message(payload, CodingProbe)
    throttle = place.throttle
    taken = coding_seconds(message.codec, message.widths, throttle.stopwatch())
    return encode_message(
        CodingSeconds(
            throttle.slowed(taken.encode_seconds_per_byte),
            throttle.slowed(taken.decode_seconds_per_byte),
        )
    )


def _relayed(place: Workplace, payload: bytes) -> bytes:
    """Another device's pulse, as far as it reaches this one."""
    message = decode_message(payload, Relay)
    longest = place.timeouts.frame
    if not 0 < message.timeout_seconds <= longest:
        raise WireError(
            f"a pulse is waited for up to {longest:.0f} s (asked for {message.timeout_seconds})."
        )
    return place.transport.request(
        control_key(place.settings.fleet, message.device, "pulse"),
        b"",
        device=message.device,
        timeout_seconds=message.timeout_seconds,
        priority=Priority.CONTROL,
    )
