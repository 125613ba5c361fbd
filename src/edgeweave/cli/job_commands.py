"""``demo``, ``profile``, ``plan`` and ``train`` as the command line has them.

Options in, calls out. What a command does is imported when it runs: torch takes seconds.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeweave.cli.options import (
    Connect,
    Debug,
    FleetKind,
    Insecure,
    JobFile,
    Json,
    Listen,
    Scout,
    Set,
    TlsCa,
    TlsCertificate,
    TlsKey,
    Wait,
    WantedDevices,
    overrides,
)
from edgeweave.cli.output import Output

if TYPE_CHECKING:
    from edgeweave.train.job import Job

__all__ = ["demo", "plan", "profile", "train"]


def demo(
    *,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where picture, trace and report go.")
    ] = Path("edgeweave-runs/demo"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of weights and shuffling.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two devices, one epoch: only to see that it works.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a small CNN over three unequal emulated devices, and compare with each alone."""
    from edgeweave.cli.demo import DemoOptions, run_demo  # noqa: PLC0415

    run_demo(DemoOptions(out=out, seed=seed, quick=quick), Output("demo", as_json=json))


def profile(
    job: JobFile,
    *,
    fleet: FleetKind = None,
    devices: WantedDevices = None,
    wait: Wait = 300.0,
    settings: Set = None,
    connect: Connect = None,
    listen: Listen = None,
    scout: Scout = False,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    insecure: Insecure = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure what every unit of a model takes on every device; train nothing."""
    from edgeweave.cli.jobs import FleetOptions  # noqa: PLC0415
    from edgeweave.cli.network import Network, split_list  # noqa: PLC0415
    from edgeweave.cli.planning import profile as run_profile  # noqa: PLC0415

    network = Network(
        listen=split_list(listen),
        scout=scout,
        insecure=insecure,
        tls_ca=tls_ca,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
    )
    loaded = _load(job, settings, fleet=fleet, connect=connect)
    options = FleetOptions(network, devices, wait)
    run_profile(loaded, options, Output("profile", as_json=json))


def plan(
    job: JobFile,
    *,
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="FILE", help="Keep the plan here, for train --plan."),
    ] = None,
    fleet: FleetKind = None,
    devices: WantedDevices = None,
    wait: Wait = 300.0,
    settings: Set = None,
    connect: Connect = None,
    listen: Listen = None,
    scout: Scout = False,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    insecure: Insecure = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure, then show who would do what, how fast, and why; train nothing."""
    from edgeweave.cli.jobs import FleetOptions  # noqa: PLC0415
    from edgeweave.cli.network import Network, split_list  # noqa: PLC0415
    from edgeweave.cli.planning import make_plan  # noqa: PLC0415

    network = Network(
        listen=split_list(listen),
        scout=scout,
        insecure=insecure,
        tls_ca=tls_ca,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
    )
    loaded = _load(job, settings, fleet=fleet, connect=connect)
    options = FleetOptions(network, devices, wait)
    make_plan(loaded, options, Output("plan", as_json=json), save=save)


def train(
    job: JobFile,
    *,
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
    fleet: FleetKind = None,
    devices: WantedDevices = None,
    wait: Wait = 300.0,
    settings: Set = None,
    connect: Connect = None,
    listen: Listen = None,
    scout: Scout = False,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    insecure: Insecure = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Plan, show the plan, train, and show where the time went."""
    from edgeweave.cli.jobs import FleetOptions  # noqa: PLC0415
    from edgeweave.cli.network import Network, split_list  # noqa: PLC0415
    from edgeweave.cli.training import TrainOptions  # noqa: PLC0415
    from edgeweave.cli.training import train as run_train  # noqa: PLC0415

    network = Network(
        listen=split_list(listen),
        scout=scout,
        insecure=insecure,
        tls_ca=tls_ca,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
    )
    loaded = _load(job, settings, fleet=fleet, connect=connect)
    options = FleetOptions(network, devices, wait)
    run_train(
        loaded,
        TrainOptions(options, resume=resume, plan=plan, save=save),
        Output("train", as_json=json),
    )


def _load(
    path: Path,
    settings: Sequence[str] | None,
    *,
    fleet: str | None,
    connect: Sequence[str] | None,
) -> Job:
    """The job file under the environment under the command line."""
    from edgeweave.train.job import load_job  # noqa: PLC0415

    told = overrides(settings)
    if fleet is not None:
        told["fleet.kind"] = fleet
    if connect:
        told["fleet.connect"] = ",".join(connect)
    return load_job(path, environment=os.environ, overrides=told)
