"""Kernel mode on a real kernel: shaped as asked, like emulated links, and gone afterwards."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import Popen
from typing import Any

import psutil
import pytest
import torch

from edgeweave.core.clock import SystemClock
from edgeweave.core.errors import ConfigError, FleetError
from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.core.timeouts import Timeouts
from edgeweave.fleet._nettools import Kernel, batch, look, run
from edgeweave.fleet.namespaces import NamespaceLayout
from edgeweave.net import (
    Frame,
    FrameHeader,
    NetSettings,
    Transport,
    ZenohTransport,
    frame_key,
    specs_of,
)
from edgeweave.net.link import Links, LinkShape, RateTrace
from edgeweave.net.shaped import ShapedTransport
from tests.fleet.worlds import DEADLINE_SECONDS, assert_gone, wait_until

pytestmark = pytest.mark.wire

TAKER = str(Path(__file__).with_name("taker.py"))
PATIENT = Timeouts(send=60.0)
FULL_FRAME_BYTES, PAYLOAD_BYTES = 1514, 1448
"""What a full packet takes of a link, and what it carries."""


@pytest.fixture(autouse=True)
def kernel() -> Kernel:
    try:
        return look()
    except ConfigError as error:
        pytest.skip(str(error))


def megabits(rate: float) -> LinkShape:
    return LinkShape(bytes_per_second=rate * 125e3)


def to_pi(shape: LinkShape) -> Links:
    return Links.of({(COORDINATOR_NAME, "pi-1"): shape})


# A layout


LISTENER = """
import socket, sys
with socket.create_server((sys.argv[1], 0)) as server:
    print(server.getsockname()[1], flush=True)
    while True:
        sink = bytearray(1 << 20)
        connection, _ = server.accept()
        with connection:
            while (left := int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "little")):
                while left:
                    left -= connection.recv_into(sink, min(left, len(sink)))
                connection.sendall(b"k")
"""
DIALLER = """
import socket, sys
socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])).close()
"""


@contextlib.contextmanager
def listening(layout: NamespaceLayout, device: str) -> Iterator[int]:
    """A process of this device that takes bytes on the port yielded."""
    process = subprocess.Popen(
        [*layout.prefix(device), sys.executable, "-c", LISTENER, layout.address(device)],
        stdout=subprocess.PIPE,
    )
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def reaches(layout: NamespaceLayout, source: str, address: str, port: int, seconds: float) -> bool:
    """Whether a process of ``source`` can connect there."""
    told = subprocess.run(
        [*layout.prefix(source), sys.executable, "-c", DIALLER, address, str(port), str(seconds)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS + 5,
        check=False,
    )
    assert told.returncode == 0 or "timed out" in told.stderr or "refused" in told.stderr
    return told.returncode == 0


def test_everyone_reaches_everyone() -> None:
    with (
        NamespaceLayout(["pi-1", "pi-2"], Links(megabits(100))) as layout,
        listening(layout, "pi-1") as port,
    ):
        assert reaches(layout, COORDINATOR_NAME, layout.address("pi-1"), port, DEADLINE_SECONDS)
        assert reaches(layout, "pi-2", layout.address("pi-1"), port, DEADLINE_SECONDS)


def test_the_coordinator_is_heard_on_the_cable_of_its_layout_alone() -> None:
    """A neighbour on another network of this machine knows its address and sends packets there."""
    with (
        NamespaceLayout(["pi-1"], Links()) as layout,
        NamespaceLayout(["neighbour"], Links()) as street,
    ):
        address = layout.address(COORDINATOR_NAME)
        route = ["route", "add", address, "via", street.address(COORDINATOR_NAME)]
        run([*street.prefix("neighbour"), "ip", *route])
        settings = NetSettings(listen=layout.listen(COORDINATOR_NAME), insecure=True)
        with (
            ZenohTransport("coordinator-1", settings) as transport,
            socket.create_server((address, 0)) as careless,
        ):
            (endpoint,) = transport.endpoints()
            port = int(endpoint.removeprefix(f"tcp/{address}:"))
            careless_port = careless.getsockname()[1]
            assert reaches(street, "neighbour", address, careless_port, DEADLINE_SECONDS)
            assert not reaches(street, "neighbour", address, port, DEADLINE_SECONDS)
            assert reaches(layout, "pi-1", address, port, DEADLINE_SECONDS)


def test_a_link_goes_down_in_its_direction_and_up_again() -> None:
    links = Links.of({("pi-1", "pi-2"): LinkShape(up=False)})
    with (
        NamespaceLayout(["pi-1", "pi-2"], links) as layout,
        listening(layout, "pi-2") as port,
    ):
        # A connection needs both directions.
        assert not reaches(layout, "pi-1", layout.address("pi-2"), port, 0.3)
        assert reaches(layout, COORDINATOR_NAME, layout.address("pi-2"), port, DEADLINE_SECONDS)
        layout.reshape(links.with_shape("pi-1", "pi-2", LinkShape()))
        assert reaches(layout, "pi-1", layout.address("pi-2"), port, DEADLINE_SECONDS)


def test_two_layouts_at_once_do_not_meet() -> None:
    with (
        NamespaceLayout(["pi-1"], Links()) as one,
        NamespaceLayout(["pi-1"], Links()) as other,
        listening(one, "pi-1") as one_port,
        listening(other, "pi-1") as other_port,
    ):
        mine = [layout.address("pi-1").rsplit(".", 1)[0] for layout in (one, other)]
        assert mine[0] != mine[1]
        for layout, port in ((one, one_port), (other, other_port)):
            address = layout.address("pi-1")
            assert reaches(layout, COORDINATOR_NAME, address, port, DEADLINE_SECONDS)


# Nothing is left behind.


class Leaving(Exception):
    """How a body may end."""


def interfaces() -> set[str]:
    return set(psutil.net_if_addrs())


def namespace_of(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/net").readlink())


def namespaces_in_use() -> set[str]:
    """The network namespaces of all processes of this machine."""
    found = set()
    for pid in psutil.pids():
        with contextlib.suppress(OSError):  # the process has ended
            found.add(namespace_of(pid))
    return found


def traces_of(layout: NamespaceLayout) -> tuple[str, list[psutil.Process], set[str]]:
    """The interface, the holders and the namespaces of a layout."""
    mine = namespace_of(os.getpid())
    holders, namespaces = [], set()
    for child in psutil.Process().children():
        with contextlib.suppress(OSError):  # a process of somebody else has ended
            if (namespace := namespace_of(child.pid)) != mine:
                holders.append(child)
                namespaces.add(namespace)
    return layout.interface, holders, namespaces


@pytest.mark.parametrize("ending", [None, Leaving, KeyboardInterrupt])
def test_a_layout_leaves_no_process_no_interface_and_no_namespace(ending: Any) -> None:
    found: list[tuple[str, list[psutil.Process], set[str]]] = []

    def body() -> None:
        with NamespaceLayout(["pi-1", "pi-2"], Links(megabits(10))) as layout:
            found.append(traces_of(layout))
            if ending is not None:
                raise ending

    with contextlib.nullcontext() if ending is None else pytest.raises(ending):
        body()
    ((interface, holders, namespaces),) = found
    assert len(holders) == len(namespaces) == 3  # a switch and two devices
    assert interface not in interfaces()
    assert_gone(holders)
    assert namespaces & namespaces_in_use() == set()


def test_a_layout_that_cannot_be_entered_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise Leaving

    layout = NamespaceLayout(["pi-1"], Links())
    monkeypatch.setattr("edgeweave.fleet._netlinks.tree_lines", refuse)
    with pytest.raises(Leaving), layout:
        pass
    assert layout.interface not in interfaces()
    assert [child.name() for child in psutil.Process().children() if child.name() == "cat"] == []


OWNER = """
import sys
from edgeweave.fleet.namespaces import NamespaceLayout
from edgeweave.net.link import Links, LinkShape, RateTrace
trace = RateTrace((0.0, 0.5), (1e6, 2e6), 1.0)
with NamespaceLayout(["pi-1", "pi-2"], Links(LinkShape(trace))) as layout:
    print(layout.interface, flush=True)
    sys.stdin.read()
"""


def test_nothing_is_left_of_a_layout_whose_owner_was_killed() -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with owner:
        interface = owner.stdout.readline().strip()
        holders = [
            child
            for child in psutil.Process(owner.pid).children(recursive=True)
            if child.name() == "cat"
        ]
        namespaces = {namespace_of(holder.pid) for holder in holders}
        assert len(namespaces) == 3
        assert interface in interfaces()
        owner.kill()
    wait_until(lambda: interface not in interfaces(), f"{interface} vanishes")
    assert_gone(holders)
    wait_until(lambda: not namespaces & namespaces_in_use(), "the namespaces vanish")


# Rates. A busy machine makes a transfer last longer, never shorter: only slow tests ask for both.


SLOW = pytest.mark.slow
RATES = (1, 20, 2)
"""Mbit/s."""
WANTED_SECONDS = 0.5
"""An idle class gains its burst, two packets, and may lend one: 36 ms at 1 Mbit/s."""
CHANGING = RateTrace((0.0, 0.1), (4e6, 1e6), 0.2)


def seconds_to_carry(connection: socket.socket, size_bytes: int) -> float:
    started = time.perf_counter()
    connection.sendall(size_bytes.to_bytes(8, "little") + bytes(size_bytes))
    assert connection.recv(1) == b"k"
    return time.perf_counter() - started


def rates_shown(layout: NamespaceLayout) -> set[str]:
    """What the kernel says of the coordinator's classes."""
    shown = run(["tc", "class", "show", "dev", layout.interface])
    return set(re.findall(r" rate (\S+)", shown))


@contextlib.contextmanager
def connected(shape: LinkShape) -> Iterator[tuple[NamespaceLayout, socket.socket]]:
    """A layout of one device, and a connection to it."""
    with (
        NamespaceLayout(["pi-1"], to_pi(shape)) as layout,
        listening(layout, "pi-1") as port,
        socket.create_connection((layout.address("pi-1"), port), DEADLINE_SECONDS) as connection,
    ):
        yield layout, connection


def seconds_at_each_rate(n_transfers: int) -> Iterator[list[float]]:
    """What transfers last after a change to each rate, of a size that wants ``WANTED_SECONDS``."""
    with connected(megabits(5)) as (layout, connection):
        for rate in RATES:
            layout.reshape(to_pi(megabits(rate)))
            assert rates_shown(layout) == {f"{rate}Mbit"}
            size_bytes = int(WANTED_SECONDS * rate * 125e3 * PAYLOAD_BYTES / FULL_FRAME_BYTES)
            yield [seconds_to_carry(connection, size_bytes) for _ in range(n_transfers)]


def test_a_link_has_the_rate_asked_for_and_then_another_and_is_never_faster() -> None:
    fastest = [min(seconds) for seconds in seconds_at_each_rate(2)]
    assert len(fastest) == len(RATES)
    assert min(fastest) >= 0.9 * WANTED_SECONDS


@SLOW
def test_a_link_is_as_fast_as_asked() -> None:
    usual = [statistics.median(seconds) for seconds in seconds_at_each_rate(3)]
    assert usual == pytest.approx([WANTED_SECONDS] * len(RATES), rel=0.1)


def test_a_recorded_rate_is_followed() -> None:
    with connected(LinkShape(CHANGING)) as (layout, connection):
        for rate in ("32Mbit", "8Mbit", "32Mbit"):
            wait_until(lambda rate=rate: rates_shown(layout) == {rate}, f"the rate is {rate}")
        size_bytes = int(0.3 * CHANGING.bytes_per_second[0] * PAYLOAD_BYTES / FULL_FRAME_BYTES)
        assert seconds_to_carry(connection, size_bytes) >= 0.9 * 0.3


def test_a_change_that_the_kernel_refuses_is_made_when_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(tool: str, lines: Sequence[str], prefix: Sequence[str] = ()) -> None:
        if any(" rate 20000000bit " in line for line in lines):
            raise FleetError("not now.")
        batch(tool, lines, prefix)

    wanted = to_pi(megabits(20))
    with NamespaceLayout(["pi-1"], to_pi(LinkShape(CHANGING))) as layout:
        with monkeypatch.context() as patched:
            patched.setattr("edgeweave.fleet._netlinks.batch", refuse)
            with pytest.raises(FleetError, match=r"^not now\.$"):
                layout.reshape(wanted)
            for rate in ("32Mbit", "8Mbit"):  # the trace is followed as before
                wait_until(lambda rate=rate: rates_shown(layout) == {rate}, f"the rate is {rate}")
        layout.reshape(wanted)
        assert rates_shown(layout) == {"20Mbit"}


@SLOW
def test_a_recorded_rate_is_met_on_average() -> None:
    """A transfer of ten repetitions."""
    with connected(LinkShape(CHANGING)) as (_layout, connection):
        size_bytes = int(2.0 * CHANGING.mean * PAYLOAD_BYTES / FULL_FRAME_BYTES)
        assert seconds_to_carry(connection, size_bytes) == pytest.approx(2.0, rel=0.15)


# Against emulated links


class Sender:
    """Sends frames to a process and waits until they are there."""

    def __init__(self, transport: Transport, fleet: str) -> None:
        self._transport = transport
        self._fleet = fleet
        self._done: queue.SimpleQueue[object] = queue.SimpleQueue()
        transport.subscribe(
            frame_key(fleet, "test", 1, -1, "done"),
            self._done.put,
            on_error=self._done.put,
            expect=lambda header: None,
            limit_bytes=1 << 16,
        )

    def seconds_to_carry(self, size_bytes: int) -> float:
        tensors = {"x": torch.zeros(size_bytes, dtype=torch.uint8)}
        header = FrameHeader("activation", self._transport.name, 0, 1, 0, 0, specs_of(tensors))
        frame = Frame(header, tuple(tensors.values()))
        started = time.perf_counter()
        self._transport.send(frame_key(self._fleet, "test", 1, 0, "data"), frame, device="pi-1")
        assert isinstance(self._done.get(timeout=DEADLINE_SECONDS), Frame)
        return time.perf_counter() - started


class Compared:
    """The same link twice: shaped by the kernel, and emulated by the sender."""

    def __init__(
        self, layout: NamespaceLayout, shaped: ShapedTransport, kernel: Sender, emulated: Sender
    ) -> None:
        self._layout = layout
        self._shaped = shaped
        self._kernel = kernel
        self._emulated = emulated

    def ratio(self, shape: LinkShape, size_bytes: int, n_pairs: int = 5) -> float:
        """Kernel / emulated: the medians of interleaved transfers."""
        self._layout.reshape(to_pi(shape))
        self._shaped.reshape(to_pi(shape))
        pairs = [
            (self._kernel.seconds_to_carry(size_bytes), self._emulated.seconds_to_carry(size_bytes))
            for _ in range(n_pairs)
        ]
        ours, theirs = zip(*pairs, strict=True)
        return statistics.median(ours) / statistics.median(theirs)


@pytest.fixture(scope="module")
def compared() -> Iterator[Compared]:
    try:
        look()
    except ConfigError as error:
        pytest.skip(str(error))
    links = to_pi(megabits(5))
    with contextlib.ExitStack() as stack:
        layout = stack.enter_context(NamespaceLayout(["pi-1"], links))

        def join(fleet: str, listen: tuple[str, ...]) -> ZenohTransport:
            net = NetSettings(fleet=fleet, listen=listen, insecure=True, timeouts=PATIENT)
            return stack.enter_context(ZenohTransport("coordinator-1", net))

        def take(fleet: str, listen: str, connect: str, *prefix: str) -> None:
            command = [*prefix, sys.executable, TAKER, fleet, "pi-1", listen, connect]
            stack.callback(stack.enter_context(Popen(command, stdin=subprocess.PIPE)).kill)

        kernel = join("kernel", layout.listen(COORDINATOR_NAME))
        take("kernel", *layout.listen("pi-1"), *kernel.endpoints(), *layout.prefix("pi-1"))
        inner = join("emulated", ("tcp/127.0.0.1:0",))
        take("emulated", "tcp/127.0.0.1:0", *inner.endpoints())
        shaped = stack.enter_context(
            ShapedTransport(inner, links, clock=SystemClock(), timeouts=PATIENT)
        )
        compared = Compared(layout, shaped, Sender(kernel, "kernel"), Sender(shaped, "emulated"))
        compared.ratio(links.shape(COORDINATOR_NAME, "pi-1"), 1000, n_pairs=1)
        yield compared


@SLOW
@pytest.mark.parametrize("rate", [5, 20, 100])
def test_the_kernel_and_the_emulator_agree_on_a_rate(compared: Compared, rate: int) -> None:
    ratio = compared.ratio(megabits(rate), int(rate * 125e3 * 0.3))
    assert ratio == pytest.approx(1.0, abs=0.1)


@SLOW
def test_the_kernel_and_the_emulator_agree_on_a_delay(compared: Compared, kernel: Kernel) -> None:
    if kernel.netem:
        pytest.skip(f"delay in the kernel needs netem: {kernel.netem}")
    # One packet: on a long way a connection of the kernel begins slowly, an emulated one at once.
    ratio = compared.ratio(LinkShape(delay_seconds=0.2), 1000)
    assert ratio == pytest.approx(1.0, abs=0.1)
