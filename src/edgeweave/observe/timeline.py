"""The last steps of a report as a picture: one row per device, coloured by what it did.

    pi-a        |F0|F1|F2|B0|..|B1|..|B2|U|
    old-laptop  |..|F0  |B0  |F1 ...

Needs matplotlib, which is the extra ``[plot]``; draws without a screen.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any

from edgeweave.core.errors import ConfigError
from edgeweave.core.units import format_seconds
from edgeweave.device import TraceEvent
from edgeweave.observe.trace import report_name
from edgeweave.train import Report

__all__ = ["Window", "draw_timeline", "last_full_steps"]

_COLOURS = {
    "forward": "#3b6fb6",
    "backward": "#e08a3c",
    "update": "#3f9b5d",
    "wait": "#dfe3e8",
}
_LABELS = {
    "forward": "forward",
    "backward": "backward",
    "update": "optimizer step",
    "wait": "waits",
}
_DRAWN = ("forward", "backward", "update")
_BORDER = "#ffffff"
_TEXT = "#22272e"
_LARGEST_NUMBERED_ROW = 80
"""Above so many blocks in a row the numbers in them would overlap."""


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a report that is drawn: consecutive steps, in seconds since training began."""

    steps: tuple[int, ...]
    start_seconds: float
    stop_seconds: float


def last_full_steps(report: Report, *, n_steps: int = 2) -> Window:
    """The last consecutive steps of which every device has every microbatch of a full batch.

    ``ConfigError`` if there is none: nothing was trained, or the records no longer reach back.
    """
    steps: set[int] | None = None
    for device in report.devices:
        full = _full_steps(device.events, report.plan.n_microbatches)
        steps = full if steps is None else steps & full
    if not steps:
        raise ConfigError(
            "a picture needs one full step on every device (the report has none). Train longer."
        )
    chosen = [max(steps)]
    while len(chosen) < n_steps and chosen[0] - 1 in steps:
        chosen.insert(0, chosen[0] - 1)
    times = [
        moment
        for device in report.devices
        for event in device.events
        if event.step in chosen and event.kind in _DRAWN
        for moment in (event.start_seconds, event.stop_seconds)
    ]
    return Window(tuple(chosen), min(times), max(times))


def draw_timeline(report: Report, *, n_steps: int = 2) -> bytes:
    """The picture as PNG. ``ConfigError`` without matplotlib or without a full step."""
    window = last_full_steps(report, n_steps=n_steps)
    figure, axes = _canvas(len(report.devices))
    for row, device in enumerate(report.devices):
        shown = [event for event in device.events if _overlaps(event, window)]
        numbered = len(shown) <= _LARGEST_NUMBERED_ROW
        axes.barh(
            row,
            (window.stop_seconds - window.start_seconds) * 1e3,
            height=0.62,
            color=_COLOURS["wait"],
            linewidth=0,
        )
        for event in shown:
            _block(axes, row, event, window, numbered=numbered)
    _decorate(axes, report, window)
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=150, facecolor="white")
    return picture.getvalue()


def _full_steps(events: tuple[TraceEvent, ...], n_microbatches: int) -> set[int]:
    forwards: dict[int, int] = {}
    updated: set[int] = set()
    for event in events:
        if event.kind == "forward":
            forwards[event.step] = forwards.get(event.step, 0) + 1
        elif event.kind == "update":
            updated.add(event.step)
    return {step for step in updated if forwards.get(step, 0) >= n_microbatches}


def _overlaps(event: TraceEvent, window: Window) -> bool:
    """Whether an event is drawn: computing only, what lies between is waiting."""
    inside = event.stop_seconds > window.start_seconds and event.start_seconds < window.stop_seconds
    return inside and event.kind in _DRAWN


def _canvas(n_rows: int) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 (an extra)
        from matplotlib.figure import Figure  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise ConfigError(
            "a picture needs matplotlib (it is not installed). "
            "Install it: pip install 'edgeweave[plot]'"
        ) from error
    figure = Figure(figsize=(13, 1.9 + 0.72 * n_rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _block(axes: Any, row: int, event: TraceEvent, window: Window, *, numbered: bool) -> None:
    start = max(event.start_seconds, window.start_seconds) - window.start_seconds
    stop = min(event.stop_seconds, window.stop_seconds) - window.start_seconds
    axes.barh(
        row,
        (stop - start) * 1e3,
        left=start * 1e3,
        height=0.62,
        color=_COLOURS[event.kind],
        edgecolor=_BORDER,
        linewidth=0.5,
    )
    wide = (stop - start) > 0.008 * (window.stop_seconds - window.start_seconds)
    if numbered and wide and event.microbatch >= 0:
        middle = (start + stop) / 2 * 1e3
        axes.text(
            middle, row, str(event.microbatch), ha="center", va="center", color="white", fontsize=7
        )


def _decorate(axes: Any, report: Report, window: Window) -> None:
    from matplotlib.patches import Patch  # noqa: PLC0415 (an extra; _canvas has tried it)

    axes.set_yticks(range(len(report.devices)), [_row_name(report, d) for d in report.devices])
    axes.invert_yaxis()
    axes.set_xlim(0, (window.stop_seconds - window.start_seconds) * 1e3)
    axes.set_xlabel("milliseconds", color=_TEXT)
    axes.tick_params(length=0, colors=_TEXT)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    first, last = window.steps[0] + 1, window.steps[-1] + 1
    steps = f"Step {first}" if first == last else f"Steps {first} and {last}"
    if last - first > 1:
        steps = f"Steps {first} to {last}"
    axes.set_title(
        f"{steps} over {len(report.devices)} devices, schedule {report.plan.schedule}: "
        f"a step takes {format_seconds(report.measured_step_seconds)} "
        f"(predicted {format_seconds(report.plan.step_seconds)})",
        loc="left",
        color=_TEXT,
        fontsize=11,
        pad=30,
    )
    handles = [Patch(color=_COLOURS[kind], label=label) for kind, label in _LABELS.items()]
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(-0.005, 1.0),
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        handlelength=1.2,
    )


def _row_name(report: Report, device: Any) -> str:
    stage = report.plan.stages[device.stage]
    units = (
        f"unit {stage.first_unit}"
        if stage.stop_unit - stage.first_unit == 1
        else f"units {stage.first_unit}-{stage.stop_unit - 1}"
    )
    return f"{report_name(device)}\n{units}"
