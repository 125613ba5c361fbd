"""Files with damaged bytes: data come of them or a ``ConfigError``, and little memory goes."""

from __future__ import annotations

import gzip
import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgeweave.core.errors import ConfigError
from edgeweave.data._formats import read_cifar, read_idx, read_npz

IDX = struct.pack(">4B3I", 0, 0, 8, 3, 2, 3, 4) + bytes(range(24))
SLACK_BYTES = 4 * 2**20


def npz(save=np.savez) -> bytes:
    buffer = io.BytesIO()
    save(buffer, x=np.arange(12.0).reshape(4, 3), y=np.arange(4))
    return buffer.getvalue()


NPZ, NPZ_DEFLATED = npz(), npz(np.savez_compressed)

edits = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "insert", "large"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def damaged(whole: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    data = bytearray(whole)
    for kind, where, new in changes:
        at = int(where * len(data))
        if kind == "set":
            data[at : at + len(new)] = new
        elif kind == "cut":
            del data[at : at + len(new)]
        elif kind == "insert":
            data[at:at] = new
        else:
            data[at : at + 4] = b"\xff\xff\xff\x7f"
    return bytes(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


def read_with_little_memory(read, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    said = str(path)
    tracemalloc.start()
    try:
        read(path)
    except ConfigError as error:
        said = str(error)
    finally:
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_bytes < SLACK_BYTES
    assert str(path) in said


@given(changes=edits)
@settings(max_examples=200, deadline=None)
def test_a_damaged_idx_file_never_crashes(folder: Path, changes) -> None:
    content = damaged(IDX, changes)
    read_with_little_memory(lambda p: read_idx(p, n_dimensions=3), folder / "a", content)


@given(changes=edits)
@settings(max_examples=200, deadline=None)
def test_a_damaged_compressed_idx_file_never_crashes(folder: Path, changes) -> None:
    def read(path: Path) -> None:
        read_idx(path, n_dimensions=3)

    read_with_little_memory(read, folder / "a.gz", damaged(gzip.compress(IDX), changes))
    read_with_little_memory(read, folder / "b.gz", gzip.compress(damaged(IDX, changes)))


@given(changes=edits)
@settings(max_examples=50, deadline=None)
def test_a_damaged_cifar_batch_never_crashes(folder: Path, changes) -> None:
    read_with_little_memory(read_cifar, folder / "a.bin", damaged(bytes(3073), changes))


@given(changes=edits, whole=st.sampled_from([NPZ, NPZ_DEFLATED]))
@settings(max_examples=400, deadline=None)
def test_a_damaged_npz_file_never_crashes(folder: Path, changes, whole: bytes) -> None:
    content = damaged(whole, changes)
    read_with_little_memory(lambda p: read_npz(p, ["x", "y"]), folder / "a.npz", content)


headers = st.one_of(
    st.binary(max_size=80),
    st.builds(
        "{{'descr': '{}', 'fortran_order': {}, 'shape': {}, }}   \n".format,
        st.sampled_from(["<f8", "|O", "|u1", ">f4", "<f1", "|b8", "<U3", "<V8", "|S0"]),
        st.sampled_from(["True", "False", "1", "__import__('os')"]),
        st.lists(st.integers(-1, 10**18), max_size=10).map(lambda sizes: str(tuple(sizes))),
    ).map(str.encode),
)


@given(header=headers, version=st.sampled_from([b"\1\0", b"\2\0", b"\3\0"]), size=st.none())
@example(header=b"(" * 4000, version=b"\1\0", size=None)
@example(header=b"", version=b"\2\0", size=2**32 - 1)
@settings(max_examples=200, deadline=None)
def test_any_header_inside_an_npz_file_never_crashes(
    folder: Path, header: bytes, version: bytes, size: int | None
) -> None:
    length = len(header) if size is None else size
    packed = struct.pack("<H" if version == b"\1\0" else "<I", length)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY" + version + packed + header + bytes(16))
    read_with_little_memory(lambda p: read_npz(p, ["x"]), folder / "h.npz", buffer.getvalue())


def test_an_array_that_claims_terabytes_is_refused_before_it_is_read(folder: Path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header)
    path = folder / "large.npz"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ConfigError, match=r"x\.npy\]: .*it says 7450\.6 GiB, the file can hold"):
        read_npz(path, ["x"])


def test_a_large_file_that_claims_more_than_we_take_is_refused(folder: Path) -> None:
    path = folder / "sparse"
    with path.open("wb") as file:
        file.write(struct.pack(">4B1I", 0, 0, 8, 1, 2**32 - 1))
        file.truncate(8 + 2**32 - 1)
    assert_limit = pytest.raises(ConfigError, match=r"at most 1\.0 GiB")
    with pytest.MonkeyPatch.context() as patch, assert_limit:
        patch.setattr("edgeweave.data._formats._LARGEST_ARRAY_BYTES", 2**30)
        read_idx(path, n_dimensions=1)


def test_a_member_packed_by_another_method_is_refused(folder: Path) -> None:
    path = folder / "bzip.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x.npy", b"")
    with pytest.raises(ConfigError, match=r"stored or deflated \(compression method 12\)"):
        read_npz(path, ["x"])
