"""What was asked and what was got: the rows of the emulator's table, and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["Prediction", "Row", "draw", "fleet_table", "truth_table", "worst"]

_COLOURS = {"speed": "#3b6fb6", "rate": "#2d8a57", "delay": "#e08a3c", "jitter": "#b5539c"}
_COLOURS["loss"] = "#8a5a44"
_LIMIT = "#b8bec6"


@dataclass(frozen=True, slots=True)
class Row:
    """One property of one combination: what was asked for, and what was measured from outside."""

    combination: str
    kind: str
    """``speed``, ``rate``, ``delay``, ``jitter``, ``loss`` or ``burst``."""
    asked: float
    got: float
    unit: str = ""

    @property
    def error(self) -> float | None:
        """Share of what was asked; None where nothing was."""
        return abs(self.got / self.asked - 1) if self.asked else None

    def document(self) -> dict[str, Any]:
        return {
            "combination": self.combination,
            "kind": self.kind,
            "asked": self.asked,
            "got": self.got,
            "unit": self.unit,
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class Prediction:
    """One fleet: the step that ``simulate`` predicts, and the median of those that it took."""

    fleet: str
    predicted_seconds: float
    measured_seconds: float

    @property
    def error(self) -> float:
        return abs(self.predicted_seconds / self.measured_seconds - 1)

    def document(self) -> dict[str, Any]:
        return {
            "fleet": self.fleet,
            "predicted_seconds": self.predicted_seconds,
            "measured_seconds": self.measured_seconds,
            "error": self.error,
        }


def worst(rows: Sequence[Row], kind: str) -> float:
    """The largest error of a kind; infinite if nothing of that kind was measured."""
    errors = [row.error for row in rows if row.kind == kind and row.error is not None]
    return max(errors, default=float("inf"))


def truth_table(document: Mapping[str, Any]) -> str:
    """The rows of a kept result in Markdown."""
    lines = ["| combination | what | asked | got | error |", "|---|---|---|---|---|"]
    before = None
    for row in document["settings"]["truth"]:
        shown = "" if row["combination"] == before else row["combination"]
        before = row["combination"]
        error = "-" if row["error"] is None else f"{row['error']:.1%}"
        values = " | ".join(f"{row[each]:.4g} {row['unit']}".strip() for each in ("asked", "got"))
        lines.append(f"| {shown} | {row['kind']} | {values} | {error} |")
    return "\n".join(lines)


def fleet_table(document: Mapping[str, Any]) -> str:
    """The fleets of a kept result in Markdown."""
    lines = ["| fleet | predicted step | measured step | error |", "|---|---|---|---|"]
    lines += [
        f"| {row['fleet']} | {row['predicted_seconds']:.3f} s | {row['measured_seconds']:.3f} s "
        f"| {row['error']:.1%} |"
        for row in document["settings"]["fleets"]
    ]
    return "\n".join(lines)


def draw(document: Mapping[str, Any]) -> bytes:
    """A PNG: got over asked for every row, and measured against predicted steps."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_truth(left, document["settings"]["truth"])
    _draw_fleets(right, document["settings"]["fleets"])
    for axes in (left, right):
        axes.tick_params(length=0, labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=130, facecolor="white")
    return picture.getvalue()


def _draw_truth(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    place = 0
    for kind, colour in _COLOURS.items():
        ratios = [row["got"] / row["asked"] for row in rows if row["kind"] == kind and row["asked"]]
        places = range(place, place + len(ratios))
        limit = 0.05 if kind == "speed" else 0.1
        axes.fill_between(
            [place - 0.5, place + len(ratios) - 0.5], 1 - limit, 1 + limit, color=colour, alpha=0.12
        )
        axes.scatter(places, ratios, s=22, color=colour, label=kind)
        place += len(ratios)
    axes.axhline(1.0, color=_LIMIT, linewidth=1)
    axes.set_xticks([])
    axes.set_ylabel("got / asked (band: largest error allowed)", fontsize=9)
    axes.legend(fontsize=8, frameon=False, ncols=len(_COLOURS), loc="upper center")


def _draw_fleets(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    predicted = [row["predicted_seconds"] for row in rows]
    measured = [row["measured_seconds"] for row in rows]
    most = 1.1 * max(*predicted, *measured)
    axes.fill_between([0, most], [0, most / 1.1], [0, most / 0.9], color=_LIMIT, alpha=0.35)
    axes.scatter(predicted, measured, s=22, color=_COLOURS["speed"])
    axes.set_xlim(0, most)
    axes.set_ylim(0, most)
    axes.set_xlabel("predicted step, s", fontsize=9)
    axes.set_ylabel("measured step, s (band: 10 %)", fontsize=9)
