"""What a nursery prepares: checks that load nothing any more, where memory allows that."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from edgeweave.device.tasks import preparation

# What is loaded shows only in a process that has loaded nothing yet.
SCRIPT = """
import json, sys, threading
from edgeweave.device.messages import encode_message
from edgeweave.device.nursery import Nursery
from edgeweave.device.settings import AgentSettings
from edgeweave.device.tasks import preparation, tasks
from edgeweave.predict.probe import probe_programs

def loaded(_data):
    return json.dumps(["sympy" in sys.modules, threading.active_count()]).encode()

def told(memory_bytes):
    known = {**tasks(AgentSettings("pi-a")), "loaded": loaded}
    with Nursery("pi-a", known, timeout_seconds=60, prepare=preparation(memory_bytes)) as nursery:
        before = json.loads(nursery("loaded", b""))
        nursery("check", encode_message(probe_programs()[0].program))
        return [before, json.loads(nursery("loaded", b""))]

print(json.dumps([told(4 << 30), told(2 << 30), "sympy" in sys.modules]))
"""


@pytest.fixture(scope="module")
def told() -> Any:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_after_the_first_check_all_children_have_what_checks_need(told: Any) -> None:
    assert told[0] == [[False, 1], [True, 1]]


def test_a_small_device_and_an_agent_keep_nothing_of_it(told: Any) -> None:
    assert told[1:] == [[[False, 1], [False, 1]], False]


def test_a_probe_prepares_nothing() -> None:
    preparation(4 << 30)("probe")
