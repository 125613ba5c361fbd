"""``gossip`` as the command line has it: options in, calls out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeweave.cli.job_commands import load
from edgeweave.cli.options import Debug, JobOptions, Json, NetworkOptions, spread
from edgeweave.cli.output import Output
from edgeweave.core.errors import ConfigError

__all__ = ["gossip"]


@spread
def gossip(
    job: Annotated[
        Path | None, typer.Argument(metavar="JOB", help="The job file; none with --stop.")
    ] = None,
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
        typer.Option(
            "--run", metavar="NAME", help="With --attach or --admit: the run, if there are several."
        ),
    ] = None,
    admit: Annotated[
        str | None,
        typer.Option("--admit", metavar="DEVICE", help="Let another device into a run at work."),
    ] = None,
    stop: Annotated[
        str | None,
        typer.Option("--stop", metavar="NAME", help="Stop this run where it is; models are kept."),
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

    output = Output("gossip", as_json=json)
    if stop is not None:
        _check_stops_only(job, attach or detach or admit is not None)
        command.stop(network.network(), stop, output)
        return
    if job is None:
        raise ConfigError("gossip needs a job (none is given). Name its file: edgeweave gossip JOB")
    loaded, fleet = load(job, options, network)
    asked = command.GossipOptions(fleet, attach=attach, detach=detach, run=run, save=save)
    if admit is not None:
        command.admit(loaded, asked, admit, output)
        return
    command.gossip(loaded, asked, output)


def _check_stops_only(job: Path | None, does_more: bool) -> None:
    if job is not None or does_more:
        raise ConfigError(
            "--stop NAME stops a run and does nothing else (a job, --attach or --detach is given). "
            "Leave it out; fetch the models with --attach afterwards."
        )
