"""Raw samples as a picture: one row per metric, a dot per turn, a line at the median."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.claim import Claim

__all__ = ["draw"]

_DOT, _MEDIAN, _ONE = "#3b6fb6", "#22272e", "#b8bec6"


def draw(claim: Claim, document: Mapping[str, Any]) -> bytes:
    """A PNG of the claim's drawn metrics, on a logarithmic axis of ratios."""
    series = {key: document["series"][key] for key in claim.drawn if key in document["series"]}
    figure = Figure(figsize=(10, 1.2 + 0.42 * len(series)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axvline(1.0, color=_ONE, linewidth=1)
    targets = {metric.key: metric.least for metric in claim.metrics}
    for row, (key, values) in enumerate(series.items()):
        samples = values["samples"]
        axes.scatter(samples, [row] * len(samples), s=16, color=_DOT, alpha=0.6, linewidths=0)
        axes.vlines(values["median"], row - 0.3, row + 0.3, color=_MEDIAN, linewidth=2)
        least = targets[key]
        if least is not None:
            axes.scatter([least], [row], marker="|", s=220, color="#e08a3c")
    axes.set_yticks(range(len(series)), list(series))
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _position: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _position: f"{value:g}")
    axes.tick_params(axis="both", which="both", length=0, labelsize=8)
    axes.set_xlabel(f"{claim.drawn_unit}  (dots: turns, dark: median, orange: target)", fontsize=9)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=130, facecolor="white")
    return picture.getvalue()
