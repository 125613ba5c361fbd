"""A file is written as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeweave.device.whole_files import write_whole


def test_a_file_is_written_with_the_folders_above_it_and_replaced_as_a_whole(
    tmp_path: Path,
) -> None:
    path = tmp_path / "not" / "yet" / "file"
    write_whole(path, b"first")
    write_whole(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    taken = tmp_path / "directory"
    taken.mkdir()
    with pytest.raises(OSError, match="directory"):
        write_whole(taken, b"data")
    assert list(tmp_path.iterdir()) == [taken]
