"""What trainings with coded cuts came to: their table and their curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["draw", "table"]

_COLOURS = {
    "none": "#22272e",
    "uniform(16, 256)": "#b8bec6",
    "uniform(8, 256)": "#3b6fb6",
    "uniform(6, 256)": "#2d8a57",
    "uniform(4, 256)": "#e08a3c",
}
_SHOWN: Mapping[str, tuple[str, str, float]] = {
    "cifar10": ("accuracy", "CIFAR-10: test accuracy, %", 100.0),
    "shakespeare": ("loss", "tiny-shakespeare: validation loss", 1.0),
}
"""Of each task: what is tested, in words, and times what it is shown."""

_Training = Mapping[str, Any]
_ByCodec = Mapping[str, Sequence[_Training]]


def table(document: Mapping[str, Any]) -> str:
    """A row for each task and codec: tests of all seeds, and gradients beside exact ones."""
    rows = [
        "| | at the cuts | tested, each seed | cosine at the first step, halfway, at the end "
        "| norm, coded / exact |",
        "|---|---|---|---|---|",
    ]
    for task in _SHOWN:
        for codec, trainings in _by_codec(document, task).items():
            rows.append(f"| {_SHOWN[task][1]} | `{codec}` | {_row(trainings)} |")
    return "\n".join(rows)


def _row(trainings: Sequence[_Training]) -> str:
    tested, _, times = _SHOWN[trainings[0]["task"]]
    scores = ", ".join(f"{times * each['test'][tested]:.5g}" for each in trainings)
    looks = [each["looks"] for each in trainings]
    key = _cosine(trainings[0]["codec"])
    cosines = ", ".join(
        f"{median(each[place][key] for each in looks):.5f}" for place in (0, len(looks[0]) // 2, -1)
    )
    if key == "cosine_of_another":
        return f"{scores} | another microbatch: {cosines} | -"
    norms = [look["norm_ratio"] for each in looks for look in each]
    return f"{scores} | {cosines} | {min(norms):.3f} to {max(norms):.3f}"


def _by_codec(document: Mapping[str, Any], task: str) -> dict[str, list[_Training]]:
    found: dict[str, list[_Training]] = {}
    for training in document["settings"]["trainings"]:
        if training["task"] == task:
            found.setdefault(training["codec"], []).append(training)
    return found


def draw(document: Mapping[str, Any]) -> bytes:
    """A PNG: what is tested, and how far gradients are from exact ones, step by step."""
    figure = Figure(figsize=(11, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2, sharex="col")
    for (above, below), task in zip(panels.T, _SHOWN, strict=True):
        _draw_tested(above, task, _by_codec(document, task))
        _draw_gradients(below, _by_codec(document, task))
    for axes in panels.flat:
        axes.tick_params(length=0, labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=110, facecolor="white")
    return picture.getvalue()


def _draw_tested(axes: Axes, task: str, trainings: _ByCodec) -> None:
    tested, words, times = _SHOWN[task]
    for together in trainings.values():
        values = [[times * look["test"][tested] for look in each["looks"]] for each in together]
        _curve(axes, together, values)
    axes.set_title(words, fontsize=9)
    axes.legend(fontsize=8, frameon=False)


def _draw_gradients(axes: Axes, trainings: _ByCodec) -> None:
    for codec, together in trainings.items():
        values = [[1 - look[_cosine(codec)] for look in each["looks"]] for each in together]
        _curve(axes, together, values)
    axes.set_yscale("log")
    axes.set_title("1 - cosine to the exact gradient (none: another microbatch's)", fontsize=9)
    axes.set_xlabel("steps  (line: median of the seeds, dots: seeds)", fontsize=9)


def _cosine(codec: str) -> str:
    """Where nothing is coded, what is shown is how far another microbatch's gradient is."""
    return "cosine_of_another" if codec == "none" else "cosine"


def _curve(axes: Axes, trainings: Sequence[_Training], values: Sequence[Sequence[float]]) -> None:
    """The trainings of one codec."""
    codec = trainings[0]["codec"]
    steps = [look["step"] for look in trainings[0]["looks"]]
    for each in values:
        axes.scatter(steps, each, s=8, color=_COLOURS[codec], alpha=0.5, linewidths=0)
    middle = [median(together) for together in zip(*values, strict=True)]
    axes.plot(steps, middle, color=_COLOURS[codec], linewidth=1.4, label=codec)
