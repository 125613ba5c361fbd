"""The options that several commands share: one name, one meaning, one environment variable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from edgeweave.core.errors import ConfigError

__all__ = [
    "Connect",
    "Debug",
    "FleetKind",
    "FleetName",
    "Insecure",
    "JobFile",
    "Json",
    "Listen",
    "Scout",
    "Set",
    "TlsCa",
    "TlsCertificate",
    "TlsKey",
    "Wait",
    "WantedDevices",
    "overrides",
]

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document; people are served on stderr.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the Python traceback of an error.")]
JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="The job file, such as job.toml.")]
FleetName = Annotated[
    str,
    typer.Option(
        "--fleet", envvar="EDGEWEAVE_FLEET_NAMESPACE", help="The name of the fleet to be in."
    ),
]
FleetKind = Annotated[
    str | None,
    typer.Option(
        "--fleet",
        metavar="local|lan",
        help="Emulated devices on this machine, or real ones. Sets fleet.kind of the job.",
    ),
]
Connect = Annotated[
    list[str] | None,
    typer.Option(
        "--connect",
        envvar="EDGEWEAVE_FLEET_CONNECT",
        metavar="ENDPOINT",
        help="Reach the fleet here, such as tcp/192.168.1.10:7447. May be repeated.",
    ),
]
Listen = Annotated[
    list[str] | None,
    typer.Option(
        "--listen",
        envvar="EDGEWEAVE_LISTEN",
        metavar="ENDPOINT",
        help="Listen here. Loopback unless told otherwise; port 0 takes a free one.",
    ),
]
Scout = Annotated[
    bool,
    typer.Option(
        "--scout/--no-scout", envvar="EDGEWEAVE_SCOUT", help="Find others by multicast on the LAN."
    ),
]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure",
        envvar="EDGEWEAVE_INSECURE",
        help="Leave this machine without TLS: anyone on the network can read, and join.",
    ),
]
TlsCa = Annotated[
    Path | None,
    typer.Option("--tls-ca", envvar="EDGEWEAVE_TLS_CA", help="The CA of the fleet, PEM."),
]
TlsCertificate = Annotated[
    Path | None,
    typer.Option(
        "--tls-certificate",
        envvar="EDGEWEAVE_TLS_CERTIFICATE",
        help="This machine's certificate, PEM.",
    ),
]
TlsKey = Annotated[
    Path | None,
    typer.Option("--tls-key", envvar="EDGEWEAVE_TLS_KEY", help="The certificate's key, PEM."),
]
Wait = Annotated[
    float,
    typer.Option("--wait", min=0.0, help="Seconds to wait for others to be there."),
]
WantedDevices = Annotated[
    int | None,
    typer.Option(
        "--devices",
        envvar="EDGEWEAVE_DEVICES",
        min=1,
        help="Start with any N devices of the network, whatever names the job lists.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Change a setting of the job, such as train.epochs=1. May be repeated.",
    ),
]


def overrides(settings: Sequence[str] | None) -> dict[str, str]:
    """What ``--set`` says, by dotted name.

    >>> overrides(["train.epochs=1"])
    {'train.epochs': '1'}
    """
    found = {}
    for text in settings or ():
        name, equals, value = text.partition("=")
        if not equals or "." not in name:
            raise ConfigError(
                f"--set takes section.key=value (got {text!r}). Write it like train.epochs=1."
            )
        found[name.strip()] = value.strip()
    return found
