"""Real processes on real sockets: found, linked, killed, stopped, encrypted, kept apart."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
import torch
import zenoh

from edgeweave.core.errors import DeviceTimeout, FleetError, WireError
from edgeweave.core.timeouts import Timeouts
from edgeweave.net import (
    NetSettings,
    TlsFiles,
    ZenohTransport,
    control_key,
    control_pattern,
    frame_key,
)

from .conftest import DEADLINE_SECONDS, Child, Inbox, News, make_frame

pytestmark = pytest.mark.wire

ALIVE = control_pattern("default", "alive")
ECHO = frame_key("default", "test", 1, -1, "echo")
SEND_SECONDS = 3.0
SETTINGS = NetSettings(timeouts=Timeouts(send=SEND_SECONDS, connect=5.0))


def to(name: str) -> str:
    return frame_key("default", "test", 1, 0, name)


def alive_key(name: str) -> str:
    return control_key("default", name, "alive")


def ask(transport: ZenohTransport, name: str, verb: str, payload: bytes = b"") -> bytes:
    return transport.request(
        control_key("default", name, verb), payload, device=name, timeout_seconds=DEADLINE_SECONDS
    )


class Site:
    """A coordinator here, and what it sees."""

    def __init__(self, transport: ZenohTransport, spawn: Callable[..., Child]) -> None:
        self.transport = transport
        self.news = News()
        self.inbox = Inbox()
        self._spawn = spawn
        transport.watch(ALIVE, self.news)
        self.inbox.subscribe(transport, ECHO)

    def start(self, name: str) -> Child:
        child = self._spawn(name, "tcp/127.0.0.1:0", self.transport.endpoints()[0])
        self.news.wait_for(alive_key(name), alive=True)
        return child


@pytest.fixture
def site(spawn: Callable[..., Child]) -> Iterator[Site]:
    with ZenohTransport("laptop", SETTINGS) as transport:
        yield Site(transport, spawn)


def test_frames_go_to_another_process_and_back(site: Site) -> None:
    site.start("a")
    sent = make_frame("laptop", x=torch.randn(500_000))
    site.transport.send(to("a"), sent, device="a")
    assert torch.equal(site.inbox.next_frame().tensors[0], sent.tensors[0])


def test_peers_that_know_the_coordinator_link_directly(site: Site) -> None:
    site.start("a")
    site.start("b")
    deadline = time.monotonic() + DEADLINE_SECONDS
    links: list[bytes] = []
    while links != [b"2", b"2"] and time.monotonic() < deadline:
        links = [ask(site.transport, name, "links") for name in ("a", "b")]
    assert links == [b"2", b"2"]
    assert site.transport.linked() == 2


def test_a_killed_process_is_noticed_fast_and_blocks_nobody(site: Site) -> None:
    child = site.start("a")
    site.transport.send(to("a"), make_frame("laptop", x=torch.ones(10)), device="a")
    site.inbox.next_frame()
    started = time.monotonic()
    child.process.send_signal(signal.SIGKILL)
    site.news.wait_for(alive_key("a"), alive=False)
    assert time.monotonic() - started < 2.0
    with pytest.raises(FleetError, match="device 'a' does not answer"):
        ask(site.transport, "a", "echo")
    with pytest.raises(FleetError, match="its receiver closed or vanished"):
        site.transport.send(to("a"), make_frame("laptop", x=torch.ones(10)), device="a")
    assert time.monotonic() - started < 4.0
    assert site.transport.alive(ALIVE, timeout_seconds=5) == ()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_request_under_way_fails_when_its_device_dies(site: Site, how: signal.Signals) -> None:
    child = site.start("a")
    assert child.line() == "ready"
    failures: queue.SimpleQueue[Exception] = queue.SimpleQueue()

    def ask_for_a_minute() -> None:
        try:
            ask(site.transport, "a", "sleep", b"60")
        except FleetError as error:
            failures.put(error)

    asking = threading.Thread(target=ask_for_a_minute)
    asking.start()
    assert child.line() == "sleeping"
    started = time.monotonic()
    os.kill(child.process.pid, how)
    failure = failures.get(timeout=DEADLINE_SECONDS)
    asking.join(DEADLINE_SECONDS)
    assert type(failure) is FleetError
    assert "device 'a' does not answer" in str(failure)
    assert time.monotonic() - started < (2.0 if how is signal.SIGKILL else 6.0)


@pytest.mark.slow
def test_a_stopped_process_holds_a_sender_for_a_bounded_time(site: Site) -> None:
    child = site.start("a")
    site.start("b")
    site.transport.send(to("a"), make_frame("laptop", x=torch.ones(10)), device="a")
    site.inbox.next_frame()
    os.kill(child.process.pid, signal.SIGSTOP)
    longest = 0.0

    def send_until_it_fails() -> None:
        nonlocal longest
        for _ in range(10_000):
            started = time.monotonic()
            try:
                site.transport.send(
                    to("a"), make_frame("laptop", x=torch.ones(1_000_000)), device="a"
                )
            finally:
                longest = max(longest, time.monotonic() - started)

    with pytest.raises(FleetError, match=r"nobody listens|took nothing of"):
        send_until_it_fails()
    assert longest < SEND_SECONDS + SETTINGS.lease_seconds
    site.news.wait_for(alive_key("a"), alive=False)
    site.transport.send(to("b"), make_frame("laptop", x=torch.ones(10)), device="b")
    assert site.inbox.next_frame().header.device == "laptop"


def test_a_device_that_lives_but_does_not_answer_is_a_timeout(site: Site) -> None:
    site.start("a")
    with pytest.raises(DeviceTimeout, match=r"did not answer .*sleep within 300 ms"):
        site.transport.request(
            control_key("default", "a", "sleep"), b"20", device="a", timeout_seconds=0.3
        )
    assert ask(site.transport, "a", "echo", b"x") == b"x"


def test_a_device_that_comes_back_is_found_again(site: Site) -> None:
    child = site.start("a")
    child.tell("quit")
    site.news.wait_for(alive_key("a"), alive=False)
    again = News()
    site.transport.watch(ALIVE, again)
    site._spawn("a", "tcp/127.0.0.1:0", site.transport.endpoints()[0])
    again.wait_for(alive_key("a"), alive=True)
    assert ask(site.transport, "a", "echo", b"x" * 200_000) == b"x" * 200_000


def test_a_request_of_200_megabytes_is_answered(site: Site) -> None:
    site.start("a")
    payload = b"0123456789" * 20_000_000
    before = psutil.Process().memory_info().rss
    answer = site.transport.request(
        control_key("default", "a", "echo"), payload, device="a", timeout_seconds=90
    )
    grown = psutil.Process().memory_info().rss - before
    assert answer == payload
    assert grown < 300e6, "the answer itself, and pieces under way"


def test_another_fleet_on_the_same_network_is_not_heard(site: Site) -> None:
    site.start("a")
    settings = NetSettings(fleet="other", connect=site.transport.endpoints())
    with ZenohTransport("b", settings) as other:
        other.announce(control_key("other", "b", "alive"))
        assert site.transport.alive(ALIVE, timeout_seconds=5) == (alive_key("a"),)
        assert other.alive("ew/other/**", timeout_seconds=5) == ("ew/other/b/alive",)


def test_a_session_is_small(site: Site) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    with ZenohTransport("a", SETTINGS) as transport:
        Inbox().subscribe(transport, to("a"))
        assert process.memory_info().rss - before < 40e6


# What others may send


@pytest.fixture
def stranger(site: Site) -> Iterator[zenoh.Session]:
    """A Zenoh session that does not speak our protocol."""
    config = zenoh.Config()
    config.insert_json5("connect/endpoints", f'["{site.transport.endpoints()[0]}"]')
    config.insert_json5("listen/endpoints", "[]")
    config.insert_json5("scouting/multicast/enabled", "false")
    with zenoh.open(config) as session:
        yield session


def wait_until_served(session: zenoh.Session, key: str) -> None:
    served = threading.Event()
    querier = session.declare_querier(key)
    querier.declare_matching_listener(lambda status: served.set())
    assert querier.matching_status.matching or served.wait(DEADLINE_SECONDS)
    querier.undeclare()


def test_foreign_messages_are_refused_and_harm_nobody(site: Site, stranger: zenoh.Session) -> None:
    site.start("a")
    for attachment in (None, b"", b"EW", b"EW\x01" + bytes(21) + b"\xc1"):
        stranger.put(ECHO, b"x" * 10, attachment=attachment)
        assert isinstance(site.inbox.next_error(), WireError)
    site.transport.send(to("a"), make_frame("laptop", x=torch.ones(10)), device="a")
    assert site.inbox.next_frame().header.device == "laptop"
    assert site.transport.statistics().frames_refused == 4


@pytest.mark.parametrize(
    "attachment",
    [
        None,
        b"\xc1",
        msgspec.msgpack.encode([-1, "ew/default/x", 1.0, 2]),
        msgspec.msgpack.encode([2**62, "ew/default/x", 1.0, 2]),
        msgspec.msgpack.encode([100, "ew/default/x", 1.0, 2]),
        msgspec.msgpack.encode([100_000, "ew/default/nobody", 0.2, 2]),
        msgspec.msgpack.encode([100_000, "not//a key", 0.2, 2]),
        msgspec.msgpack.encode([100_000, "ew/default/x", float("nan"), 2]),
        msgspec.msgpack.encode([100_000, "ew/default/x", 1e300, 2]),
        msgspec.msgpack.encode([100_000, "ew/default/x", -1.0, 2]),
    ],
)
def test_foreign_requests_are_answered_with_an_error(
    site: Site, stranger: zenoh.Session, attachment: bytes | None
) -> None:
    key = control_key("default", "laptop", "echo")
    site.transport.serve(key, bytes)
    wait_until_served(stranger, key)
    (reply,) = stranger.get(key, payload=b"abc", attachment=attachment, timeout=DEADLINE_SECONDS)
    assert reply.err is not None
    assert reply.err.payload.to_bytes() != b"Timeout"
    assert site.transport.request(key, b"x", device="laptop", timeout_seconds=5) == b"x"


def test_a_foreign_answer_is_refused(site: Site, stranger: zenoh.Session) -> None:
    key = control_key("default", "pi-9", "fake")

    def lie(query: zenoh.Query) -> None:
        with query:
            query.reply(query.key_expr, b"too long", attachment=(3).to_bytes(8, "little"))

    stranger.declare_queryable(key, lie)
    stranger.liveliness().declare_token(alive_key("pi-9"))
    site.news.wait_for(alive_key("pi-9"), alive=True)
    with pytest.raises(WireError, match="device 'pi-9' sent more than it announced"):
        site.transport.request(key, b"", device="pi-9", timeout_seconds=5)


def test_a_receiver_that_never_takes_is_an_error_for_its_sender(site: Site) -> None:
    release = threading.Event()
    settings = NetSettings(connect=site.transport.endpoints(), timeouts=Timeouts(send=1.0))
    with ZenohTransport("sender", settings) as sender:

        def send_a_lot() -> None:
            for _ in range(100):
                sender.send(
                    to("stuck"), make_frame("sender", x=torch.ones(1_000_000)), device="stuck"
                )

        site.transport.subscribe(
            to("stuck"),
            lambda frame: release.wait(DEADLINE_SECONDS) and None,
            on_error=print,
            expect=lambda header: None,
            limit_bytes=1 << 26,
        )
        try:
            with pytest.raises(
                FleetError, match=r"took nothing of .* for 1 s and was closed|nobody"
            ):
                send_a_lot()
        finally:
            release.set()


# Endpoints


def test_the_endpoint_told_is_the_port_listened_on(site: Site) -> None:
    (endpoint,) = site.transport.endpoints()
    port = int(endpoint.removeprefix("tcp/127.0.0.1:"))
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_SECONDS):
        pass


def test_a_port_in_use_is_named(site: Site) -> None:
    (endpoint,) = site.transport.endpoints()
    port = endpoint.rsplit(":", 1)[1]
    with pytest.raises(
        FleetError,
        match=rf"port {port} on 127\.0\.0\.1 is already in use \(.*\)\. Pass another --listen",
    ):
        ZenohTransport("second", NetSettings(listen=(endpoint,)))


def test_nobody_to_connect_to_is_an_error_that_names_the_endpoint() -> None:
    with socket.socket() as taken:
        # Bound and not listening: a connection is refused, and nobody else gets the port.
        taken.bind(("127.0.0.1", 0))
        endpoint = f"tcp/127.0.0.1:{taken.getsockname()[1]}"
        settings = NetSettings(connect=(endpoint,), timeouts=Timeouts(connect=0.5))
        with pytest.raises(FleetError, match=f"nobody answers at {endpoint} \\(waited 500 ms\\)"):
            ZenohTransport("a", settings)


def test_an_address_of_somebody_else_cannot_be_listened_on() -> None:
    settings = NetSettings(listen=("tcp/192.0.2.1:7447",), insecure=True)
    with pytest.raises(FleetError, match=r"this machine cannot listen on tcp/192\.0\.2\.1:7447"):
        ZenohTransport("a", settings)


# TLS


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE_SECONDS)


def make_authority(folder: Path) -> Path:
    folder.mkdir()
    run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-nodes", "-days", "2", "-subj", "/CN=test fleet"),
        *("-keyout", str(folder / "ca.key"), "-out", str(folder / "ca.pem")),
    )
    return folder


def make_member(authority: Path, name: str) -> TlsFiles:
    key, request, certificate = (authority / f"{name}.{end}" for end in ("key", "csr", "pem"))
    extensions = authority / "extensions"
    extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    run(
        *("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-subj", f"/CN={name}", "-keyout", str(key), "-out", str(request)),
    )
    run(
        *("openssl", "x509", "-req", "-in", str(request), "-days", "2", "-CAcreateserial"),
        *("-CA", str(authority / "ca.pem"), "-CAkey", str(authority / "ca.key")),
        *("-extfile", str(extensions), "-out", str(certificate)),
    )
    return TlsFiles(authority / "ca.pem", certificate, key)


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command makes the certificates, and is not installed")
    return make_authority(tmp_path / "ours")


def test_members_talk_over_tls(authority: Path, spawn: Callable[..., Child]) -> None:
    mine, theirs = make_member(authority, "laptop"), make_member(authority, "a")
    settings = NetSettings(listen=("tls/127.0.0.1:0",), tls=mine, timeouts=SETTINGS.timeouts)
    with ZenohTransport("laptop", settings) as transport:
        (endpoint,) = transport.endpoints()
        assert endpoint.startswith("tls/127.0.0.1:")
        news, inbox = News(), Inbox()
        transport.watch(ALIVE, news)
        inbox.subscribe(transport, ECHO)
        files = map(str, (theirs.ca, theirs.certificate, theirs.key))
        spawn("a", "tls/127.0.0.1:0", endpoint, *files)
        news.wait_for(alive_key("a"), alive=True)
        transport.send(to("a"), make_frame("laptop", x=torch.ones(200_000)), device="a")
        assert inbox.next_frame().tensors[0].sum() == 200_000
        assert ask(transport, "a", "echo", b"x" * 100_000) == b"x" * 100_000


@pytest.mark.parametrize("stranger", ["foreign certificate", "no certificate"])
def test_a_stranger_does_not_get_in(authority: Path, tmp_path: Path, stranger: str) -> None:
    short = Timeouts(connect=1.0)
    ours = NetSettings(listen=("tls/127.0.0.1:0",), tls=make_member(authority, "laptop"))
    with ZenohTransport("laptop", ours) as transport:
        (endpoint,) = transport.endpoints()
        foreign = make_member(make_authority(tmp_path / "theirs"), "spy")
        files = TlsFiles(ours.tls.ca, foreign.certificate, foreign.key)
        settings = NetSettings(listen=(), connect=(endpoint,), tls=files, timeouts=short)
        if stranger == "no certificate":
            clear = endpoint.replace("tls/", "tcp/")
            settings = NetSettings(listen=(), connect=(clear,), timeouts=short)
        with contextlib.suppress(FleetError), ZenohTransport("spy", settings) as spy:
            transport.announce(alive_key("laptop"))
            assert spy.alive(ALIVE, timeout_seconds=1) == ()
        assert transport.linked() == 0


# Two network namespaces


@pytest.fixture
def two_namespaces() -> Iterator[tuple[str, str]]:
    """Two hosts, 10.99.7.1 and 10.99.7.2, joined by a cable; gone afterwards whatever happens."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the ip command, which is not installed")
    names = (f"ew-{os.getpid()}-1", f"ew-{os.getpid()}-2")
    try:
        for name in names:
            try:
                run("ip", "netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"this system allows no network namespaces ({error.stderr!r})")
            run("ip", "-n", name, "link", "set", "lo", "up")
        ends = ("ew0", "ew1")
        run(
            *("ip", "-n", names[0], "link", "add", ends[0], "type", "veth"),
            *("peer", "name", ends[1], "netns", names[1]),
        )
        for index, (name, end) in enumerate(zip(names, ends, strict=True), start=1):
            run("ip", "-n", name, "addr", "add", f"10.99.7.{index}/24", "dev", end)
            run("ip", "-n", name, "link", "set", end, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(("ip", "netns", "del", name), capture_output=True, check=False)


PROBE = """
import sys
from edgeweave.net import NetSettings, ZenohTransport
settings = NetSettings(listen=("tcp/0.0.0.0:0",), connect=(sys.argv[1],), insecure=True)
with ZenohTransport("b", settings) as transport:
    print(transport.endpoints()[0].rsplit(":", 1)[0])
    print(transport.alive("ew/default/*/alive", timeout_seconds=5))
    payload = bytes(1_000_000)
    answer = transport.request("ew/default/a/echo", payload, device="a", timeout_seconds=20)
    print(answer == payload)
"""


def test_two_hosts_meet_over_a_cable(
    two_namespaces: tuple[str, str], spawn: Callable[..., Child]
) -> None:
    first, second = two_namespaces
    child = spawn("a", "tcp/0.0.0.0:0", "", prefix=("ip", "netns", "exec", first))
    assert child.line() == "ready"
    child.tell("endpoints")
    endpoint = child.line()
    assert endpoint.startswith("tcp/10.99.7.1:")
    told = subprocess.run(
        ("ip", "netns", "exec", second, sys.executable, "-c", PROBE, endpoint),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS * 2,
        check=True,
    )
    assert told.stdout.splitlines() == ["tcp/10.99.7.2", "('ew/default/a/alive',)", "True"]


@pytest.mark.slow
def test_an_answer_may_take_longer_than_a_piece_may_wait(
    two_namespaces: tuple[str, str], spawn: Callable[..., Child]
) -> None:
    """Zenoh closes the link when one message waits too long: 20 MB take 4 s here, and 3 s is it."""
    if shutil.which("tc") is None:
        pytest.skip("a slow link needs the tc command, which is not installed")
    shape = ("tbf", "rate", "40mbit", "burst", "64kb", "latency", "100ms")
    for name, end in zip(two_namespaces, ("ew0", "ew1"), strict=True):
        run("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", end, "root", *shape)
    child = spawn("a", "tcp/0.0.0.0:7447", "", prefix=("ip", "netns", "exec", two_namespaces[0]))
    assert child.line() == "ready"
    told = subprocess.run(
        (
            *("ip", "netns", "exec", two_namespaces[1], sys.executable, "-c"),
            PROBE.replace("1_000_000", "20_000_000"),
            "tcp/10.99.7.1:7447",
        ),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS * 3,
        check=True,
    )
    assert told.stdout.splitlines()[-1] == "True"
