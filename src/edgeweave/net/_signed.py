"""Requests that say who asks, so that the answer can be sent over the right emulated link.

signed request = length of the signature, 2 bytes | signature | payload
"""

from __future__ import annotations

import struct

import msgspec

from edgeweave.core.errors import WireError
from edgeweave.net.transport import Buffer, Priority

__all__ = ["MOST_SIGNATURE_BYTES", "Signature", "sign", "unsign"]

MOST_SIGNATURE_BYTES = 1024

_LENGTH = struct.Struct("<H")


class Signature(msgspec.Struct, frozen=True, array_like=True):
    """Who asks, how long it waits, and how urgent the answer is."""

    device: str
    timeout_seconds: float
    priority: Priority


def sign(signature: Signature, payload: Buffer) -> bytes:
    """The payload with a signature before it."""
    head = msgspec.msgpack.encode(signature)
    return b"".join((_LENGTH.pack(len(head)), head, payload))


def unsign(data: bytes) -> tuple[Signature, bytes]:
    """The signature and the payload; ``WireError`` if there is none."""
    try:
        (length,) = _LENGTH.unpack_from(data)
        start = _LENGTH.size + length
        head = data[_LENGTH.size : min(start, _LENGTH.size + MOST_SIGNATURE_BYTES)]
        return msgspec.msgpack.decode(head, type=Signature), data[start:]
    except (struct.error, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(
            f"a request in a fleet with emulated links says who asks ({error}). "
            "Shape the transport of every member of the fleet, or of none."
        ) from error
