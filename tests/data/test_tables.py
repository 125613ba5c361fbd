"""Windows of tables: which rows they have, what they learn, and that tests come later."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgeweave.core.errors import ConfigError
from edgeweave.data import load_source


def table(path: Path, rows: np.ndarray, *, header: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join(f"{value:g}" for value in row) for row in rows]
    path.write_text("\n".join(["x,y,class"] * header + lines) + "\n")


def counted(n: int, classes: list[int]) -> np.ndarray:
    """Rows that tell their number in the first column, its double in the second, and a class."""
    numbers = np.arange(n)
    return np.stack([numbers, 2 * numbers, np.resize(classes, n)], axis=1)


def whole(data: torch.utils.data.Dataset[object]) -> tuple[torch.Tensor, torch.Tensor]:
    return data.batch(torch.arange(len(data)))  # type: ignore[attr-defined, no-any-return, arg-type]


@pytest.mark.parametrize("header", [True, False])
def test_windows_are_rows_of_one_file_and_tests_come_after_all_that_is_trained_on(
    tmp_path: Path, header: bool
) -> None:
    table(tmp_path / "a.csv", counted(50, [0]), header=header)
    table(tmp_path / "b.csv", counted(20, [1]), header=header)
    pair = load_source("csv(8, 4)", path=tmp_path)
    inputs, classes = whole(pair.train)
    assert inputs.shape[1:] == (2, 8)
    assert inputs[:, 0, 0].tolist() == [*range(0, 33, 4), 0, 4, 8]
    assert torch.equal(inputs[0, 0], torch.arange(8.0))
    assert torch.equal(inputs[0, 1], 2 * torch.arange(8.0))
    assert classes.tolist() == [0] * 9 + [1] * 3
    tested, _ = whole(pair.test)
    assert tested[:, 0, 0].tolist() == [40]  # b has four rows left: no window
    assert pair.n_classes == 2


def test_a_window_has_the_class_of_most_of_its_rows(tmp_path: Path) -> None:
    classes = [2, 2, 1, 1, 1, 3, 3, 1] * 2
    for part in ("train", "test"):
        table(tmp_path / part / "a.csv", counted(16, classes))
    assert whole(load_source("csv(4)", path=tmp_path).train)[1].tolist() == [1, 1, 1, 1]


def test_real_numbers_are_learnt_as_they_are_in_the_last_row(tmp_path: Path) -> None:
    rows = counted(40, [0])
    rows = np.concatenate([rows[:, :2], rows[:, :1] / 8], axis=1)
    table(tmp_path / "a.csv", rows)
    pair = load_source("csv(4, 2)", path=tmp_path / "a.csv")
    inputs, targets = whole(pair.train)
    assert targets.dtype == torch.float32
    assert torch.equal(targets, inputs[:, 0, -1] / 8)
    assert pair.n_classes == 0


def test_single_rows_are_split_by_class(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", np.sort(counted(50, [0, 1]), axis=0))
    pair = load_source("csv", path=tmp_path / "a.csv")
    inputs, _ = whole(pair.train)
    assert inputs.shape == (40, 2)
    assert whole(pair.test)[1].bincount().tolist() == [5, 5]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x,y\n1,\n", "can be read to its end"),
        ("1,2\n1,2,3\n", "can be read to its end"),
        ("1,2\n1,nan\n", "finite numbers in two columns or more"),
        ("1\n2\n", "finite numbers in two columns or more"),
        ("1,2\n3,walk\n", "can be read to its end"),
    ],
)
def test_tables_that_are_not_of_numbers_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"a.csv: .*{said}"):
        load_source("csv", path=path)


def test_tables_of_other_columns_are_refused(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", counted(9, [0]))
    table(tmp_path / "b.csv", counted(9, [0])[:, 1:], header=False)
    with pytest.raises(ConfigError, match=r"b.csv: .*it has 2, a.csv has 3"):
        load_source("csv", path=tmp_path)


def test_a_window_longer_than_all_tables_is_refused(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", counted(20, [0]))
    with pytest.raises(ConfigError, match=r"a window of 64 rows fits into a table"):
        load_source("csv(64)", path=tmp_path)


def test_windows_that_would_fill_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(tmp_path / "a.csv", counted(60, [0]))
    monkeypatch.setattr("edgeweave.data._formats._LARGEST_ARRAY_BYTES", 4000)
    assert len(load_source("csv(8)", path=tmp_path).train) == 6
    with pytest.raises(ConfigError, match=r"an array has at most 3\.9 KiB"):
        load_source("csv(24, 1)", path=tmp_path)


@pytest.mark.parametrize("name", ["csv(0)", "csv(8, 0)"])
def test_windows_of_nothing_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="a window has one row or more"):
        load_source(name, path=tmp_path)
