"""``gossip`` as the command line has it: options in, calls out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from edgeweave.cli.job_commands import load
from edgeweave.cli.options import Debug, JobOptions, Json, NetworkOptions, overrides, spread
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
    modes = {"--attach": attach, "--detach": detach, "--admit": admit is not None}
    asks = [name for name, is_given in modes.items() if is_given]
    if stop is not None:
        _check_stops_only(job, asks)
        command.stop(network.network(_fleet_name(options)), stop, output)
        return
    if job is None:
        raise ConfigError("gossip needs a job (none is given). Name its file: edgeweave gossip JOB")
    _check_one_thing(asks, run=run, save=save)
    loaded, fleet = load(job, options, network)
    asked = command.GossipOptions(fleet, detach=detach, run=run, save=save)
    if admit is not None:
        command.admit(loaded, asked, admit, output)
    elif attach:
        command.attach(loaded, asked, output)
    else:
        command.gossip(loaded, asked, output)


def _fleet_name(options: JobOptions) -> str:
    """Of the fleet to look in, where no job says it."""
    told = overrides(options.settings).get("fleet.namespace")
    return told or os.environ.get("EDGEWEAVE_FLEET_NAMESPACE", "default")


def _check_stops_only(job: Path | None, asks: Sequence[str]) -> None:
    if job is not None or asks:
        raise ConfigError(
            "--stop NAME stops a run and does nothing else (a job, --attach or --detach is given). "
            "Leave it out; fetch the models with --attach afterwards."
        )


def _check_one_thing(asks: Sequence[str], *, run: str | None, save: Path | None) -> None:
    if len(asks) > 1:
        raise ConfigError(
            f"gossip does one thing at a time ({' and '.join(asks)} are given). Leave one out."
        )
    if run is not None and not {"--attach", "--admit"} & {*asks}:
        raise ConfigError(
            f"--run says which run to go on with (got {run}, and nothing to do with it). "
            "Add --attach or --admit."
        )
    if save is not None and {"--detach", "--admit"} & {*asks}:
        raise ConfigError(
            f"--save writes the model of a run that has ended ({asks[0]} does not wait for it). "
            "Save with --attach afterwards."
        )
