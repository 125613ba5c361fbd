"""From options to settings, and to the line that others paste."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgeweave.cli.network import Network, join_lines, split_list
from edgeweave.cli.options import overrides
from edgeweave.core.errors import ConfigError

TLS = Network(tls_ca=Path("ca.pem"), tls_certificate=Path("me.pem"), tls_key=Path("me.key"))


def test_loopback_is_where_one_listens_unless_told_otherwise() -> None:
    assert Network().listens(7447) == (("tcp/127.0.0.1:7447",), "loopback unless told otherwise")


def test_what_is_asked_for_is_taken() -> None:
    assert Network(listen=("tcp/10.0.0.1:9",)).listens(0) == (("tcp/10.0.0.1:9",), "as asked")


@pytest.mark.parametrize(
    "network",
    [Network(scout=True), Network(connect=("tcp/10.0.0.5:7447",))],
    ids=["scouting", "connecting beyond this machine"],
)
def test_devices_of_a_network_listen_where_others_reach_them(network: Network) -> None:
    listen, why = network.listens(0)
    assert listen == ("tcp/0.0.0.0:0",)
    assert "directly" in why


def test_with_certificates_one_listens_with_tls() -> None:
    assert TLS.listens(5)[0] == ("tls/127.0.0.1:5",)
    assert replace(TLS, scout=True).listens(5)[0] == ("tls/0.0.0.0:5",)


def test_a_certificate_without_its_key_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"come together \(2 of 3 given\)"):
        replace(TLS, tls_key=None).tls()


def test_settings_carry_everything() -> None:
    network = Network(fleet="lab", connect=("tcp/127.0.0.1:9",), scout=True, insecure=True)
    settings = network.settings(port=7)
    assert (settings.fleet, settings.connect) == ("lab", ("tcp/127.0.0.1:9",))
    assert (settings.scouting, settings.insecure) == (True, True)
    assert settings.listen == ("tcp/0.0.0.0:7",)


def test_one_line_joins_any_device() -> None:
    lines = join_lines(Network(), ["tcp/10.0.0.5:7447", "tcp/172.17.0.1:7447"], [])
    assert lines == ("edgeweave join --connect tcp/10.0.0.5:7447",)


def test_devices_that_are_wanted_by_name_get_a_line_each() -> None:
    lines = join_lines(Network(fleet="lab", insecure=True), ["tcp/10.0.0.5:7447"], ["a", "b c"])
    assert lines == (
        "edgeweave join --connect tcp/10.0.0.5:7447 --fleet lab --insecure --name a",
        "edgeweave join --connect tcp/10.0.0.5:7447 --fleet lab --insecure --name 'b c'",
    )


def test_devices_meet_where_this_command_goes_itself() -> None:
    network = Network(connect=("tcp/10.0.0.9:7447",))
    lines = join_lines(network, ["tcp/10.0.0.5:41233", "tcp/172.17.0.1:41233"], [])
    assert lines == ("edgeweave join --connect tcp/10.0.0.9:7447",)


def test_the_line_of_a_fleet_with_tls_asks_for_certificates() -> None:
    line = join_lines(TLS, ["tls/10.0.0.5:7447"], [])[0]
    assert "--tls-ca ca.pem --tls-certificate device.pem --tls-key device.key" in line


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, ()), (["a"], ("a",)), (["a,b", "c"], ("a", "b", "c")), (["a,", " b"], ("a", "b"))],
)
def test_lists_are_repeated_or_separated_by_commas(
    given: list[str] | None, expected: tuple[str, ...]
) -> None:
    assert split_list(given) == expected


def test_settings_are_read_by_dotted_name() -> None:
    assert overrides(["train.epochs=1", "model.args.name=a=b"]) == {
        "train.epochs": "1",
        "model.args.name": "a=b",
    }


@pytest.mark.parametrize("text", ["epochs=1", "train.epochs", ""])
def test_a_setting_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--set takes section\.key=value"):
        overrides([text])
