"""The options that several commands share: one name, one meaning, one environment variable.

Those that come together are fields of a dataclass; a command that takes one as a parameter, under
``spread``, has all of them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, get_type_hints

import typer

from edgeweave.cli.network import Network, split_list
from edgeweave.core.errors import ConfigError
from edgeweave.core.words import suggest

__all__ = [
    "CodecChoice",
    "Debug",
    "EmulatedChoice",
    "FleetName",
    "FromProbe",
    "JobFile",
    "JobOptions",
    "Json",
    "NetworkOptions",
    "ScheduleChoice",
    "ScheduleOptions",
    "Wait",
    "fleet_overrides",
    "overrides",
    "spread",
]

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document; people are served on stderr.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the Python traceback of an error.")]
JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="The job file, such as job.toml.")]
FromProbe = Annotated[
    bool,
    typer.Option(
        "--from-probe",
        help="Plan from predictions: probe the devices for 2 s instead of running the model there.",
    ),
]
CodecChoice = Annotated[
    str | None,
    typer.Option(
        "--codec",
        envvar="EDGEWEAVE_TRAIN_CODEC",
        metavar="none|auto|CODEC",
        help="Make what devices send each other smaller: where links are slow, or uniform(8).",
    ),
]
ScheduleChoice = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        envvar="EDGEWEAVE_TRAIN_SCHEDULE",
        metavar="1f1b|gpipe|async-1f1b",
        help="The order of work; async-1f1b never waits for a step's end, on older weights.",
    ),
]
AggregationChoice = Annotated[
    int | None,
    typer.Option(
        "--weight-aggregation",
        envvar="EDGEWEAVE_TRAIN_WEIGHT_AGGREGATION",
        metavar="K",
        min=1,
        help="With async-1f1b: after every K updates take the mean of a stage's last weights.",
    ),
]
FleetName = Annotated[
    str,
    typer.Option(
        "--fleet", envvar="EDGEWEAVE_FLEET_NAMESPACE", help="The name of the fleet to be in."
    ),
]
EmulatedChoice = Annotated[
    str | None,
    typer.Option("--fleet", metavar="FILE|PRESET", help="The devices of a fleet.toml or a preset."),
]
FleetChoice = Annotated[
    str | None,
    typer.Option(
        "--fleet",
        metavar="local|lan|FILE|PRESET",
        help="Devices of the job emulated here, real ones, or those of a fleet.toml or a preset.",
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
Kernel = Annotated[
    bool,
    typer.Option(
        "--kernel",
        envvar="EDGEWEAVE_KERNEL",
        help="Emulated devices in network namespaces, links shaped by the kernel. Needs root.",
    ),
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


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """How to reach others, and how they reach this process."""

    connect: Connect = None
    listen: Listen = None
    scout: Scout = False
    tls_ca: TlsCa = None
    tls_certificate: TlsCertificate = None
    tls_key: TlsKey = None
    insecure: Insecure = False

    def network(self, fleet: str = "default") -> Network:
        """The same as a value."""
        return Network(
            fleet=fleet,
            connect=split_list(self.connect),
            listen=split_list(self.listen),
            scout=self.scout,
            insecure=self.insecure,
            tls_ca=self.tls_ca,
            tls_certificate=self.tls_certificate,
            tls_key=self.tls_key,
        )


@dataclass(frozen=True, slots=True)
class ScheduleOptions:
    """In which order devices work, and on which weights."""

    schedule: ScheduleChoice = None
    weight_aggregation: AggregationChoice = None

    def overrides(self) -> dict[str, str]:
        """What was said, by dotted name."""
        told = {"schedule": self.schedule, "weight_aggregation": self.weight_aggregation}
        return {f"train.{name}": str(value) for name, value in told.items() if value is not None}


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What one may say about a job beside its file."""

    fleet: FleetChoice = None
    devices: WantedDevices = None
    wait: Wait = 300.0
    settings: Set = None
    kernel: Kernel = False


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with the fields of its dataclass parameters as parameters of their own."""
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, type] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        kind = parameter.annotation
        if not (isinstance(kind, type) and is_dataclass(kind)):
            parameters.append(parameter)
            continue
        groups[name] = kind
        hints = get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )
            for field in fields(kind)
        ]

    @functools.wraps(command)
    def run(**values: object) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
        command(**values)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def fleet_overrides(choice: str | None, presets: Sequence[str]) -> dict[str, str]:
    """What ``--fleet`` says, by dotted name: it replaces what the job says of its fleet.

    >>> fleet_overrides("lan", [])["fleet.kind"]
    'lan'
    """
    if choice is None:
        return {}
    if choice in ("local", "lan"):
        return {"fleet.kind": choice, "fleet.file": "none", "fleet.preset": "none"}
    described = {"fleet.kind": "local", "fleet.devices": "[]"}
    if choice in presets:
        return {**described, "fleet.file": "none", "fleet.preset": choice}
    if choice.endswith(".toml"):
        return {**described, "fleet.preset": "none", "fleet.file": choice}
    raise ConfigError(
        f"--fleet takes local, lan, a file that ends in .toml, or a preset (got {choice!r}). "
        f"{suggest(choice, ['local', 'lan', *presets])}"
    )


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
