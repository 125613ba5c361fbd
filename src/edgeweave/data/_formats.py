"""Arrays out of IDX, CIFAR-10 and npz files that nobody vouches for. Knows no data set by name.

What a header claims is checked against the size of the file before anything is allocated, and what
is then read grows with the bytes that really come. Nothing is unpickled. A file that breaks a rule
is a ``ConfigError`` with its path.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgeweave.core.errors import ConfigError
from edgeweave.core.units import format_bytes

__all__ = ["CIFAR_SHAPE", "UNREADABLE", "Array", "Bytes", "check_size"]
__all__ += ["read_cifar", "read_idx", "read_npz", "reading"]

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

CIFAR_SHAPE = (3, 32, 32)
_CIFAR_RECORD_BYTES = 1 + math.prod(CIFAR_SHAPE)
_CIFAR_CLASSES = 10

_LARGEST_ARRAY_BYTES = 4 * 2**30
_DEFLATE_LARGEST_RATIO = 1032
"""No deflate stream grows by more than this when it is unpacked."""
_CHUNK_BYTES = 2**20
_MOST_DIMENSIONS = 8

_NPY_START = b"\x93NUMPY"
_NPY_LONGEST_HEADER = 4096
_NPY_HEADER = re.compile(
    rb"\{'descr': '([<>|])([biuf])([1248])', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,18}(?:, ?|(?=\))))*)\), ?\} *\n"
)
"""What numpy writes for an array of plain numbers, and nothing else. Read by this pattern, because
numpy's own reader evaluates the header as Python and allocates what it claims."""
UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class _Stream(Protocol):
    def read(self, n_bytes: int, /) -> bytes: ...


def read_idx(path: Path, *, n_dimensions: int) -> Bytes:
    """The unsigned bytes of an IDX file, plain or, named ``.gz``, compressed."""
    with (
        reading(path, "an IDX file"),
        gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream,
    ):
        header = stream.read(4 + 4 * n_dimensions)
        shape = _idx_shape(path, header, n_dimensions)
        ratio = _DEFLATE_LARGEST_RATIO if path.suffix == ".gz" else 1
        _check_claim(path, math.prod(shape), path.stat().st_size * ratio)
        data = _read_exactly(path, stream, math.prod(shape))
    return np.frombuffer(data, np.uint8).reshape(shape)


def read_cifar(path: Path) -> tuple[Bytes, Bytes]:
    """Images (n, 3, 32, 32) and labels (n) of one file of CIFAR-10's binary version."""
    with reading(path, "a CIFAR-10 batch"):
        n_bytes = path.stat().st_size
        if n_bytes == 0 or n_bytes % _CIFAR_RECORD_BYTES:
            raise ConfigError(
                f"{path}: a CIFAR-10 batch is a whole number of records of {_CIFAR_RECORD_BYTES} "
                f"bytes (the file has {n_bytes} bytes). Unpack the binary version again."
            )
        _check_claim(path, n_bytes, n_bytes)
        with path.open("rb") as stream:
            data = _read_exactly(path, stream, n_bytes)
    records = np.frombuffer(data, np.uint8).reshape(-1, _CIFAR_RECORD_BYTES)
    labels = records[:, 0]
    if labels.max() >= _CIFAR_CLASSES:
        first = int((labels >= _CIFAR_CLASSES).argmax())
        raise ConfigError(
            f"{path}: a label of CIFAR-10 is 0 to {_CIFAR_CLASSES - 1} (record {first} has "
            f"{labels[first]}). Take CIFAR-10, not CIFAR-100, in the binary version."
        )
    return records[:, 1:].reshape(-1, *CIFAR_SHAPE), labels


def read_npz(path: Path, names: Collection[str]) -> dict[str, Array]:
    """Those of the named arrays that an npz file holds, if they are of plain numbers."""
    with reading(path, "an npz file"), zipfile.ZipFile(path) as archive:
        members = {i.filename.removesuffix(".npy"): i for i in archive.infolist()}
        return {n: _read_member(path, archive, members[n]) for n in names if n in members}


def _idx_shape(path: Path, header: bytes, n_dimensions: int) -> tuple[int, ...]:
    wanted = bytes([0, 0, 8, n_dimensions])
    if header[:4] != wanted or len(header) < 4 + 4 * n_dimensions:
        raise ConfigError(
            f"{path}: an IDX file of {n_dimensions} dimensions of unsigned bytes begins with "
            f"{wanted.hex(' ')} and its sizes (it begins with {header[:4].hex(' ') or 'nothing'}). "
            "Fetch the file again, and keep its name."
        )
    return struct.unpack(f">{n_dimensions}I", header[4:])


def _read_member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    where = Path(f"{path}[{member.filename}]")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ConfigError(
            f"{where}: an array is stored or deflated (compression method {member.compress_type})."
            " Write the file with numpy.savez or numpy.savez_compressed."
        )
    with archive.open(member) as stream:
        dtype, shape, order = _npy_header(where, stream)
        n_bytes = math.prod(shape) * dtype.itemsize
        _check_claim(where, n_bytes, path.stat().st_size * _DEFLATE_LARGEST_RATIO)
        data = _read_exactly(where, stream, n_bytes)
    array = np.frombuffer(data, dtype).reshape(shape, order=order)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _npy_header(
    where: Path, stream: _Stream
) -> tuple[np.dtype[Any], tuple[int, ...], Literal["C", "F"]]:
    start = stream.read(len(_NPY_START) + 2)
    length_format = {b"\x01\x00": "<H", b"\x02\x00": "<I"}.get(start[len(_NPY_START) :])
    if not start.startswith(_NPY_START) or length_format is None:
        raise ConfigError(
            f"{where}: an array begins with {_NPY_START!r} and version 1.0 or 2.0 (got "
            f"{start!r}). Write the file with numpy.savez."
        )
    (n_bytes,) = struct.unpack(length_format, stream.read(struct.calcsize(length_format)))
    header = stream.read(min(n_bytes, _NPY_LONGEST_HEADER))
    match = _NPY_HEADER.fullmatch(header)
    if match is None:
        raise ConfigError(
            f"{where}: an array holds booleans, integers or floats of up to 8 bytes (its header "
            f"is {header[:80]!r}). Save plain arrays of numbers, without objects."
        )
    shape = tuple(int(size) for size in match[5].replace(b",", b" ").split())
    kind = (match[1] + match[2] + match[3]).decode()
    if len(shape) > _MOST_DIMENSIONS or kind[1:] in ("f1", "b2", "b4", "b8"):
        raise ConfigError(
            f"{where}: an array has a type of numpy and at most {_MOST_DIMENSIONS} dimensions "
            f"(got {kind} and {len(shape)}). Write the file with numpy.savez."
        )
    return np.dtype(kind), shape, "F" if match[4] == b"True" else "C"


def _check_claim(where: Path, claimed_bytes: int, possible_bytes: int) -> None:
    if claimed_bytes > possible_bytes:
        raise ConfigError(
            f"{where}: a file holds what its header says (it says {format_bytes(claimed_bytes)}, "
            f"the file can hold {format_bytes(possible_bytes)}). Fetch or write it again."
        )
    check_size(where, claimed_bytes)


def check_size(where: Path, n_bytes: int) -> None:
    """``ConfigError`` if an array of so many bytes is more than is read into memory."""
    if n_bytes > _LARGEST_ARRAY_BYTES:
        raise ConfigError(
            f"{where}: an array has at most {format_bytes(_LARGEST_ARRAY_BYTES)} "
            f"(its header says {format_bytes(n_bytes)}). Read it by a Dataset."
        )


def _read_exactly(where: Path, stream: _Stream, n_bytes: int) -> bytearray:
    """The rest of the stream, if it is ``n_bytes``; reads on to the end, where sums are checked."""
    data = bytearray()
    while chunk := stream.read(min(_CHUNK_BYTES, n_bytes + 1 - len(data))):
        data += chunk
    if len(data) != n_bytes:
        more = "more" if len(data) > n_bytes else str(len(data))
        raise ConfigError(
            f"{where}: a file holds what its header says ({n_bytes} bytes of data, there are "
            f"{more}). Fetch or write it again."
        )
    return data


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Whatever goes wrong while the file is read is a ``ConfigError`` that names it."""
    if not path.is_file():
        raise ConfigError(f"{path}: {what} exists (there is no such file). Check the path.")
    try:
        yield
    except UNREADABLE as error:
        raise ConfigError(
            f"{path}: {what} can be read to its end ({type(error).__name__}: {error}). "
            "Fetch or write it again."
        ) from error
