"""The nursery: heavy or hostile work happens elsewhere, and may crash there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from typing import Any

import psutil
import pytest

from tests.fleet.worlds import assert_gone

# Forking is for a process that has one thread, so each test has a process of its own.
PRELUDE = """
import os, sys, time
from edgeweave.core.errors import EdgeweaveError, FleetError, FormatError, WireError
from edgeweave.device.nursery import Nursery

def crash(data):
    os.abort()

def leave(data):
    os._exit(3)

def hang(data):
    while True:
        time.sleep(1)

def refuse(data):
    raise FormatError("the graph is damaged")

def fail(data):
    return [][int(data)]

def large(data):
    return data * 3

TASKS = {"crash": crash, "hang": hang, "leave": leave, "refuse": refuse, "fail": fail,
         "large": large, "pid": lambda data: str(os.getpid()).encode()}

def attempt(nursery, task, data=b"1"):
    try:
        return nursery(task, data)
    except EdgeweaveError as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
"""


SCRIPT = """
import json, psutil

told = {}
with Nursery("pi-a", TASKS, timeout_seconds=0.5) as nursery:
    pids = {nursery("pid", b""), nursery("pid", b""), str(os.getpid()).encode()}
    told["processes"] = len(pids)
    told["large"] = nursery("large", b"x" * 3_000_000) == b"x" * 9_000_000
    for task in ("crash", "leave", "hang", "refuse", "fail"):
        told[task] = attempt(nursery, task)
    told["afterwards"] = attempt(nursery, "large").decode()
told["closed"] = attempt(nursery, "pid")
told["left"] = len(psutil.Process().children(recursive=True))
with Nursery("pi-a", TASKS, timeout_seconds=30) as nursery:
    psutil.Process().children()[0].kill()
    told["killed"] = [attempt(nursery, "pid"), attempt(nursery, "pid")]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """What a process with a nursery saw."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + SCRIPT],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_each_task_runs_in_a_process_of_its_own(told: dict[str, Any]) -> None:
    assert told["processes"] == 3


def test_answers_may_be_large(told: dict[str, Any]) -> None:
    assert told["large"]


@pytest.mark.parametrize("task", ["crash", "leave", "hang"])
def test_a_task_that_crashes_or_hangs_is_refused(told: dict[str, Any], task: str) -> None:
    assert told[task] == (
        f"WireError: the {task} on pi-a crashed or took more than 0 s, so what it was asked about "
        "is refused."
    )


def test_what_a_task_refuses_is_refused_here(told: dict[str, Any]) -> None:
    assert told["refuse"] == "FormatError: the graph is damaged"
    assert told["fail"] == "DeviceFailed: device 'pi-a' failed: IndexError: list index out of range"


PREPARED = """
import json

seen, made = [], []

def prepare(task):
    if task == "fail":
        raise RuntimeError("nothing is prepared for this")
    if not made:
        made.append(os.getpid())
    seen.append(task)

def tell(data):
    made.append("a child's")
    return json.dumps([os.getpid(), os.getppid(), made, seen]).encode()

with Nursery("pi-a", {"tell": tell, **TASKS}, timeout_seconds=30, prepare=prepare) as nursery:
    told = [json.loads(nursery("tell", b"")) for _ in range(2)]
    told.append(attempt(nursery, "fail"))
    told.append(os.getpid())
print(json.dumps([*told, made]))
"""


def test_what_is_prepared_is_made_once_in_the_nursery_and_shared_by_the_children_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + PREPARED],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, second, failed, agent, own = json.loads(done.stdout)
    nursery = first[1]
    assert first[1] == second[1] != agent
    assert len({nursery, agent, first[0], second[0]}) == 4
    assert first[2:] == [[nursery, "a child's"], ["tell"]]
    assert second[2:] == [[nursery, "a child's"], ["tell", "tell"]]
    assert failed == "DeviceFailed: device 'pi-a' failed: IndexError: list index out of range"
    assert own == []  # the agent loads nothing


def test_a_nursery_works_on_after_a_crash(told: dict[str, Any]) -> None:
    assert told["afterwards"] == "111"


def test_a_nursery_that_is_closed_says_so_and_leaves_no_process(told: dict[str, Any]) -> None:
    assert told["closed"] == "FleetError: pi-a is shutting down and does no pid any more."
    assert told["left"] == 0


def test_a_nursery_that_was_killed_says_so_every_time(told: dict[str, Any]) -> None:
    assert [line[:43] for line in told["killed"]] == [
        "FleetError: pi-a lost the process for pid (",
    ] * 2


def test_a_task_that_hangs_ends_with_its_agent() -> None:
    body = """
        with Nursery("pi-a", TASKS, timeout_seconds=500) as nursery:
            print("ready", flush=True)
            nursery("hang", b"")
    """
    agent = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "ready\n"
        process = psutil.Process(agent.pid)
        family = process.children(recursive=True)
        while len(family) < 2:  # the nursery, and the child that hangs
            family = process.children(recursive=True)
        os.kill(agent.pid, signal.SIGKILL)
        assert_gone(family)
    finally:
        agent.kill()
        _, errors = agent.communicate()
    assert errors == ""
