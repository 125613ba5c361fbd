"""A tensor to bytes, and back: the two functions that know every coding.

header | map of zeros, where they are left out | values in blocks, as integers, or raw
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from edgeweave.codec import blocks, integers, raw, zeros
from edgeweave.codec.blocks import Blocks
from edgeweave.codec.codecs import Codec, CodecName
from edgeweave.codec.deflating import LARGEST_RATIO, deflated, inflated, is_deflated
from edgeweave.codec.header import Coding, Header, is_float, is_integer, read, sealed
from edgeweave.codec.integers import Integers
from edgeweave.codec.packing import Bytes
from edgeweave.codec.raw import Raw
from edgeweave.codec.reader import Body, Reader
from edgeweave.codec.rounding import AtRandom, Nearest
from edgeweave.codec.zeros import WithZeros
from edgeweave.core.errors import WireError

__all__ = ["decode", "encode"]

_CODINGS: Mapping[CodecName, Coding] = {
    "none": Coding.RAW,
    "truncate": Coding.TRUNCATE,
    "uniform": Coding.UNIFORM,
    "blockfloat": Coding.BLOCKFLOAT,
}
_NO_MAP = np.empty(0, np.uint8)
_MOST_OVERHEAD_BYTES = 128
"""The header: what does not become smaller travels as it is."""


def encode(
    tensor: torch.Tensor, codec: Codec, *, seed: int | None = None, deflate: bool = False
) -> memoryview:
    """Code a tensor into bytes that say all that ``decode`` needs.

    Floats of 16 and 32 bits lose what ``codec`` takes from them, within the bounds it states, but
    for blocks with NaN, Inf or magnitudes of ``2**126`` and more, which travel exactly. Zeros are
    left out, and stay zero, where they are so many that it pays. Integers and bools lose nothing
    whatever the codec, and take the bits that their range needs, up to 16. What would not become
    smaller travels as it is, and so does float64.

    Without a ``seed`` values are rounded to nearest, as activations should be; with one, at random
    and without bias, as gradients should be. Equal seeds give equal bytes: give each message its
    own, from 0 up. ``deflate`` puts Huffman codes around it where these make it smaller: without
    loss, and several times as slowly.

    >>> from edgeweave.codec import uniform
    >>> values = torch.linspace(0, 1, 1024)
    >>> coded = encode(values, uniform(8))
    >>> len(coded), bool((decode(coded) - values).abs().max() < 0.0005)
    (1076, True)
    """
    coded = _encode(tensor, codec, seed)
    return deflated(coded) if deflate else coded


def decode(
    data: bytes | bytearray | memoryview, *, into: torch.Tensor | None = None
) -> torch.Tensor:
    """The tensor that ``encode`` made ``data`` of, in memory of its own or in ``into``.

    Everything is checked before memory for it is taken: ``WireError`` if a byte differs from what
    was sent, or if a sender broke a rule. Without ``into`` the tensor is at most 2048 times as
    large as ``data``, one of zeros, and that 1032 times if it was deflated. With it, shape and
    dtype must be its own.

    >>> from edgeweave.codec import none
    >>> decode(encode(torch.tensor([1, 2, 3]), none()))
    tensor([1, 2, 3])
    """
    view = memoryview(data).cast("B")
    if is_deflated(view):
        most = LARGEST_RATIO * len(view) if into is None else into.nbytes + _MOST_OVERHEAD_BYTES
        view = inflated(view, most)
    header = read(view)
    if into is not None and (into.dtype, tuple(into.shape)) != (header.dtype, header.shape):
        raise WireError(
            f"a tensor is decoded into one of its own dtype and shape (got {header.dtype} "
            f"{list(header.shape)} for {into.dtype} {list(into.shape)})."
        )
    body = _body(Reader(view, header.n_bytes), header)
    out = _target(header, into)
    body.write_to(out.view(-1))
    if into is None:
        return out
    if not _can_be_filled(into):
        into.detach().copy_(out)
    return into


def _encode(tensor: torch.Tensor, codec: Codec, seed: int | None) -> memoryview:
    host = tensor.detach().cpu().contiguous()
    flat = host.view(-1)
    header = Header(Coding.RAW, host.dtype, tuple(host.shape))
    if is_integer(host.dtype):
        return _encode_integers(flat, header)
    map_ = _NO_MAP
    if is_float(host.dtype):
        header = replace(header, coding=_CODINGS[codec.name], bits=codec.bits, block=codec.block)
        if zeros.pay(flat, codec.bits or 8 * host.dtype.itemsize):
            kept = zeros.kept(flat)
            header = replace(header, zeros_left_out=True)
            map_, flat = zeros.map_of(kept), zeros.without(flat, kept)
    return _encode_blocks(flat, header, map_, seed) or _encode_raw(flat, header, map_)


def _body(reader: Reader, header: Header) -> Body:
    """All that is behind the header, checked."""
    if not header.zeros_left_out:
        return _values(reader, header, header.n_values)
    kept = zeros.take_map(reader, header.n_values)
    return WithZeros(kept, _values(reader, header, int(np.count_nonzero(kept))))


def _values(reader: Reader, header: Header, n_values: int) -> Body:
    if header.coding is Coding.RAW:
        return Raw.taken_from(reader, n_values, header.dtype)
    if header.coding is Coding.INTEGERS:
        return Integers.taken_from(reader, n_values, header.bits, header.dtype)
    return Blocks.taken_from(reader, header, n_values)


def _target(header: Header, into: torch.Tensor | None) -> torch.Tensor:
    """``into`` if it can be filled where it is, else new memory."""
    if into is not None and _can_be_filled(into):
        return into.detach()
    return torch.empty(header.shape, dtype=header.dtype)


def _can_be_filled(into: torch.Tensor) -> bool:
    return into.is_cpu and into.is_contiguous()


def _encode_integers(flat: torch.Tensor, header: Header) -> memoryview:
    range_ = integers.range_of(flat)
    n_bytes = integers.coded_bytes(len(flat), range_.bits)
    if range_.bits > integers.MOST_BITS or n_bytes >= flat.nbytes:
        return _encode_raw(flat, header, _NO_MAP)
    header = replace(header, coding=Coding.INTEGERS, bits=range_.bits)
    out, body = _room(header, _NO_MAP, n_bytes)
    integers.encode(flat, range_, body)
    return sealed(out.data)


def _encode_blocks(
    flat: torch.Tensor, header: Header, map_: Bytes, seed: int | None
) -> memoryview | None:
    """None if raw values take no more bytes."""
    if header.coding is Coding.RAW:
        return None
    n_bytes = blocks.coded_bytes(header, len(flat))
    if n_bytes >= flat.nbytes:
        return None
    out, body = _room(header, map_, n_bytes)
    rounding = Nearest() if seed is None else AtRandom(seed)
    without_scale = blocks.encode(flat, header, rounding, body)
    if n_bytes + without_scale.nbytes >= flat.nbytes:
        return None
    if len(without_scale):
        out = np.concatenate([out, without_scale.reshape(-1).view(np.uint8)])
    return sealed(out.data)


def _encode_raw(flat: torch.Tensor, header: Header, map_: Bytes) -> memoryview:
    header = replace(header, coding=Coding.RAW, bits=0, block=0)
    out, body = _room(header, map_, flat.nbytes)
    raw.encode(flat, body)
    return sealed(out.data)


def _room(header: Header, map_: Bytes, n_bytes: int) -> tuple[Bytes, Bytes]:
    """Memory for all that is sent, filled up to its last ``n_bytes``; these."""
    before = header.packed() + map_.tobytes()
    out = np.empty(len(before) + n_bytes, np.uint8)
    out[: len(before)] = np.frombuffer(before, np.uint8)
    return out, out[len(before) :]
