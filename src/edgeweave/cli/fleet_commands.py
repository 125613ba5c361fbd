"""``join`` and ``status`` as the command line has them: options in, calls out."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeweave.cli.options import Debug, FleetName, Json, NetworkOptions, Wait, spread
from edgeweave.cli.output import Output

__all__ = ["join", "status"]


@spread
def join(
    *,
    name: Annotated[
        str | None,
        typer.Option("--name", envvar="EDGEWEAVE_NAME", help="Of this device. [default: host]"),
    ] = None,
    fleet: FleetName = "default",
    options: NetworkOptions,
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
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make this machine a device of a fleet, until Ctrl-C."""
    from edgeweave.cli import join as command  # noqa: PLC0415

    network = options.network(fleet)
    settings = command.JoinOptions(network, name, speed, memory, device, threads, wait)
    command.join(settings, Output("join", as_json=json))


@spread
def status(
    *,
    fleet: FleetName = "default",
    options: NetworkOptions,
    wait: Wait = 2.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show who is in a fleet, what each runs and what it works for."""
    from edgeweave.cli import status as command  # noqa: PLC0415

    command.status(options.network(fleet), Output("status", as_json=json), wait_seconds=wait)
