"""``gossip`` as the command line has it: options in, calls out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeweave.cli.job_commands import load
from edgeweave.cli.options import Debug, JobFile, JobOptions, Json, NetworkOptions, spread
from edgeweave.cli.output import Output

__all__ = ["gossip"]


@spread
def gossip(
    job: JobFile,
    *,
    attach: Annotated[
        bool,
        typer.Option("--attach", help="Start nothing: wait for a run that goes on, and fetch it."),
    ] = False,
    detach: Annotated[
        bool,
        typer.Option("--detach", help="Start the run and end; the devices go on by themselves."),
    ] = False,
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="NAME", help="With --attach: the run, if there are several."),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="FILE", help="Write the mean model here, as safetensors."),
    ] = None,
    options: JobOptions,
    network: NetworkOptions,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a copy on every device, averaged with its neighbours; no server is needed."""
    from edgeweave.cli import gossip as command  # noqa: PLC0415

    loaded, fleet = load(job, options, network)
    asked = command.GossipOptions(fleet, attach=attach, detach=detach, run=run, save=save)
    command.gossip(loaded, asked, Output("gossip", as_json=json))
