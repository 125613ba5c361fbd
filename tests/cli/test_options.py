"""Options that come together, and what ``--fleet`` means for a job."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from edgeweave.cli.network import Network
from edgeweave.cli.options import JobOptions, NetworkOptions, fleet_overrides, spread
from edgeweave.core.errors import ConfigError


def test_a_command_gets_its_options_back_as_the_values_they_are_fields_of() -> None:
    got: list[Any] = []

    @spread
    def command(job: str, *, network: NetworkOptions, options: JobOptions, json: bool) -> None:
        got.extend([job, network, options, json])

    parameters = inspect.signature(command).parameters
    assert {"job", "connect", "tls_key", "fleet", "kernel", "json"} <= parameters.keys()
    assert "network" not in parameters
    assert parameters["wait"].default == 300.0
    given = {name: each.default for name, each in parameters.items() if name != "job"}
    command(job="job.toml", **{**given, "json": True, "scout": True, "devices": 2})
    assert got == ["job.toml", NetworkOptions(scout=True), JobOptions(devices=2), True]


def test_options_of_the_network_are_a_network() -> None:
    options = NetworkOptions(connect=["tcp/a:1,tcp/b:2"], listen=None, insecure=True)
    expected = Network(fleet="lab", connect=("tcp/a:1", "tcp/b:2"), insecure=True)
    assert options.network("lab") == expected


@pytest.mark.parametrize(
    ("choice", "kind", "file", "preset"),
    [
        ("local", "local", "none", "none"),
        ("lan", "lan", "none", "none"),
        ("equal-lan", "local", "none", "equal-lan"),
        ("homes/my.toml", "local", "homes/my.toml", "none"),
    ],
)
def test_a_fleet_on_the_command_line_replaces_that_of_the_job(
    choice: str, kind: str, file: str, preset: str
) -> None:
    told = fleet_overrides(choice, ["lan-party", "equal-lan"])
    assert (told["fleet.kind"], told["fleet.file"], told["fleet.preset"]) == (kind, file, preset)
    assert ("fleet.devices" in told) == (choice not in ("local", "lan"))


def test_nothing_said_about_the_fleet_changes_nothing() -> None:
    assert fleet_overrides(None, ["lan"]) == {}


def test_a_fleet_nobody_knows_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"\(got 'equal-lam'\)\. Did you mean equal-lan\?"):
        fleet_overrides("equal-lam", ["equal-lan"])
