"""Windows of tables of numbers: recordings of sensors as CSV, one a file, a row for each moment.

    x, y, z, class          rows 0..127 --> one sample of (3, 128), its class that of most rows
    0.1, 9.8, 0.2, 3        rows 64..191 --> the next

The last column is what is learnt: classes if all are whole numbers, else real numbers, of which a
window has that of its last row. No window crosses the end of a file. What is tested with comes
later than all that is trained on: windows that overlap would tell the answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeweave.core.errors import ConfigError
from edgeweave.data._formats import Array, check_size, reading

__all__ = ["Windows", "are_classes", "most_frequent", "read_tables"]

_TOLD = re.compile(r"csv(?:\(\s*(\d{1,7})\s*(?:,\s*(\d{1,7})\s*)?\))?")


@dataclass(frozen=True, slots=True)
class Windows:
    """How many rows a sample has, and how many lie between the begins of two."""

    n_rows: int = 1
    apart: int = 1

    @classmethod
    def told(cls, text: str) -> Windows | None:
        """``csv`` (every row a sample), ``csv(128)`` or ``csv(128, 64)``; None for anything else.

        >>> Windows.told("csv(128, 64)")
        Windows(n_rows=128, apart=64)
        """
        match = _TOLD.fullmatch(text.strip())
        if match is None:
            return None
        n_rows = int(match[1] or 1)
        apart = int(match[2] or n_rows)
        if not n_rows or not apart:
            raise ConfigError(
                f"a window has one row or more, and so has the way to the next (got {text!r}). "
                "Write csv(128, 64)."
            )
        return cls(n_rows, apart)

    def cut(self, table: Array, origin: Path) -> tuple[Array, Array]:
        """Inputs (n, columns, rows), or (n, columns) of single rows; and (n, rows) of the last
        column. None, where the table is shorter than a window.
        """
        starts = np.arange(0, len(table) - self.n_rows + 1, self.apart)
        check_size(origin, len(starts) * self.n_rows * table[:1].nbytes)
        rows = table[starts[:, None] + np.arange(self.n_rows)]
        inputs, targets = rows[:, :, :-1].transpose(0, 2, 1), rows[:, :, -1]
        return inputs.astype(np.float32)[:, :, 0 if self.n_rows == 1 else slice(None)], targets


def read_tables(path: Path) -> list[Array]:
    """The table of a file, or of each CSV file of a folder in the order of their names."""
    paths = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    if not paths:
        raise ConfigError(f"{path}: a folder of tables has CSV files (there is none). Check it.")
    tables = [_read(each) for each in paths]
    widths = {table.shape[1] for table in tables}
    if len(widths) > 1:
        odd = next(k for k, t in enumerate(tables) if t.shape[1] != tables[0].shape[1])
        raise ConfigError(
            f"{paths[odd]}: tables of one data set have the same columns (it has "
            f"{tables[odd].shape[1]}, {paths[0].name} has {tables[0].shape[1]}). Correct it."
        )
    return tables


def are_classes(targets: Sequence[Array]) -> bool:
    """Whether what is learnt counts as classes: whole numbers from 0."""
    return all(bool((each >= 0).all() and (each == np.round(each)).all()) for each in targets)


def most_frequent(classes: Array) -> Array:
    """Of each row the class that occurs most; the least of those that tie."""
    found = np.zeros(len(classes), np.int64)
    most = np.zeros(len(classes), np.int64)
    for each in np.unique(classes):
        n = (classes == each).sum(axis=1)
        found[n > most] = int(each)
        most = np.maximum(most, n)
    return found


def _read(path: Path) -> Array:
    with reading(path, "a CSV file"):
        check_size(path, path.stat().st_size)
        with path.open(encoding="utf-8") as stream:
            first = stream.readline().strip()
        table: Array = np.loadtxt(
            path, delimiter=",", skiprows=int(not _is_numbers(first)), ndmin=2, encoding="utf-8"
        )
    if table.shape[1] < 2 or not len(table) or not np.isfinite(table).all():
        raise ConfigError(
            f"{path}: a table has finite numbers in two columns or more, the last of which is "
            f"learnt (got {len(table)} rows of {table.shape[1]} columns, "
            f"{int((~np.isfinite(table)).sum())} numbers not finite). Correct it."
        )
    return table


def _is_numbers(line: str) -> bool:
    """Whether a line is of numbers, or has the names of columns."""
    try:
        [float(cell) for cell in line.split(",")]
    except ValueError:
        return False
    return True
