"""``join`` and ``status`` as the command line has them: options in, calls out."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeweave.cli.options import (
    Connect,
    Debug,
    FleetName,
    Insecure,
    Json,
    Listen,
    Scout,
    TlsCa,
    TlsCertificate,
    TlsKey,
    Wait,
)
from edgeweave.cli.output import Output

__all__ = ["join", "status"]


def join(
    *,
    name: Annotated[
        str | None,
        typer.Option("--name", envvar="EDGEWEAVE_NAME", help="Of this device. [default: host]"),
    ] = None,
    fleet: FleetName = "default",
    connect: Connect = None,
    listen: Listen = None,
    scout: Scout = False,
    speed: Annotated[
        float | None,
        typer.Option(
            "--speed",
            envvar="EDGEWEAVE_SPEED",
            help="Emulate a slower device: the fraction of one core to compute with.",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            envvar="EDGEWEAVE_MEMORY",
            help="The most a stage may need, such as 512MiB.",
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option("--device", envvar="EDGEWEAVE_DEVICE", help="Compute on cpu, cuda or mps."),
    ] = "cpu",
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", envvar="EDGEWEAVE_THREADS", min=1, help="Threads torch computes with."
        ),
    ] = None,
    wait: Wait = 60.0,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    insecure: Insecure = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make this machine a device of a fleet, until Ctrl-C."""
    from edgeweave.cli import join as command  # noqa: PLC0415
    from edgeweave.cli.network import Network, split_list  # noqa: PLC0415

    network = Network(
        fleet=fleet,
        connect=split_list(connect),
        listen=split_list(listen),
        scout=scout,
        insecure=insecure,
        tls_ca=tls_ca,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
    )
    options = command.JoinOptions(network, name, speed, memory, device, threads, wait)
    command.join(options, Output("join", as_json=json))


def status(
    *,
    fleet: FleetName = "default",
    connect: Connect = None,
    listen: Listen = None,
    scout: Scout = False,
    wait: Wait = 2.0,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    insecure: Insecure = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show who is in a fleet, what each runs and what it works for."""
    from edgeweave.cli import status as command  # noqa: PLC0415
    from edgeweave.cli.network import Network, split_list  # noqa: PLC0415

    network = Network(
        fleet=fleet,
        connect=split_list(connect),
        listen=split_list(listen),
        scout=scout,
        insecure=insecure,
        tls_ca=tls_ca,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
    )
    command.status(network, Output("status", as_json=json), wait_seconds=wait)
