"""The table of the benchmark ``recorded``: data set, way, samples seen, error."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from benchmarks.claims import RECORDED_DATA, RECORDED_WAYS

__all__ = ["table"]


def table(document: Mapping[str, Any]) -> str:
    """Median and mean error in per cent; the best of the listed ways in bold."""
    errors = _errors(document)
    counts = sorted({count for _, _, count in errors})
    rows = [
        "| data | way | " + " | ".join(f"{count} samples" for count in counts) + " |",
        "|---" * (2 + len(counts)) + "|",
    ]
    for name, title in RECORDED_DATA.items():
        for way, words in RECORDED_WAYS.items():
            cells = [_cell(errors, name, way, count) for count in counts]
            rows.append(f"| {title} | {words} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


_Errors = dict[tuple[str, str, int], tuple[float, float]]


def _errors(document: Mapping[str, Any]) -> _Errors:
    found: dict[tuple[str, str, int], dict[str, float]] = {}
    for key, series in document["series"].items():
        name, way, count, statistic, _ = key.split(", ")
        found.setdefault((name, way, int(count)), {})[statistic] = fmean(series["samples"])
    return {key: (each["median"], each["mean"]) for key, each in found.items()}


def _cell(errors: _Errors, name: str, way: str, count: int) -> str:
    if (name, way, count) not in errors:
        return "-"
    median, mean = errors[name, way, count]
    least = min(
        errors[name, other, count][0] for other in RECORDED_WAYS if (name, other, count) in errors
    )
    shown = f"{100 * median:.1f}"
    return f"{f'**{shown}**' if median == least else shown} / {100 * mean:.1f}"
