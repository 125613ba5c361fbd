"""A served model asked over HTTP, by good and by bad requests in turn: does it stand that?

A real server on loopback. Bad are: no JSON, other names, types, shapes and numbers, an index that
the model cannot look up, other paths. Every one should get a 4xx with a message.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tempfile
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil

from benchmarks.serving_changes import Measured

__all__ = ["http"]

_JOB = """
[model]
factory = "net.py:build"
[fleet]
devices = [{name = "a", speed = 0.2}, {name = "b", speed = 0.2}]
[serve]
port = 0
max_samples = 4
example = [{shape = [2], datatype = "INT64"}]
"""
_NET = """
from torch import nn
def build():
    return nn.Sequential(nn.Embedding(10, 16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
"""
_MOST_REQUESTS, _MOST_SECONDS = 100_000, 3600.0
_WARM_UP = 0.1
"""The share of requests after which memory should be flat."""


def http(*, quick: bool) -> Measured:
    """100,000 requests, or those of an hour; ``quick`` a thousand."""
    most = 1_000 if quick else _MOST_REQUESTS
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.toml"
        job.write_text(_JOB)
        (job.parent / "net.py").write_text(_NET)
        with subprocess.Popen(
            [sys.executable, "-m", "edgeweave", "serve", str(job), "--json"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as server:
            try:
                return _asked(server, most)
            finally:
                server.terminate()
                server.wait(60)


def _asked(server: subprocess.Popen[str], most: int) -> Measured:
    assert server.stderr is not None
    found = (re.search(r"http://([^/]+)(/\S+)/infer", line) for line in server.stderr)
    match = next((each for each in found if each), None)
    assert match is not None, "the server ended before it listened"
    connection = HTTPConnection(match[1], timeout=60)
    process, chance = psutil.Process(server.pid), random.Random(0)
    started, memory = time.perf_counter(), 0
    n_wrong, n_asked, seconds = 0, 0, []
    while n_asked < most and time.perf_counter() - started < _MOST_SECONDS:
        if n_asked == round(_WARM_UP * most):
            memory = process.memory_info().rss
        path, body, is_good = _request(chance, match[2])
        began = time.perf_counter()
        connection.request("POST", path, body)
        reply = connection.getresponse()
        text = reply.read()
        seconds.append(time.perf_counter() - began)
        n_asked += 1
        n_wrong += not _is_right(reply.status, text, is_good=is_good)
    growth = process.memory_info().rss / memory - 1
    total = time.perf_counter() - started
    return Measured(
        {
            "http_requests": float(n_asked),
            "http_wrong_replies": float(n_wrong),
            "http_memory_growth": growth,
            "http_requests_per_second": n_asked / total,
        },
        {"http_seconds": sorted(seconds)[:: max(len(seconds) // 100, 1)]},
    )


def _is_right(status: int, text: bytes, *, is_good: bool) -> bool:
    if is_good:
        return status == 200 and "outputs" in json.loads(text)
    return 400 <= status < 500 and bool(json.loads(text).get("error"))


def _request(chance: random.Random, model: str) -> tuple[str, bytes, bool]:
    """Path and body of a request, and whether it is a good one; half of them are."""
    n = chance.randint(1, 4)
    tensor: dict[str, Any] = {
        "name": "input",
        "shape": [n],
        "datatype": "INT64",
        "data": [chance.randrange(10) for _ in range(n)],
    }
    path = f"{model}/infer"
    if chance.random() < 0.5:
        return path, json.dumps({"inputs": [tensor]}).encode(), True
    kind = chance.randrange(8)
    if kind == 0:
        return path, chance.randbytes(chance.randrange(200)), False
    if kind == 1:
        return f"{path}/{chance.randrange(10**6)}", b"{}", False
    changes: dict[int, dict[str, Any]] = {
        2: {"name": "x" * chance.randint(2, 9)},
        3: {"datatype": chance.choice(["FP32", "int64", "", "BYTES"])},
        4: {"shape": [n, chance.randint(0, 5)]},
        5: {"data": [chance.choice(["a", None, 1.5, [[]], {}])] * n},
        6: {"data": [chance.randint(10, 10**6)] * n},
        7: {"shape": [n + chance.randint(5, 9)]},
    }
    return path, json.dumps({"inputs": [{**tensor, **changes[kind]}]}).encode(), False
