"""A plan as a picture before anything runs: one simulated step, as SVG.

    pi-a        |F0|F1|F2|B0|..|B1|..|B2|U|       a row for each device; under it, in the thin lane,
                   |-0-|-1-|-2-|                  what it sends. What is left grey is waiting.
    old-laptop  |..|F0  |B0  |F1 ...

The step before and the one after are pale: pipelines overlap. Pointing at a bar tells what it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from xml.etree import ElementTree as Xml

from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.core.units import format_seconds
from edgeweave.plan import Costs, Event, Plan, Timeline, is_flushed, simulate

__all__ = ["draw_plan"]

_COLOURS = {
    "forward": "#3b6fb6",
    "backward": "#e08a3c",
    "update": "#3f9b5d",
    "send": "#8a94a3",
    "wait": "#e9ecf0",
}
_LABELS = {
    "forward": "forward",
    "backward": "backward",
    "update": "optimizer step",
    "send": "sends",
    "wait": "waits",
}
_TEXT, _FAINT = "#22272e", "#6b7480"
_STEP = 1
"""The step that is drawn: the first one fills an empty pipeline, the last one drains it."""

_WIDTH, _RIGHT, _TOP, _BOTTOM = 960.0, 70.0, 66.0, 40.0
_ROW, _BAR, _LANE = 44.0, 24.0, 5.0
_LETTER = 7.5
_LEAST_DRAWN = 0.05
_LEAST_NUMBERED = 11.0
"""Narrower bars have no number in them."""


@dataclass(frozen=True, slots=True)
class _Scale:
    """Where a moment lies, right of the names."""

    left: float
    start_seconds: float
    seconds: float
    step: int = _STEP
    """The one that is drawn; the others are pale."""

    @property
    def width(self) -> float:
        return _WIDTH - self.left - _RIGHT

    def x(self, moment: float) -> float:
        share = (moment - self.start_seconds) / self.seconds
        return self.left + min(max(share, 0.0), 1.0) * self.width


def draw_plan(plan: Plan, costs: Costs) -> bytes:
    """The picture of one step in the steady state, as ``simulate`` sees it."""
    timeline = simulate(plan, costs, n_steps=_STEP + 2 if is_flushed(plan.schedule) else None)
    step = timeline.n_steps // 2
    own = [event for event in timeline.events if event.step == step and event.kind != "send"]
    start = min(event.start_seconds for event in own)
    stop = max(event.stop_seconds for event in own)
    senders = [COORDINATOR_NAME] * bool(costs.feeds) + list(plan.devices)
    left = 30 + _LETTER * max(map(len, senders))
    scale = _Scale(left, start, (stop - start) or 1.0, step)
    height = _TOP + _ROW * len(senders) + _BOTTOM
    root = Xml.Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_WIDTH:g} {height:g}",
    )
    root.set("font-family", "system-ui, sans-serif")
    _add(root, "rect", x=0, y=0, width=_WIDTH, height=height, fill="white")
    _head(root, plan, timeline, scale)
    _axis(root, height - _BOTTOM, scale)
    for row, name in enumerate(senders):
        _row(root, name, _TOP + _ROW * row, timeline, scale)
    return Xml.tostring(root, encoding="unicode").encode()


def _head(root: Xml.Element, plan: Plan, timeline: Timeline, scale: _Scale) -> None:
    n = len(plan.stages)
    title = (
        f"One step over {n} device{'s' * (n > 1)}, {plan.schedule}, {plan.n_microbatches} "
        f"microbatches: {format_seconds(timeline.step_seconds)}, predicted"
    )
    _text(root, title, x=16, y=26, size=15, weight="600")
    x = scale.left
    for kind, label in _LABELS.items():
        _add(root, "rect", x=x, y=41, width=11, height=11, rx=2, fill=_COLOURS[kind])
        _text(root, label, x=x + 16, y=51, size=11)
        x += 34 + 6.2 * len(label)


def _row(root: Xml.Element, name: str, top: float, timeline: Timeline, scale: _Scale) -> None:
    """What one device computes and sends; the coordinator only sends."""
    computes = name != COORDINATOR_NAME
    group = _add(root, "g", id=f"device:{name}")
    _text(group, name, x=16, y=top + 17, size=13)
    if computes:
        idle = f"idle {timeline.idle_share(name) * 100:.0f} %"
        _text(group, idle, x=_WIDTH - _RIGHT + 8, y=top + 17, size=11, fill=_FAINT)
        waits = _add(group, "rect", x=scale.left, y=top, width=scale.width, height=_BAR)
        waits.set("fill", _COLOURS["wait"])
    for event in timeline.events:
        width = scale.x(event.stop_seconds) - scale.x(event.start_seconds)
        if event.device == name and width >= _LEAST_DRAWN:
            _bar(group, event, top, scale)


def _bar(group: Xml.Element, event: Event, top: float, scale: _Scale) -> None:
    sends = event.kind == "send"
    left, right = scale.x(event.start_seconds), scale.x(event.stop_seconds)
    bar = _add(
        group,
        "rect",
        x=left,
        y=top + _BAR + 3 if sends else top,
        width=right - left,
        height=_LANE if sends else _BAR,
        fill=_COLOURS[event.kind],
        stroke="white",
    )
    bar.set("stroke-width", "0.6")
    bar.set("class", event.kind)
    if event.step != scale.step:
        bar.set("opacity", "0.35")
    _add(bar, "title").text = _sentence(event, scale)
    if event.microbatch is not None and not sends and right - left >= _LEAST_NUMBERED:
        number = _text(group, str(event.microbatch), x=(left + right) / 2, y=top + 16, size=10)
        number.set("fill", "white")
        number.set("text-anchor", "middle")
        number.set("pointer-events", "none")


def _sentence(event: Event, scale: _Scale) -> str:
    """What a bar is, for who points at it."""
    what = "optimizer step" if event.microbatch is None else f"{event.kind} {event.microbatch}"
    whither = "" if event.receiver is None else f" to {event.receiver}"
    begin = format_seconds(max(event.start_seconds - scale.start_seconds, 0.0))
    takes = format_seconds(event.stop_seconds - event.start_seconds)
    return f"{event.device}: {what}{whither}, at {begin} for {takes}"


def _axis(root: Xml.Element, y: float, scale: _Scale) -> None:
    every = _tick_seconds(scale.seconds)
    for number in range(int(scale.seconds / every) + 1):
        seconds = number * every
        x = scale.x(scale.start_seconds + seconds)
        tick = _add(root, "line", x1=x, x2=x, y1=_TOP - 4, y2=y, stroke="#c4cad2")
        tick.set("stroke-dasharray", "1 4")
        text = format_seconds(seconds) if number else "0"
        _text(root, text, x=x, y=y + 18, size=11, fill=_FAINT).set("text-anchor", "middle")


def _tick_seconds(seconds: float) -> float:
    """A round number of seconds, of which there are three to eight in so many.

    >>> _tick_seconds(0.509), _tick_seconds(3.1), _tick_seconds(0.3)
    (0.1, 1.0, 0.1)
    """
    decade = 10.0 ** math.floor(math.log10(seconds / 3))
    # 0.3 / 3 is less than 0.1 by rounding, and its logarithm that of 0.1.
    fitting = (factor * decade for factor in (1, 2, 5) if factor * decade <= seconds / 3)
    return max(fitting, default=decade)


def _text(
    parent: Xml.Element,
    text: str,
    *,
    x: float,
    y: float,
    size: int,
    fill: str = _TEXT,
    weight: str = "400",
) -> Xml.Element:
    found = _add(parent, "text", x=x, y=y, fill=fill)
    found.set("font-size", str(size))
    found.set("font-weight", weight)
    found.text = text
    return found


def _add(parent: Xml.Element, tag: str, **attributes: float | str) -> Xml.Element:
    plain = {
        name: value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
        for name, value in attributes.items()
    }
    return Xml.SubElement(parent, tag, plain)
