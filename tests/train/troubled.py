"""Fleets in this process that can be hurt: killed, silenced and cut off, also at a request.

A device that is ``stall``ed answers nothing and sends nothing, and its token stays; what reaches it
meanwhile waits for it, as it does in the buffers of a stopped process.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

import torch
from torch.utils.data import TensorDataset

from edgeweave.core.errors import WireError
from edgeweave.net import Frame, Priority, Subscription, Transport
from edgeweave.net.frame import FrameHeader
from edgeweave.net.transport import REQUEST_BYTES, Buffer, Reliability, TransportStatistics
from tests.fleet.worlds import QUICK, MemoryFleet, memory_fleet, wait_until

PATIENT = replace(QUICK, work=12.0, frame=12.0, silence=2.0)
_MOST_STALLED_SECONDS = 60.0
_LINGER_SECONDS = 0.3

Act = Callable[["Troubled"], None]


@dataclass
class Gate:
    """What stands between one device's name and the fabric, whichever agent bears the name."""

    name: str
    open: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _due: dict[str, list[tuple[int, Callable[[], None]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.open.set()

    def pass_through(self) -> None:
        """Wait while the device stands still."""
        assert self.open.wait(_MOST_STALLED_SECONDS), f"{self.name} was never resumed"

    def at_request(self, verb: str, number: int, act: Callable[[], None]) -> None:
        """Call ``act`` when the ``number``-th request of ``verb`` from now on comes."""
        with self._lock:
            self._due.setdefault(verb, []).append((number, act))

    def request_came(self, verb: str) -> None:
        with self._lock:
            left = [(number - 1, act) for number, act in self._due.get(verb, [])]
            self._due[verb] = [each for each in left if each[0] > 0]
        for number, act in left:
            if number == 0:
                act()


class GatedTransport:
    """A transport behind a gate."""

    def __init__(self, inner: Transport, gate: Gate) -> None:
        self._inner = inner
        self._gate = gate

    @property
    def name(self) -> str:
        return self._inner.name

    def send(
        self,
        key: str,
        frame: Frame,
        *,
        device: str,
        reliability: Reliability = Reliability.RELIABLE,
        priority: Priority = Priority.DATA,
    ) -> None:
        self._gate.pass_through()
        self._inner.send(key, frame, device=device, reliability=reliability, priority=priority)

    def wait_for_listener(
        self,
        key: str,
        *,
        device: str,
        reliability: Reliability = Reliability.RELIABLE,
        priority: Priority = Priority.DATA,
    ) -> None:
        self._gate.pass_through()
        self._inner.wait_for_listener(
            key, device=device, reliability=reliability, priority=priority
        )

    def subscribe(
        self,
        key: str,
        on_frame: Callable[[Frame], None],
        *,
        on_error: Callable[[WireError], None],
        expect: Callable[[FrameHeader], None],
        limit_bytes: int,
    ) -> Subscription:
        return self._inner.subscribe(
            key, on_frame, on_error=on_error, expect=expect, limit_bytes=limit_bytes
        )

    def request(
        self,
        key: str,
        payload: Buffer,
        *,
        device: str,
        timeout_seconds: float,
        priority: Priority = Priority.DATA,
    ) -> bytes:
        self._gate.pass_through()
        answer = self._inner.request(
            key, payload, device=device, timeout_seconds=timeout_seconds, priority=priority
        )
        self._gate.pass_through()
        return answer

    def serve(
        self, key: str, handler: Callable[[bytes], bytes], *, limit_bytes: int = REQUEST_BYTES
    ) -> Subscription:
        verb = key.rpartition("/")[2]

        def answer(payload: bytes) -> bytes:
            self._gate.request_came(verb)
            self._gate.pass_through()
            result = handler(payload)
            self._gate.pass_through()
            return result

        return self._inner.serve(key, answer, limit_bytes=limit_bytes)

    def announce(self, key: str) -> Subscription:
        return self._inner.announce(key)

    def watch(self, pattern: str, on_change: Callable[[str, bool], None]) -> Subscription:
        return self._inner.watch(pattern, on_change)

    def alive(self, pattern: str, *, timeout_seconds: float) -> tuple[str, ...]:
        return self._inner.alive(pattern, timeout_seconds=timeout_seconds)

    def statistics(self) -> TransportStatistics:
        return self._inner.statistics()

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Troubled:
    """A memory fleet, and a gate for every name that was ever in it."""

    world: MemoryFleet
    gates: Mapping[str, Gate]

    def others(self, name: str) -> list[str]:
        return [each for each in (*self.gates, self.world.fleet.transport.name) if each != name]

    def resume_all(self) -> set[str]:
        """Nobody stands still, and no link is cut. Says who was still cut off.

        Nobody could tell these that the run is over; here no lease does so.
        """
        coordinator, fabric = self.world.fleet.transport.name, self.world.fabric
        cut = {name for name in self.gates if fabric.is_dropped(coordinator, name)}
        for name, gate in self.gates.items():
            gate.open.set()
            mend(name)(self)
        return cut

    def is_there(self, name: str) -> bool:
        """Whether an agent of that name lives."""
        return self.world.fabric.keys_of_tokens(f"ew/default/{name}/alive") != []

    def busy(self) -> list[str]:
        """The living agents that work for somebody."""
        agents = self.world.agents.items()
        return [n for n, each in agents if self.is_there(n) and each.greeting().run is not None]

    def wait_all_free(self, besides: Collection[str] = ()) -> None:
        """No living agent works for anybody any more."""
        wait_until(lambda: set(self.busy()) <= set(besides), "they let go")


@contextlib.contextmanager
def troubled_fleet(*names: str, **options: Any) -> Iterator[Troubled]:
    """A memory fleet with gates; nobody stands still when it ends, and no thread is left."""
    before = set(threading.enumerate())
    gates: dict[str, Gate] = {}

    def wrap(inner: Transport) -> Transport:
        return GatedTransport(inner, gates.setdefault(inner.name, Gate(inner.name)))

    options.setdefault("timeouts", PATIENT)
    with memory_fleet(*names, wrap=wrap, **options) as world:
        troubled = Troubled(world, gates)
        try:
            yield troubled
        finally:
            for gate in gates.values():
                gate.open.set()
    wait_until(lambda: not threads_since(before), f"threads end: {threads_since(before)}")


def threads_since(before: set[threading.Thread]) -> list[str]:
    """The names of the threads that run and did not then. That of tqdm is torch's, for good."""
    names = [each.name for each in threading.enumerate() if each not in before]
    return [name for name in names if name != "tqdm_monitor"]


def kill(*names: str) -> Act:
    def act(troubled: Troubled) -> None:
        for name in names:
            troubled.world.fabric.kill(name)

    return act


def start(*names: str) -> Act:
    """Start agents, of new names or of those that were killed."""

    def act(troubled: Troubled) -> None:
        for name in names:
            troubled.world.start(name)

    return act


def start_if_gone(name: str) -> Act:
    """Start an agent again, if its end has come by now."""

    def act(troubled: Troubled) -> None:
        if not troubled.is_there(name):
            troubled.world.start(name)

    return act


def stall(name: str) -> Act:
    return lambda troubled: troubled.gates[name].open.clear()


def resume(name: str) -> Act:
    return lambda troubled: troubled.gates[name].open.set()


def cut_off(name: str) -> Act:
    """Lose all that a device sends and all that is sent to it."""

    def act(troubled: Troubled) -> None:
        for other in troubled.others(name):
            troubled.world.fabric.drop(name, other)
            troubled.world.fabric.drop(other, name)

    return act


def mend(name: str) -> Act:
    def act(troubled: Troubled) -> None:
        for other in troubled.others(name):
            troubled.world.fabric.mend(name, other)
            troubled.world.fabric.mend(other, name)

    return act


def drop(source: str, target: str) -> Act:
    return lambda troubled: troubled.world.fabric.drop(source, target)


def at_request(device: str, verb: str, act: Act, *, number: int = 1) -> Act:
    """From now on, when a device is asked for the ``number``-th time: ``act``, then its answer."""

    def arm(troubled: Troubled) -> None:
        troubled.gates[device].at_request(verb, number, lambda: act(troubled))

    return arm


def both(*acts: Act) -> Act:
    def act(troubled: Troubled) -> None:
        for each in acts:
            each(troubled)

    return act


def linger(device: str) -> Act:
    """Read slowly, until a device that came was taken in."""

    def act(troubled: Troubled) -> None:
        agent = troubled.world.agents[device]
        deadline = time.monotonic() + _LINGER_SECONDS
        while agent.greeting().run is None and time.monotonic() < deadline:
            time.sleep(0.01)

    return act


class Scripted:
    """The same samples; acts happen when batches are read, by how many were read before.

    Reading is at most three batches ahead of training, and batches are read again after a loss.
    """

    def __init__(self, data: TensorDataset, script: Mapping[int, Act], troubled: Troubled) -> None:
        self._data = data
        self._script = script
        self._troubled = troubled
        self.n_read = 0

    def __len__(self) -> int:
        return len(self._data)

    def batch(self, indices: torch.Tensor) -> Any:
        act = self._script.get(self.n_read)
        self.n_read += 1
        if act is not None:
            act(self._troubled)
        return self._data[indices]
