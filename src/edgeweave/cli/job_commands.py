"""``demo``, ``profile``, ``plan``, ``train`` and ``serve`` as the command line has them.

Options in, calls out. What a command does is imported when it runs: torch takes seconds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeweave.cli.options import (
    CodecChoice,
    Debug,
    EmulatedChoice,
    FromProbe,
    JobFile,
    JobOptions,
    Json,
    NetworkOptions,
    ScheduleChoice,
    ScheduleOptions,
    fleet_overrides,
    overrides,
    spread,
)
from edgeweave.cli.output import Output

if TYPE_CHECKING:
    from edgeweave.cli.jobs import FleetOptions
    from edgeweave.train.jobs.job import Job

__all__ = ["demo", "load", "plan", "profile", "serve", "train"]


def demo(
    *,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where picture, trace and report go.")
    ] = Path("edgeweave-runs/demo"),
    fleet: EmulatedChoice = None,
    schedule: ScheduleChoice = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of weights and shuffling.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two devices, one epoch: only to see that it works.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a small CNN over unequal emulated devices, and compare with each alone."""
    from edgeweave.cli.demo import DemoOptions, run_demo  # noqa: PLC0415

    options = DemoOptions(out=out, seed=seed, quick=quick, fleet=fleet, schedule=schedule or "1f1b")
    run_demo(options, Output("demo", as_json=json))


@spread
def profile(
    job: JobFile,
    *,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe", help="Show what the devices are and how fast, whatever the model: 2 s."
        ),
    ] = False,
    options: JobOptions,
    network: NetworkOptions,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure what every unit of a model takes on every device; train nothing."""
    from edgeweave.cli import planning  # noqa: PLC0415

    run = planning.probe if probe else planning.profile
    run(*load(job, options, network), Output("profile", as_json=json))


@spread
def plan(
    job: JobFile,
    *,
    from_probe: FromProbe = False,
    codec: CodecChoice = None,
    order: ScheduleOptions,
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="FILE", help="Keep the plan here, for train --plan."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw one simulated step here, as SVG."),
    ] = None,
    options: JobOptions,
    network: NetworkOptions,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure, then show who would do what, how fast, and why; train nothing."""
    from edgeweave.cli.planning import PlanFiles, make_plan  # noqa: PLC0415

    told = _told(order, from_probe=from_probe, codec=codec)
    loaded, fleet = load(job, options, network, told)
    make_plan(loaded, fleet, Output("plan", as_json=json), PlanFiles(save, plot))


@spread
def train(
    job: JobFile,
    *,
    from_probe: FromProbe = False,
    codec: CodecChoice = None,
    order: ScheduleOptions,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint of the job.")
    ] = False,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", help="Use this plan instead of measuring."),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="FILE", help="Write the weights here, as safetensors."),
    ] = None,
    options: JobOptions,
    network: NetworkOptions,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Plan, show the plan, train, and show where the time went."""
    from edgeweave.cli.training import TrainOptions  # noqa: PLC0415
    from edgeweave.cli.training import train as run_train  # noqa: PLC0415

    told = _told(order, from_probe=from_probe, codec=codec)
    loaded, fleet = load(job, options, network, told)
    run_train(
        loaded,
        TrainOptions(fleet, resume=resume, plan=plan, save=save),
        Output("train", as_json=json),
    )


@spread
def serve(
    job: JobFile,
    *,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            envvar="EDGEWEAVE_SERVE_WEIGHTS",
            metavar="FILE",
            help="Weights as train --save writes them; else the job's newest checkpoint.",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            "--host", envvar="EDGEWEAVE_SERVE_HOST", help="Listen here. Loopback unless told."
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            envvar="EDGEWEAVE_SERVE_PORT",
            min=0,
            max=65535,
            help="Listen here; 0 takes a free one.",
        ),
    ] = None,
    options: JobOptions,
    network: NetworkOptions,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Serve a trained model over HTTP by all devices together, until Ctrl-C."""
    from edgeweave.cli.serving import run_serve  # noqa: PLC0415
    from edgeweave.train.jobs.service_job import load_service  # noqa: PLC0415

    given = {"serve.weights": weights, "serve.host": host, "serve.port": port}
    told = {name: str(value) for name, value in given.items() if value is not None}
    told, fleet = _read(options, network, told)
    loaded = load_service(job, environment=os.environ, overrides=told)
    run_serve(loaded, fleet, Output("serve", as_json=json))


def _told(order: ScheduleOptions, *, from_probe: bool, codec: str | None) -> dict[str, str]:
    """What options of their own say of ``[train]``, by dotted name."""
    told = order.overrides()
    if from_probe:
        told["train.measure"] = "probe"
    if codec is not None:
        told["train.codec"] = codec
    return told


def load(
    path: Path,
    options: JobOptions,
    network: NetworkOptions,
    told_beside: Mapping[str, str] | None = None,
) -> tuple[Job, FleetOptions]:
    """The job file under the environment under the command line, and on whom it runs."""
    from edgeweave.train.jobs.job import load_job  # noqa: PLC0415

    told, fleet = _read(options, network, told_beside or {})
    return load_job(path, environment=os.environ, overrides=told), fleet


def _read(
    options: JobOptions, network: NetworkOptions, told_beside: Mapping[str, str]
) -> tuple[dict[str, str], FleetOptions]:
    """What the command line says of a job, by dotted name, and on whom it runs."""
    from edgeweave.cli.jobs import FleetOptions  # noqa: PLC0415
    from edgeweave.fleet import PRESETS  # noqa: PLC0415

    told = {**overrides(options.settings), **fleet_overrides(options.fleet, PRESETS)}
    if network.connect:
        told["fleet.connect"] = ",".join(network.connect)
    told.update(told_beside)
    return told, FleetOptions(network.network(), options.devices, options.wait, options.kernel)
