"""Loopback unless told, TLS unless told not to; locators are read strictly."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from edgeweave.core.errors import ConfigError, FleetError
from edgeweave.core.timeouts import Timeouts
from edgeweave.net import NetSettings, TlsFiles
from edgeweave.net.locators import Locator, reachable, unused_port
from edgeweave.net.settings import check_exposure, zenoh_config


@pytest.fixture
def tls(tmp_path: Path) -> TlsFiles:
    paths = [tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem")]
    for path in paths:
        path.write_text("pem")
    return TlsFiles(*paths)


@pytest.mark.parametrize(
    "text",
    [
        "tcp/127.0.0.1:0",
        "tls/[::1]:7447",
        "tcp/pi-1.local:65535",
        "tcp/[2001:db8::1]:7447",
        "tcp/10.0.0.1:0#iface=eth0",
    ],
)
def test_a_locator_is_read_and_written_alike(text: str) -> None:
    assert str(Locator.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "tcp", "tcp/host", "udp/1.2.3.4:5", "tcp/:5", "tcp/a b:5", "tcp/h:65536", "tcp/h:1#x=y"],
)
def test_anything_else_is_no_locator(text: str) -> None:
    with pytest.raises(ConfigError, match="a locator is tcp/HOST:PORT or tls/HOST:PORT"):
        Locator.parse(text)


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("tcp/127.0.0.1:1", True),
        ("tcp/127.9.9.9:1", True),
        ("tcp/localhost:1", True),
        ("tcp/[::1]:1", True),
        ("tcp/0.0.0.0:1", False),
        ("tcp/[::]:1", False),
        ("tcp/192.168.1.2:1", False),
        ("tcp/pi-1.local:1", False),
    ],
)
def test_loopback_is_recognised(text: str, loopback: bool) -> None:
    assert Locator.parse(text).is_loopback is loopback


def test_the_default_stays_on_this_machine() -> None:
    listen, connect = check_exposure(NetSettings())
    assert [each.is_loopback for each in listen] == [True]
    assert connect == ()


@pytest.mark.parametrize(
    "settings",
    [
        NetSettings(listen=("tcp/0.0.0.0:7447",)),
        NetSettings(connect=("tcp/192.168.1.2:7447",)),
        NetSettings(scouting=True),
    ],
)
def test_leaving_loopback_needs_tls_or_the_word_insecure(settings: NetSettings) -> None:
    with pytest.raises(
        ConfigError,
        match=r"leaves this machine.*--tls-ca, --tls-certificate and --tls-key.*--insecure",
    ):
        check_exposure(settings)


def test_a_clear_endpoint_beside_tls_is_still_refused(tls: TlsFiles) -> None:
    with pytest.raises(ConfigError, match=r"tcp/0\.0\.0\.0:1 leaves this machine"):
        check_exposure(NetSettings(listen=("tcp/0.0.0.0:1",), tls=tls))


def test_insecure_or_tls_may_leave(tls: TlsFiles) -> None:
    check_exposure(NetSettings(listen=("tcp/0.0.0.0:1",), scouting=True, insecure=True))
    check_exposure(NetSettings(listen=("tls/0.0.0.0:1",), scouting=True, tls=tls))


def test_a_tls_endpoint_needs_files_that_exist(tls: TlsFiles) -> None:
    with pytest.raises(ConfigError, match="needs certificates"):
        check_exposure(NetSettings(listen=("tls/127.0.0.1:0",), insecure=True))
    missing = TlsFiles(tls.ca, tls.certificate, Path("/nonexistent/key.pem"))
    with pytest.raises(ConfigError, match=r"key\.pem does not"):
        check_exposure(NetSettings(listen=("tls/127.0.0.1:0",), tls=missing))


def test_a_lease_is_positive_and_a_fleet_is_a_name() -> None:
    with pytest.raises(ConfigError, match="lease_seconds is positive"):
        check_exposure(NetSettings(lease_seconds=0))
    with pytest.raises(ConfigError, match="a fleet name holds no"):
        check_exposure(NetSettings(fleet="a/b"))


def test_zenoh_is_told_deadlines_and_what_to_leave_off() -> None:
    settings = NetSettings(timeouts=Timeouts(send=7.0, connect=3.0), lease_seconds=1.5)
    config = zenoh_config(settings, (Locator.parse("tcp/127.0.0.1:7000"),))
    queue = "transport/link/tx/queue/congestion_control/block/wait_before_close"
    assert config.get_json(queue) == "7000000"
    assert config.get_json("connect/timeout_ms") == "3000"
    assert config.get_json("transport/link/tx/lease") == "1500"
    assert config.get_json("adminspace/enabled") == "false"
    assert config.get_json("transport/shared_memory/enabled") == "false"
    assert config.get_json("scouting/multicast/enabled") == "false"
    assert config.get_json("transport/link/protocols") == '["tcp"]'


def test_with_tls_nothing_learnt_is_dialled_in_the_clear(tls: TlsFiles) -> None:
    locator = Locator.parse("tls/127.0.0.1:7000")
    config = zenoh_config(NetSettings(listen=("tls/127.0.0.1:0",), tls=tls), (locator,))
    assert config.get_json("transport/link/protocols") == '["tls"]'
    assert config.get_json("transport/link/tls/enable_mtls") == "true"


def test_a_wildcard_is_shown_as_what_others_can_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry(address: str) -> SimpleNamespace:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return SimpleNamespace(family=family, address=address)

    entries = {
        "lo": [entry("127.0.0.1"), entry("::1")],
        "wlan0": [entry("192.168.1.7"), entry("fe80::1%wlan0"), entry("2001:db8::7")],
        "eth0": [entry("10.0.0.7")],
    }
    facts = {name: SimpleNamespace(isup=name != "eth0") for name in entries}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: entries)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: facts)
    assert list(map(str, reachable(Locator.parse("tcp/0.0.0.0:7447")))) == ["tcp/192.168.1.7:7447"]
    assert list(map(str, reachable(Locator.parse("tls/[::]:7447")))) == [
        "tls/192.168.1.7:7447",
        "tls/[2001:db8::7]:7447",
    ]
    assert list(map(str, reachable(Locator.parse("tcp/127.0.0.1:5")))) == ["tcp/127.0.0.1:5"]
    tied = Locator.parse("tcp/192.168.1.7:5#iface=eth0")
    assert list(map(str, reachable(tied))) == ["tcp/192.168.1.7:5"]


def test_a_free_port_is_found_on_a_host_of_ours_only() -> None:
    assert 0 < unused_port(Locator.parse("tcp/127.0.0.1:0")) < 65536
    with pytest.raises(FleetError, match=r"this machine cannot listen on 192\.0\.2\.1"):
        unused_port(Locator.parse("tcp/192.0.2.1:0"))
