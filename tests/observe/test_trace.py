"""The trace document: what Perfetto needs, in its units."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgeweave.device import TraceEvent
from edgeweave.observe import perfetto_trace
from tests.observe.reports import report, three_steps

Event = dict[str, Any]


def _trace(*events: TraceEvent) -> list[Event]:
    found: list[Event] = json.loads(perfetto_trace(report(*events)))["traceEvents"]
    return found


def _complete(events: list[Event]) -> list[Event]:
    return [event for event in events if event["ph"] == "X"]


def test_each_device_is_a_process_in_the_order_of_the_pipeline() -> None:
    events = _trace()
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    order = {e["pid"]: e["args"]["sort_index"] for e in events if e["name"] == "process_sort_index"}
    assert names == {1: "pi-a (stage 0)", 2: "pi-b (stage 1)"}
    assert order == {1: 0, 2: 1}


def test_every_process_names_a_thread_that_computes_and_one_that_waits() -> None:
    threads = [e for e in _trace() if e["name"] == "thread_name"]
    found = {(e["pid"], e["tid"], e["args"]["name"]) for e in threads}
    assert found == {(p, t, n) for p in (1, 2) for t, n in ((1, "compute"), (2, "wait"))}


def test_an_event_has_its_times_in_microseconds() -> None:
    event = _complete(_trace(TraceEvent("forward", 4, 1, 0.5, 0.502)))[0]
    assert (event["ts"], event["dur"]) == (500_000, 2_000)
    assert event["name"] == "forward 1"
    assert event["args"] == {"step": 4, "microbatch": 1}


@pytest.mark.parametrize(
    ("kind", "thread"),
    [("forward", 1), ("backward", 1), ("update", 1), ("evaluate", 1), ("wait", 2), ("idle", 2)],
)
def test_computing_and_waiting_are_on_threads_of_their_own(kind: str, thread: int) -> None:
    assert {e["tid"] for e in _complete(_trace(TraceEvent(kind, 0, 0, 0.0, 1.0)))} == {thread}


def test_a_kind_that_is_not_known_yet_is_still_shown() -> None:
    assert _complete(_trace(TraceEvent("encode", 0, 0, 0.0, 1.0)))[0]["name"] == "encode"


def test_clocks_that_disagree_give_no_negative_duration() -> None:
    assert _complete(_trace(TraceEvent("wait", 0, 0, 1.0, 0.9)))[0]["dur"] == 0


def test_all_events_of_all_devices_are_in_it() -> None:
    made = three_steps()
    events = _complete(json.loads(perfetto_trace(made))["traceEvents"])
    assert len(events) == sum(len(device.events) for device in made.devices)
