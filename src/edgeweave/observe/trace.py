"""A report as a trace that Perfetto (https://ui.perfetto.dev) and chrome://tracing open.

One process per device in the order of the pipeline, in it one thread that computes and one that
waits; times in microseconds since the start of training. The format is the JSON array of the
Trace Event Format: complete events (``"ph": "X"``) and metadata (``"ph": "M"``).
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from edgeweave.core.version import __version__
from edgeweave.device import TraceEvent
from edgeweave.train import DeviceReport, Report

__all__ = ["perfetto_trace", "report_name"]

_COMPUTING = ("forward", "backward", "update", "evaluate")
"""Kinds of events in which a device computes. It waits in others: within a round, or for one."""

_COMPUTE_THREAD = 1
_WAIT_THREAD = 2
_COLOURS = {
    "forward": "thread_state_running",
    "backward": "thread_state_iowait",
    "update": "good",
    "evaluate": "rail_response",
    "wait": "grey",
    "idle": "white",
}


def perfetto_trace(report: Report) -> bytes:
    """The JSON document; every device keeps its most recent events only."""
    events: list[dict[str, object]] = []
    for device in report.devices:
        events.extend(_names(device))
        events.extend(_event(device, event) for event in device.events)
    document = {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"producer": f"edgeweave {__version__}", "schedule": report.plan.schedule},
    }
    return msgspec.json.encode(document)


def _names(device: DeviceReport) -> Iterator[dict[str, object]]:
    stage = report_name(device)
    yield _metadata(device, 0, "process_name", {"name": stage})
    yield _metadata(device, 0, "process_sort_index", {"sort_index": device.stage})
    for thread, name in ((_COMPUTE_THREAD, "compute"), (_WAIT_THREAD, "wait")):
        yield _metadata(device, thread, "thread_name", {"name": name})
        yield _metadata(device, thread, "thread_sort_index", {"sort_index": thread})


def report_name(device: DeviceReport) -> str:
    """A device and what it holds, as pictures name it."""
    return f"{device.device} (stage {device.stage})"


def _metadata(
    device: DeviceReport, thread: int, name: str, arguments: dict[str, object]
) -> dict[str, object]:
    return {
        "ph": "M",
        "pid": device.stage + 1,
        "tid": thread,
        "ts": 0,
        "name": name,
        "args": arguments,
    }


def _event(device: DeviceReport, event: TraceEvent) -> dict[str, object]:
    computes = event.kind in _COMPUTING
    numbered = computes and event.microbatch >= 0
    seconds = event.stop_seconds - event.start_seconds
    return {
        "ph": "X",
        "pid": device.stage + 1,
        "tid": _COMPUTE_THREAD if computes else _WAIT_THREAD,
        "ts": round(event.start_seconds * 1e6, 3),
        "dur": round(max(seconds, 0.0) * 1e6, 3),
        "name": f"{event.kind} {event.microbatch}" if numbered else event.kind,
        "cat": event.kind,
        "cname": _COLOURS.get(event.kind, "generic_work"),
        "args": {"step": event.step, "microbatch": event.microbatch},
    }
