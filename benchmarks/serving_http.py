"""A served model asked over HTTP, by good and by bad requests in turn: does it stand that?

A real server on loopback, four clients with a connection each. Good requests are JSON or have their
tensor in binary. Bad are: no JSON, other names, types, shapes and numbers, an index that the model
cannot look up, bytes that are missing or too many, other paths. Every one should get a 4xx with a
message. Memory is what the server's process holds, from a tenth of the requests on.

    python -m benchmarks.serving_http [NUMBER OF REQUESTS]
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from statistics import median
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
_CLIENTS = 4
_MOST_REQUESTS, _MOST_SECONDS = 100_000, 3600.0
_PARTS = 50
"""Memory is looked at so often, and compared over tenths of these."""
_START_SECONDS = 120.0


def http(*, quick: bool) -> Measured:
    """100,000 requests, or those of an hour; ``quick`` a thousand."""
    return _measured(1_000 if quick else _MOST_REQUESTS)


def _measured(most: int) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        job, log = Path(folder) / "job.toml", Path(folder) / "log"
        job.write_text(_JOB)
        (job.parent / "net.py").write_text(_NET)
        with (
            log.open("wb") as told,
            subprocess.Popen(
                [sys.executable, "-m", "edgeweave", "serve", str(job), "--json"],
                stdout=subprocess.DEVNULL,
                stderr=told,
            ) as server,
        ):
            try:
                return _asked(server, log, most)
            finally:
                server.terminate()
                server.wait(60)


@dataclass
class _Asking:
    """What the clients share."""

    host: str
    model: str
    most: int
    until: float
    lock: threading.Lock = field(default_factory=threading.Lock)
    n_asked: int = 0
    n_wrong: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def take(self) -> int | None:
        """The number of the next request, if there is one."""
        with self.lock:
            if self.n_asked >= self.most or time.perf_counter() > self.until:
                return None
            self.n_asked += 1
            return self.n_asked - 1

    def note(self, seconds: float, wrong: str | None) -> None:
        with self.lock:
            self.seconds.append(seconds)
            if wrong is not None:
                self.n_wrong += 1
                self.wrong = [*self.wrong, wrong][-5:]


def _asked(server: subprocess.Popen[bytes], log: Path, most: int) -> Measured:
    host, model = _address(server, log)
    started = time.perf_counter()
    asking = _Asking(host, model, most, started + _MOST_SECONDS)
    clients = [threading.Thread(target=_client, args=(asking, n)) for n in range(_CLIENTS)]
    for client in clients:
        client.start()
    memory = _memory(psutil.Process(server.pid), asking, clients)
    total = time.perf_counter() - started
    if server.poll() is not None or asking.n_wrong:
        end = log.read_text(errors="replace")[-2000:]
        print(f"wrong: {asking.wrong}; the server said: {end}", file=sys.stderr)
    tenth = max(len(memory) // 10, 1)
    return Measured(
        {
            "http_requests": float(asking.n_asked),
            "http_wrong_replies": float(asking.n_wrong + (server.poll() is not None)),
            "http_memory_growth": median(memory[-tenth:]) / median(memory[tenth : 2 * tenth]) - 1,
            "http_requests_per_second": asking.n_asked / total,
        },
        {
            "http_seconds": sorted(asking.seconds)[:: max(len(asking.seconds) // 100, 1)],
            "http_memory_mb": [each / 1e6 for each in memory],
        },
    )


def _address(server: subprocess.Popen[bytes], log: Path) -> tuple[str, str]:
    """Where it listens, once it does."""
    deadline = time.perf_counter() + _START_SECONDS
    while server.poll() is None and time.perf_counter() < deadline:
        found = re.search(r"http://([^/]+)(/\S+)/infer", log.read_text(errors="replace"))
        if found is not None:
            return found[1], found[2]
        time.sleep(0.2)
    raise AssertionError(f"the server does not listen: {log.read_text(errors='replace')}")


def _memory(
    process: psutil.Process, asking: _Asking, clients: Sequence[threading.Thread]
) -> list[int]:
    """What the server holds, as often as a part of the requests is done."""
    found: list[int] = []
    while any(client.is_alive() for client in clients):
        if asking.n_asked * _PARTS >= len(found) * asking.most and process.is_running():
            found.append(process.memory_info().rss)
        time.sleep(0.01)
    return found


def _client(asking: _Asking, seed: int) -> None:
    chance = random.Random(seed)
    connection = HTTPConnection(asking.host, timeout=60)
    while asking.take() is not None:
        request = _request(chance, asking.model)
        began = time.perf_counter()
        try:
            connection.request("POST", request.path, request.body, request.headers)
            reply = connection.getresponse()
            text = reply.read()
            is_right = _is_right(reply.status, text, is_good=request.is_good)
            wrong = None if is_right else f"{reply.status} {text[:200]!r} to {request}"
        except (OSError, HTTPException, ValueError) as error:
            wrong = f"{type(error).__name__}: {error} at {request}"
            connection.close()  # the next request opens it again
        asking.note(time.perf_counter() - began, wrong)
    connection.close()


def _is_right(status: int, text: bytes, *, is_good: bool) -> bool:
    if is_good:
        return status == 200 and "outputs" in json.loads(text)
    return 400 <= status < 500 and bool(json.loads(text).get("error"))


@dataclass(frozen=True, slots=True)
class _Asked:
    path: str
    body: bytes
    is_good: bool
    headers: dict[str, str] = field(default_factory=dict)


def _request(chance: random.Random, model: str) -> _Asked:
    """Half of them are good ones."""
    n = chance.randint(1, 4)
    tensor: dict[str, Any] = {
        "name": "input",
        "shape": [n],
        "datatype": "INT64",
        "data": [chance.randrange(10) for _ in range(n)],
    }
    path = f"{model}/infer"
    if chance.random() < 0.25:
        return _binary(path, tensor, missing=0)
    if chance.random() < 1 / 3:
        return _Asked(path, json.dumps({"inputs": [tensor]}).encode(), True)
    kind = chance.randrange(10)
    if kind == 0:
        return _Asked(path, chance.randbytes(chance.randrange(200)), False)
    if kind == 1:
        return _Asked(f"{path}/{chance.randrange(10**6)}", b"{}", False)
    if kind == 2:
        return _binary(path, tensor, missing=chance.choice([-3, 1, 5]))
    if kind == 3:
        return _Asked(path, b" " * 100_000, False)
    changes: dict[int, dict[str, Any]] = {
        4: {"name": "x" * chance.randint(2, 9)},
        5: {"datatype": chance.choice(["FP32", "int64", "", "BYTES"])},
        6: {"shape": [n, chance.randint(0, 5)]},
        7: {"data": [chance.choice(["a", None, 1.5, [[]], {}])] * n},
        8: {"data": [chance.randint(10, 10**6)] * n},
        9: {"shape": [n + chance.randint(5, 9)]},
    }
    body = json.dumps({"inputs": [{**tensor, **changes[kind]}]}).encode()
    return _Asked(path, body, False)


def _binary(path: str, tensor: dict[str, Any], *, missing: int) -> _Asked:
    """The numbers behind the JSON, with bytes that are missing, or too many."""
    numbers = b"".join(number.to_bytes(8, "little") for number in tensor["data"])
    described = {key: value for key, value in tensor.items() if key != "data"}
    described["parameters"] = {"binary_data_size": len(numbers)}
    text = json.dumps({"inputs": [described]}).encode()
    sent = numbers[:-missing] if missing > 0 else numbers + b"\0" * -missing
    headers = {"Inference-Header-Content-Length": str(len(text))}
    return _Asked(path, text + sent, not missing, headers)


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    for key, value in _measured(number).metrics.items():
        print(f"{key:>30} = {value:.4g}")
