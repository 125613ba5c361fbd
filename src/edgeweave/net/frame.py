"""The one frame format: a typed header, and the raw bytes of tensors. Knows no network.

    header    msgpack array of ``FrameHeader``, at most 256 KiB
    payload   tensor 0 | zeros | tensor 1 | zeros | ... | last tensor

Tensors lie contiguous and little-endian, each beginning at a multiple of 64 bytes from the start of
the payload, so that a receiver views them where they are. Nothing is trusted: names, dtypes, shapes
and sizes are checked before a byte is allocated for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import msgspec
import torch

from edgeweave.core.errors import WireError
from edgeweave.core.units import format_bytes

__all__ = [
    "ALIGNMENT_BYTES",
    "EncodedFrame",
    "Frame",
    "FrameHeader",
    "TensorSpec",
    "check_header",
    "decode",
    "decode_header",
    "encode",
    "payload_bytes",
    "specs_of",
]

ALIGNMENT_BYTES = 64

_LONGEST_HEADER_BYTES = 256 * 1024
_MOST_DIMENSIONS = 16
_LARGEST_INDEX = 2**63 - 1
_ZEROS = memoryview(bytes(ALIGNMENT_BYTES))

_DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
_DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in _DTYPES.items()}


class TensorSpec(msgspec.Struct, frozen=True, array_like=True):
    """Name, element type and shape of one tensor of a frame."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class FrameHeader(msgspec.Struct, frozen=True, array_like=True):
    """What a frame is, and what its payload holds."""

    kind: str
    device: str
    """The sender."""
    stage: int
    """The sender's stage; -1 is the coordinator."""
    term: int
    step: int
    microbatch: int
    tensors: tuple[TensorSpec, ...] = ()
    scalars: dict[str, float] = {}
    """Small numbers beside the tensors, such as a loss or a sample count."""
    codec: Literal["none", "edgeweave"] = "none"
    """Whether each tensor is bytes that ``edgeweave.codec`` made of one, and says what of."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One message: a header and the tensors it describes, in its order."""

    header: FrameHeader
    tensors: tuple[torch.Tensor, ...] = ()


class EncodedFrame(NamedTuple):
    """A frame ready to travel: header bytes, and views whose concatenation is the payload."""

    header: bytes
    views: tuple[memoryview, ...]


_encoder = msgspec.msgpack.Encoder()
_header_decoder = msgspec.msgpack.Decoder(FrameHeader)


def specs_of(tensors: Mapping[str, torch.Tensor]) -> tuple[TensorSpec, ...]:
    """Describe named tensors for a header.

    >>> specs_of({"x": torch.zeros(2, 3)})
    (TensorSpec(name='x', dtype='float32', shape=(2, 3)),)
    """
    return tuple(_spec_of(name, tensor) for name, tensor in tensors.items())


def payload_bytes(specs: Iterable[TensorSpec]) -> int:
    """The size of the payload that ``specs`` describe; ``WireError`` if they describe none.

    >>> payload_bytes([TensorSpec("loss", "float32", ()), TensorSpec("x", "int8", (3,))])
    67
    """
    return _layout(tuple(specs))[1]


def check_header(header: FrameHeader, limit_bytes: int) -> int:
    """Return the payload's size if every rule holds and it is at most ``limit_bytes``."""
    try:
        size_bytes = payload_bytes(header.tensors)
    except WireError as error:
        raise WireError(f"{_named(header)}: {error}") from error
    if size_bytes > limit_bytes:
        raise WireError(
            f"{_named(header)}: a payload here is at most {format_bytes(limit_bytes)} "
            f"(it announces {format_bytes(size_bytes)})."
        )
    return size_bytes


def encode(frame: Frame) -> EncodedFrame:
    """Lay a frame out without copying its contiguous CPU tensors.

    The views read the tensors' own memory, so the tensors must not change before the frame is sent.
    A tensor elsewhere (another device, strided memory) is copied once to contiguous host memory.
    """
    header = frame.header
    actual = tuple(
        _spec_of(spec.name, tensor)
        for spec, tensor in zip(header.tensors, frame.tensors, strict=False)
    )
    if len(header.tensors) != len(frame.tensors) or actual != header.tensors:
        raise WireError(
            f"{_named(header)}: a header describes the tensors beside it "
            f"(described: {_shown(header.tensors)}; present: {_shown(actual)}, "
            f"{len(frame.tensors)} in all). Build the header with specs_of."
        )
    starts, _ = _layout(header.tensors)
    views: list[memoryview] = []
    end = 0
    for tensor, start in zip(frame.tensors, starts, strict=True):
        padding = start - end
        if padding:
            views.append(_ZEROS[:padding])
        view = _bytes_of(tensor)
        views.append(view)
        end = start + len(view)
    encoded = _encoder.encode(header)
    if len(encoded) > _LONGEST_HEADER_BYTES:
        raise WireError(
            f"{_named(header)}: a header has at most {format_bytes(_LONGEST_HEADER_BYTES)} "
            f"({format_bytes(len(encoded))}). Send fewer tensors in one frame."
        )
    return EncodedFrame(encoded, tuple(views))


def decode_header(data: bytes | memoryview) -> FrameHeader:
    """Read header bytes; ``WireError`` if they are not a header. Tensors are not checked here."""
    if len(data) > _LONGEST_HEADER_BYTES:
        raise WireError(
            f"a frame header has at most {format_bytes(_LONGEST_HEADER_BYTES)} "
            f"({format_bytes(len(data))})."
        )
    try:
        return _header_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(
            f"a frame header is a msgpack array of the known fields ({error})."
        ) from error


def decode(header: FrameHeader, buffer: bytes | bytearray | memoryview) -> Frame:
    """View the tensors of a payload in place; only a read-only buffer is copied first.

    The tensors share ``buffer``'s memory and keep it alive.
    """
    view = memoryview(buffer)
    try:
        starts, size_bytes = _layout(header.tensors)
    except WireError as error:
        raise WireError(f"{_named(header)}: {error}") from error
    if size_bytes != view.nbytes:
        raise WireError(
            f"{_named(header)}: a payload has the size its header announces "
            f"(announced: {size_bytes} bytes, present: {view.nbytes})."
        )
    memory = bytearray(buffer) if view.readonly else buffer
    return Frame(
        header,
        tuple(
            _view(header, spec, memory, start)
            for spec, start in zip(header.tensors, starts, strict=True)
        ),
    )


def _view(
    header: FrameHeader, spec: TensorSpec, memory: bytes | bytearray | memoryview, start: int
) -> torch.Tensor:
    dtype = _DTYPES[spec.dtype]
    n_elements = math.prod(spec.shape)
    if n_elements == 0:
        return torch.empty(spec.shape, dtype=dtype)
    if dtype is torch.bool:
        raw = torch.frombuffer(memory, dtype=torch.uint8, count=n_elements, offset=start)
        if int(raw.max()) > 1:
            raise WireError(f"{_named(header)}: a bool is 0 or 1 (tensor {spec.name!r}).")
    flat = torch.frombuffer(memory, dtype=dtype, count=n_elements, offset=start)
    return flat if len(spec.shape) == 1 else flat.view(spec.shape)


def _layout(specs: tuple[TensorSpec, ...]) -> tuple[list[int], int]:
    """Where each tensor begins, and where the last one ends."""
    starts: list[int] = []
    end = 0
    names: set[str] = set()
    for spec in specs:
        if spec.name in names:
            raise WireError(f"tensor names are unique ({spec.name!r} comes twice).")
        names.add(spec.name)
        start = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        starts.append(start)
        end = start + _tensor_bytes(spec)
    return starts, end


def _tensor_bytes(spec: TensorSpec) -> int:
    dtype = _DTYPES.get(spec.dtype)
    if dtype is None:
        raise WireError(
            f"a dtype is one of {', '.join(_DTYPES)} "
            f"(tensor {spec.name[:40]!r} has {spec.dtype[:40]!r})."
        )
    if len(spec.shape) > _MOST_DIMENSIONS:
        raise WireError(
            f"a tensor has at most {_MOST_DIMENSIONS} dimensions "
            f"(tensor {spec.name!r} has {len(spec.shape)})."
        )
    # Torch computes strides with empty dimensions counted as one; these must not overflow either.
    extent = dtype.itemsize * math.prod(max(length, 1) for length in spec.shape)
    if min(spec.shape, default=0) < 0 or extent > _LARGEST_INDEX:
        raise WireError(
            f"a shape has lengths of 0 or more and fits in memory "
            f"(tensor {spec.name!r} has {spec.shape})."
        )
    return dtype.itemsize * math.prod(spec.shape)


def _spec_of(name: str, tensor: torch.Tensor) -> TensorSpec:
    dtype = _DTYPE_NAMES.get(tensor.dtype)
    if dtype is None:
        raise WireError(
            f"a dtype is one of {', '.join(_DTYPES)} (tensor {name!r} has {tensor.dtype})."
        )
    return TensorSpec(name, dtype, tuple(tensor.shape))


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    host = tensor.detach()
    if not (host.is_cpu and host.is_contiguous()):
        host = host.cpu().contiguous()
    if host.dtype is torch.bfloat16:
        # Numpy has no such type.
        host = host.reshape(-1).view(torch.uint8)
    view = host.numpy().data
    return view.cast("B") if host.numel() else _ZEROS[:0]


def _named(header: FrameHeader) -> str:
    return f"frame {header.kind[:40]!r} from {header.device[:40]!r}"


def _shown(specs: tuple[TensorSpec, ...]) -> str:
    listed = [f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in specs[:4]]
    return ", ".join([*listed, "..."] if len(specs) > len(listed) else listed) or "none"
