"""A lossless last stage: Huffman codes of zlib around a coded tensor.

    offset  bytes
    0       3      b"EWZ"
    3       1      version, 1
    4       8      length of what is inside, little-endian
    12             a zlib stream

Entropy coding finds what quantising leaves: most codes are small. It takes several times as long as
the codec before it, so it pays on slow links alone. No strings are searched for: none repeat.
"""

from __future__ import annotations

import struct
import zlib

from edgeweave.core.errors import VersionError, WireError

__all__ = ["LARGEST_RATIO", "deflated", "inflated", "is_deflated"]

_MAGIC = b"EWZ"
_VERSION = 1
_HEAD = struct.Struct("<3sBQ")
_WINDOW_BITS = 15
_LEAST_EFFORT = 1
_MOST_MEMORY = 9
LARGEST_RATIO = 1032
"""Of zlib: no honest stream announces more (zlib.net/zlib_tech.html)."""


def deflated(coded: memoryview) -> memoryview:
    """A coded tensor with Huffman codes around it, or as it is if they do not make it smaller."""
    press = zlib.compressobj(
        _LEAST_EFFORT, zlib.DEFLATED, _WINDOW_BITS, _MOST_MEMORY, zlib.Z_HUFFMAN_ONLY
    )
    found = bytearray(_HEAD.pack(_MAGIC, _VERSION, coded.nbytes))
    found += press.compress(coded)
    found += press.flush()
    return memoryview(found) if len(found) < coded.nbytes else coded


def is_deflated(data: memoryview) -> bool:
    """Whether bytes claim to be what ``deflated`` made."""
    return data[: len(_MAGIC)] == _MAGIC


def inflated(data: memoryview, limit_bytes: int) -> memoryview:
    """What is inside, up to ``limit_bytes``; ``WireError`` unless whole and as announced."""
    if len(data) < _HEAD.size:
        raise WireError(
            f"a deflated tensor has at least {_HEAD.size} bytes (it has {len(data)}). "
            "Send it again."
        )
    _magic, version, length = _HEAD.unpack_from(data)
    if version != _VERSION:
        raise VersionError(
            f"a deflated tensor has version {_VERSION} (got {version}). "
            "Install one version of edgeweave on all devices."
        )
    most = min(limit_bytes, LARGEST_RATIO * len(data))
    if length > most:
        raise WireError(
            f"a deflated tensor has at most {most} bytes inside here ({len(data)} bytes announce "
            f"{length})."
        )
    press = zlib.decompressobj(_WINDOW_BITS)
    try:
        found = press.decompress(data[_HEAD.size :], length + 1)
    except zlib.error as error:
        raise WireError(
            f"a deflated tensor arrives as it was sent ({error}). Send it again."
        ) from error
    if len(found) != length or not press.eof or press.unused_data:
        raise WireError(
            f"a deflated tensor is as long as its header says (announced: {length} bytes, "
            f"inside: {len(found)}{'' if press.eof else ' or more'}, behind it: "
            f"{len(press.unused_data)})."
        )
    return memoryview(found)
