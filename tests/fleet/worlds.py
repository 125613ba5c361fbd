"""Fleets for tests: agents in this process over a ``MemoryFabric``, and what is left of processes.

Agents in one process share torch's random numbers, so dropout is tested with real processes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import psutil

from edgeweave.core.timeouts import Timeouts
from edgeweave.device import Agent, AgentSettings
from edgeweave.device.nursery import Task
from edgeweave.device.tasks import tasks
from edgeweave.fleet import Fleet
from edgeweave.net import MemoryFabric, NetSettings, Transport
from edgeweave.plan import Plan, Stage

DEADLINE_SECONDS = 30.0
QUICK = Timeouts(connect=5.0, request=5.0, work=30.0, frame=20.0, send=2.0, idle=60.0, stop=3.0)


@dataclass(frozen=True)
class MemoryFleet:
    """A fleet inside this process, and what tests break it with."""

    fleet: Fleet
    fabric: MemoryFabric
    agents: dict[str, Agent]
    start: Callable[[str], None]
    """Start an agent of that name, which may have been killed before."""


@contextlib.contextmanager
def memory_fleet(
    *names: str,
    timeouts: Timeouts = QUICK,
    memory_limits: dict[str, int] | None = None,
    wrap: Callable[[Transport], Transport] = lambda transport: transport,
    wrap_coordinator: bool = False,
) -> Iterator[MemoryFleet]:
    """Agents on a fabric in this process; ``wrap`` may stand between an agent and its transport,
    and between the coordinator and its own.
    """
    limits = memory_limits or {}
    with contextlib.ExitStack() as stack:
        fabric = stack.enter_context(MemoryFabric(timeouts=timeouts))
        agents: dict[str, Agent] = {}

        def start(name: str) -> None:
            settings = AgentSettings(name, memory_limit_bytes=limits.get(name), threads=1)
            run_task = _one_at_a_time(tasks(settings))
            agent = Agent(settings, wrap(fabric.join(name)), timeouts=timeouts, run_task=run_task)
            agents[name] = stack.enter_context(agent)

        for name in names:
            start(name)
        net = NetSettings(timeouts=timeouts)
        join = (lambda name: wrap(fabric.join(name))) if wrap_coordinator else fabric.join
        fleet = stack.enter_context(Fleet.over(join, net, devices=names))
        yield MemoryFleet(fleet, fabric, agents, start)


_TASK = threading.Lock()


def _one_at_a_time(own: Mapping[str, Task]) -> Callable[[str, bytes], bytes]:
    """Real agents check and profile each in a process that has one thread; here they take turns."""

    def run(name: str, data: bytes) -> bytes:
        with _TASK:
            return own[name](data)

    return run


def plan_of(
    devices: Sequence[str],
    boundaries: Sequence[int],
    n_units: int,
    *,
    schedule: str = "1f1b",
    n_microbatches: int = 4,
) -> Plan:
    """A plan made by hand: ``boundaries`` are the first units of all stages but the first."""
    bounds = (0, *boundaries, n_units)
    stages = tuple(
        Stage(device, first, stop, 0.0, 0.0, 0)
        for device, first, stop in zip(devices, bounds[:-1], bounds[1:], strict=True)
    )
    return Plan(stages, schedule, n_microbatches, 0, 0.0, 0.0)


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Look again and again until something outside this process has happened."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not true():
        assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS} s: {what}"
        time.sleep(0.02)


def family_of(pid: int) -> list[psutil.Process]:
    """A process and all that it has started."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def assert_gone(processes: Sequence[psutil.Process]) -> None:
    """None of them is left; those whose parent has not asked yet are zombies, which run nothing."""
    _, alive = psutil.wait_procs(processes, timeout=DEADLINE_SECONDS)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
