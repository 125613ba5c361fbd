"""Transports of both kinds, and processes that always end."""

from __future__ import annotations

import contextlib
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from edgeweave.core.clock import SystemClock
from edgeweave.core.errors import WireError
from edgeweave.core.timeouts import Timeouts
from edgeweave.net import (
    Frame,
    FrameHeader,
    Links,
    LinkShape,
    MemoryFabric,
    NetSettings,
    ShapedTransport,
    Subscription,
    Transport,
    ZenohTransport,
    specs_of,
)

DEADLINE_SECONDS = 20.0
PATIENT = Timeouts(send=20.0, stop=60.0)
"""Nothing that goes well comes near these, however busy the machine is."""
HASTY = Timeouts(send=1.0)
"""For what waits in vain."""
LINKS = Links(LinkShape(bytes_per_second=200e6, delay_seconds=0.001))
CHILD = Path(__file__).with_name("child.py")


def make_frame(device: str = "a", kind: str = "activation", step: int = 0, **tensors: torch.Tensor):
    """A frame of named tensors."""
    header = FrameHeader(kind, device, 0, 1, step, 0, specs_of(tensors))
    return Frame(header, tuple(tensors.values()))


class Inbox:
    """Collects what a subscription receives; every wait has a deadline."""

    def __init__(self) -> None:
        self.frames: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self.errors: queue.SimpleQueue[WireError] = queue.SimpleQueue()

    def next_frame(self) -> Frame:
        return self.frames.get(timeout=DEADLINE_SECONDS)

    def next_error(self) -> WireError:
        return self.errors.get(timeout=DEADLINE_SECONDS)

    def subscribe(
        self,
        transport: Transport,
        key: str,
        *,
        expect: Callable[[FrameHeader], None] = lambda header: None,
        limit_bytes: int = 1 << 26,
    ) -> Subscription:
        return transport.subscribe(
            key,
            self.frames.put,
            on_error=self.errors.put,
            expect=expect,
            limit_bytes=limit_bytes,
        )


class News:
    """Collects liveliness changes, and waits for one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._seen: list[tuple[str, bool]] = []

    def __call__(self, key: str, alive: bool) -> None:
        with self._changed:
            self._seen.append((key, alive))
            self._changed.notify_all()

    def wait_for(self, key: str, *, alive: bool) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: (key, alive) in self._seen, DEADLINE_SECONDS), (
                self._seen
            )

    def seen(self) -> list[tuple[str, bool]]:
        with self._changed:
            return list(self._seen)


class Pair:
    """Two linked transports of one fleet, and how to make a third."""

    def __init__(self, a: Transport, b: Transport, join: Callable[[str], Transport]) -> None:
        self.a = a
        self.b = b
        self.join = join


@contextlib.contextmanager
def _memory_pair(timeouts: Timeouts) -> Iterator[Pair]:
    with MemoryFabric(timeouts=timeouts) as fabric:
        yield Pair(fabric.join("a"), fabric.join("b"), fabric.join)


@contextlib.contextmanager
def _zenoh_pair(timeouts: Timeouts) -> Iterator[Pair]:
    with contextlib.ExitStack() as stack:
        a = stack.enter_context(ZenohTransport("a", NetSettings(timeouts=timeouts)))
        others = NetSettings(connect=a.endpoints(), timeouts=timeouts)

        def join(name: str) -> ZenohTransport:
            return stack.enter_context(ZenohTransport(name, others))

        yield Pair(a, join("b"), join)


@contextlib.contextmanager
def _shaped_pair(
    inner: contextlib.AbstractContextManager[Pair], timeouts: Timeouts
) -> Iterator[Pair]:
    """The same pair behind links that hold back everything a little."""
    with contextlib.ExitStack() as stack:

        def shaped(transport: Transport) -> ShapedTransport:
            return stack.enter_context(
                ShapedTransport(transport, LINKS, clock=SystemClock(), timeouts=timeouts)
            )

        pair = stack.enter_context(inner)
        yield Pair(shaped(pair.a), shaped(pair.b), lambda name: shaped(pair.join(name)))


PAIRS: dict[str, Callable[[Timeouts], contextlib.AbstractContextManager[Pair]]] = {
    "memory": _memory_pair,
    "zenoh": _zenoh_pair,
    "shaped-memory": lambda timeouts: _shaped_pair(_memory_pair(timeouts), timeouts),
    "shaped-zenoh": lambda timeouts: _shaped_pair(_zenoh_pair(timeouts), timeouts),
}
KINDS = [pytest.param(name, marks=[pytest.mark.wire] if "zenoh" in name else []) for name in PAIRS]


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with PAIRS[request.param](PATIENT) as made:
        yield made


@pytest.fixture(params=KINDS)
def hasty_pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with PAIRS[request.param](HASTY) as made:
        yield made


class Child:
    """A device in a process of its own, driven by lines; killed at the latest by the fixture."""

    def __init__(self, arguments: list[str], prefix: list[str]) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, str(CHILD), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def line(self) -> str:
        """The next line it says; the empty string if it ended."""
        return self._lines.get(timeout=DEADLINE_SECONDS)

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_SECONDS)
        self._reader.join(DEADLINE_SECONDS)
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def _read(self) -> None:
        for line in self.process.stdout:
            self._lines.put(line.strip())
        self._lines.put("")


@pytest.fixture
def spawn() -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def start(*arguments: str, prefix: tuple[str, ...] = ()) -> Child:
        children.append(Child(list(arguments), list(prefix)))
        return children[-1]

    yield start
    for child in children:
        child.end()
