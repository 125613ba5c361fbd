"""Devices that are killed and added while a model is served: requests lost, and the gaps.

Three devices serve MobileNetV2 at 32 x 32 to eight clients that never stop asking. Again and again
one that serves is killed, and another joins and takes part.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

import edgeweave as ew
from edgeweave.device import AgentSettings
from edgeweave.device.process import ProcessSettings
from edgeweave.fleet.processes import AgentProcesses
from edgeweave.net import ZenohTransport

__all__ = ["KILLS", "Measured", "changes"]

KILLS = 20

_SPEED = 0.2
_CLIENTS = 8
_SETTLED_SECONDS = 2.0
_PATIENCE_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class Measured:
    """A part of the result."""

    metrics: dict[str, float]
    samples: dict[str, list[float]]
    lines: tuple[str, ...] = ()
    """For people."""


def changes(*, quick: bool) -> Measured:
    """Kill and add a device, again and again; ``quick`` once."""
    n_turns = 1 if quick else KILLS
    torch.manual_seed(0)
    model: nn.Module = MobileNetV2ForImageClassification(MobileNetV2Config(image_size=32))
    model.eval()
    example = torch.randn(1, 3, 32, 32)
    names = ["dev-0", "dev-1", "dev-2"]
    gaps, times = [], []
    with ExitStack() as stack:
        fleet = stack.enter_context(ew.Fleet.local([ew.Device(n, speed=_SPEED) for n in names]))
        pids = {name: fleet.pid(name) for name in names}
        options = ew.ServeOptions(use="all", timeout_seconds=60.0)
        endpoint = stack.enter_context(ew.serve(model, fleet, example, options=options))
        with _Clients(endpoint, model) as clients:
            for turn in range(n_turns):
                time.sleep(_SETTLED_SECONDS)
                victim = _serving(endpoint)[turn % 3]
                killed = time.perf_counter()
                os.kill(pids.pop(victim), signal.SIGKILL)
                name = f"dev-{3 + turn}"
                agent = stack.enter_context(_agent(fleet, name))
                pids[name] = agent.pid(name)
                deadline = time.perf_counter() + _PATIENCE_SECONDS
                while name not in _serving(endpoint) and time.perf_counter() < deadline:
                    time.sleep(0.1)
                times.append(time.perf_counter() - killed)
                gaps.append(clients.longest_gap(since=killed))
    statistics = clients.outcome()
    return Measured(
        {
            "lost_requests": float(statistics["lost"]),
            "answered_twice": float(statistics["twice"]),
            "wrong_answers": float(statistics["wrong"]),
            "gap_seconds_p99": max(gaps),
            "added_seconds": sorted(times)[len(times) // 2],
        },
        {"gap_seconds": gaps, "added_seconds": times},
    )


def _serving(endpoint: ew.Endpoint) -> list[str]:
    plan = endpoint.plan
    return [] if plan is None else list(plan.devices)


def _agent(fleet: ew.Fleet, name: str) -> AgentProcesses:
    """One more emulated device for a fleet that runs."""
    transport = fleet.transport
    assert isinstance(transport, ZenohTransport)
    net = ew.NetSettings(fleet=fleet.name, connect=transport.endpoints())
    settings = AgentSettings(name, fleet=fleet.name, speed=_SPEED)
    process = ProcessSettings(settings, net, fleet.timeouts, until_stdin_closes=True)
    return AgentProcesses([process], stop_seconds=5.0)


class _Clients:
    """Ask for one answer after another, each with a request of its own, until the block ends."""

    def __init__(self, endpoint: ew.Endpoint, model: Any) -> None:
        self._endpoint = endpoint
        self._model = model
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._answered: Counter[int] = Counter()
        self._moments: list[float] = []
        self._lost = self._wrong = 0
        self._sent = 0
        self._threads = [threading.Thread(target=self._ask) for _ in range(_CLIENTS)]

    def __enter__(self) -> _Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def longest_gap(self, *, since: float) -> float:
        """The longest time between two answers, from shortly before a moment on."""
        with self._lock:
            moments = [each for each in self._moments if each > since - 1.0]
        return max((later - sooner for sooner, later in pairwise(moments)), default=60.0)

    def outcome(self) -> dict[str, int]:
        """Requests that were not answered, answered more than once, or wrongly."""
        twice = sum(count > 1 for count in self._answered.values())
        return {"lost": self._sent - len(self._answered), "twice": twice, "wrong": self._wrong}

    def _ask(self) -> None:
        while not self._ending.is_set():
            with self._lock:
                number, self._sent = self._sent, self._sent + 1
            picture = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(number))
            future = self._endpoint.submit(picture)
            future.add_done_callback(functools.partial(self._note, number))
            try:
                answer = future.result().logits
            except ew.EdgeweaveError:
                continue
            if number % 20 == 0:
                with torch.inference_mode():
                    self._wrong += not torch.equal(answer, self._model(picture).logits)

    def _note(self, number: int, done: Future[Any]) -> None:
        if done.exception() is None:
            with self._lock:
                self._answered[number] += 1
                self._moments.append(time.perf_counter())
