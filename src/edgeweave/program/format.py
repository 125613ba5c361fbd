"""Programs and their state as bytes: JSON for the graph, safetensors for the tensors.

    {"format": "edgeweave/program", "version": 1, "program_sha256": ..., "state_sha256": ...,
     "program": {inputs, state, nodes, outputs, loss, metrics, updates, aliases}}

Nothing in it can execute: the schema is ``edgeweave.program.graph``, operators are ``aten`` only,
and ``decode`` checks digests, structure, every reference, shape and size (``check``) before it
hands anything on. ``torch.export.load`` and pickle are never used. Bytes in, values out: whoever
owns a file or a socket reads and writes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

import msgspec
import safetensors
import safetensors.torch
import torch

from edgeweave.core.errors import FormatError
from edgeweave.core.units import format_bytes
from edgeweave.program.capture import Captured
from edgeweave.program.check import check
from edgeweave.program.graph import Program, StateSpec
from edgeweave.program.operators import DTYPES

__all__ = [
    "FORMAT_VERSION",
    "Examine",
    "decode",
    "decode_program",
    "decode_state",
    "encode",
    "encode_program",
    "encode_state",
]

_T = TypeVar("_T")

Examine = Callable[[Program], None]
"""Raises ``FormatError`` for a program that must not run."""

FORMAT_VERSION = 1

_FORMAT = "edgeweave/program"
_MAX_GRAPH_BYTES = 64 << 20


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    version: int
    program_sha256: str
    state_sha256: str
    program: msgspec.Raw


_envelope_decoder = msgspec.json.Decoder(_Envelope)
_program_decoder = msgspec.json.Decoder(Program)


def encode(
    program: Program, state: Mapping[str, torch.Tensor], *, without: Collection[str] = ()
) -> tuple[bytes, bytes]:
    """The graph and the tensors as two byte strings, the first naming the digest of the second.

    ``without``: tensors that the reader has, and passes to ``decode`` as ``known``.
    """
    names = [spec.name for spec in program.state if spec.name not in without]
    tensors = encode_state({name: state[name] for name in names})
    return _envelope(program, tensors), tensors


def encode_program(program: Program) -> bytes:
    """The graph alone, for ``decode_program``."""
    return _envelope(program, b"")


def _envelope(program: Program, tensors: bytes) -> bytes:
    graph = msgspec.json.encode(program, order="deterministic")
    envelope = _Envelope(
        _FORMAT, FORMAT_VERSION, _digest(graph), _digest(tensors), msgspec.Raw(graph)
    )
    return msgspec.json.encode(envelope)


def decode(
    graph: bytes,
    tensors: bytes | memoryview,
    *,
    examine: Examine | None = None,
    known: Mapping[str, torch.Tensor] | None = None,
) -> Captured:
    """Read what ``encode`` wrote. Raises ``FormatError`` for anything else; executes nothing.

    ``examine`` replaces the check of the program, for callers that check in another process;
    ``known`` are the tensors that it was encoded without.
    """
    envelope, program = _decode_graph(graph, examine)
    if _digest(tensors) != envelope.state_sha256:
        raise FormatError("the tensors are damaged (SHA-256 differs). Fetch or write them again.")
    held = known or {}
    sent = decode_state(tensors, tuple(s for s in program.state if s.name not in held))
    _check_tensors(held, tuple(spec for spec in program.state if spec.name in held))
    return Captured(program, {**sent, **held})


def decode_program(graph: bytes, *, examine: Examine | None = None) -> Program:
    """Read the graph alone, as profiling does, which needs no weights."""
    return _decode_graph(graph, examine)[1]


def _decode_graph(graph: bytes, examine: Examine | None) -> tuple[_Envelope, Program]:
    if len(graph) > _MAX_GRAPH_BYTES:
        raise FormatError(
            f"a graph has at most {format_bytes(_MAX_GRAPH_BYTES)} "
            f"(got {format_bytes(len(graph))})."
        )
    envelope = _parse(graph, _envelope_decoder)
    if envelope.format != _FORMAT:
        raise FormatError(f"not a program of Edgeweave (format: {envelope.format[:40]!r}).")
    if envelope.version != FORMAT_VERSION:
        raise FormatError(
            f"this package reads version {FORMAT_VERSION} of the program format "
            f"(the file has version {envelope.version}). Use the package that wrote it."
        )
    if _digest(envelope.program) != envelope.program_sha256:
        raise FormatError("the graph is damaged (its SHA-256 differs). Fetch or write it again.")
    program = _parse(envelope.program, _program_decoder)
    (examine or check)(program)
    return envelope, program


def encode_state(state: Mapping[str, torch.Tensor]) -> bytes:
    """Tensors as safetensors. Views and tied tensors are written out in full."""
    flat: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in state.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != plain.nbytes:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        flat[name] = plain
    return bytes(safetensors.torch.save(flat))


def decode_state(
    tensors: bytes | memoryview, specs: tuple[StateSpec, ...]
) -> dict[str, torch.Tensor]:
    """Read safetensors and hold them against the declared names, shapes and dtypes."""
    try:
        state = safetensors.torch.load(bytes(tensors))
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise FormatError(f"the tensors are not safetensors ({error}).") from error
    _check_tensors(state, specs)
    return state


def _check_tensors(state: Mapping[str, torch.Tensor], specs: tuple[StateSpec, ...]) -> None:
    declared = {spec.name: (DTYPES[spec.dtype], spec.shape) for spec in specs}
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    if declared != found:
        names = sorted(k for k in declared.keys() | found if declared.get(k) != found.get(k))
        raise FormatError(
            f"the tensors are not those of the program ({', '.join(names[:3])} differ)."
        )


def _digest(data: bytes | memoryview | msgspec.Raw) -> str:
    return hashlib.sha256(memoryview(data)).hexdigest()


def _parse(data: bytes | msgspec.Raw, decoder: msgspec.json.Decoder[_T]) -> _T:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise FormatError(f"the graph is not of the program schema ({error}).") from error
