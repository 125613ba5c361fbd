"""Requests that say who asks, so that the answer can be sent over the right emulated link.

signed request = length of the signature, 2 bytes | signature | payload
"""

from __future__ import annotations

import struct

import msgspec

from edgeweave.core.errors import ConfigError, WireError
from edgeweave.net.keys import check_device_name
from edgeweave.net.transport import Buffer, Priority

__all__ = ["MOST_SIGNATURE_BYTES", "Signature", "sign", "unsign"]

MOST_SIGNATURE_BYTES = 1024

_LENGTH = struct.Struct("<H")
_LONGEST_SECONDS = 24 * 3600.0


class Signature(msgspec.Struct, frozen=True, array_like=True):
    """Who asks, how long it waits, and how urgent the answer is."""

    device: str
    timeout_seconds: float
    priority: Priority


_signature_decoder = msgspec.msgpack.Decoder(Signature)


def sign(signature: Signature, payload: Buffer) -> bytes:
    """The payload with a signature before it."""
    head = msgspec.msgpack.encode(signature)
    return b"".join((_LENGTH.pack(len(head)), head, payload))


def unsign(data: bytes) -> tuple[Signature, bytes]:
    """The signature and the payload; ``WireError`` if there is none, or none to be believed."""
    try:
        (length,) = _LENGTH.unpack_from(data)
        start = _LENGTH.size + length
        head = data[_LENGTH.size : min(start, _LENGTH.size + MOST_SIGNATURE_BYTES)]
        signature = _signature_decoder.decode(head)
    except (struct.error, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(
            f"a request in a fleet with emulated links says who asks ({error}). "
            "Shape the transport of every member of the fleet, or of none."
        ) from error
    try:
        check_device_name(signature.device)
    except ConfigError as error:
        raise WireError(f"a request is signed with the name of a device: {error}") from error
    if not 0 < signature.timeout_seconds <= _LONGEST_SECONDS:
        raise WireError(
            f"who asks waits more than 0 s and at most {_LONGEST_SECONDS / 3600:.0f} h "
            f"({signature.device} waits {signature.timeout_seconds} s). Ask with a deadline."
        )
    return signature, data[start:]
