"""A training job as a file: ``job.toml``, read into one frozen ``Job``. Starts nothing itself.

    [model]      factory, args              [data]   source, path, normalise
    [loss]       function                   [train]  batch_size, n_microbatches, epochs, ...
    [metrics]    name = function            [fleet]  kind, devices, file, preset, connect, ...
    [optimizer]  name, and its options      [lr_schedule]  name, interval, options
    [serve]      what ``edgeweave serve`` is told; training ignores it
    [gossip]     topology, algorithm, ...
    [super_neurons]  groups, mode, delivery: train in slices, over links that lose

A value comes from the command line, else from the environment (``EDGEWEAVE_TRAIN_BATCH_SIZE`` sets
``batch_size`` in ``[train]``), else from the file, else it is the default. A relative path starts
from the folder of the file that has it, or from the current one for environment and command line.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edgeweave.core.errors import ConfigError
from edgeweave.core.words import suggest
from edgeweave.fleet import PRESETS
from edgeweave.train.compression import chosen_codec
from edgeweave.train.jobs.gossip_section import GossipSection
from edgeweave.train.jobs.references import resolve_function
from edgeweave.train.jobs.serve_section import ExampleEntry, ServeSection
from edgeweave.train.jobs.settings import MemoryBytes, Reference, Settings, key, rest
from edgeweave.train.jobs.super_neuron_section import SuperNeuronSection
from edgeweave.train.jobs.toml import to_toml
from edgeweave.train.jobs.torch_options import torch_options
from edgeweave.train.measuring.measurements import Measure

__all__ = [
    "ENVIRONMENT_PREFIX",
    "DataSection",
    "DeviceEntry",
    "FleetSection",
    "GossipSection",
    "Job",
    "LossSection",
    "LrScheduleSection",
    "MemoryBytes",
    "MetricsSection",
    "ModelSection",
    "OptimizerSection",
    "Reference",
    "SuperNeuronSection",
    "TrainSection",
    "check_fleet",
    "dump_job",
    "load_job",
    "read_settings",
    "resolve_function",
]

ENVIRONMENT_PREFIX = "EDGEWEAVE_"

Count = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Norm = Annotated[float, msgspec.Meta(gt=0, le=1e300)]
Speed = Annotated[float, msgspec.Meta(gt=0, le=1000)]
Name = Annotated[str, msgspec.Meta(min_length=1)]


@dataclass(frozen=True, slots=True)
class ModelSection:
    """What to train: ``factory(**args)`` returns the module."""

    factory: Reference = field(metadata=key("the function that builds the model", "digits-cnn"))
    args: dict[str, Any] = field(
        default_factory=dict,
        metadata=key("a table of keyword arguments of the factory", {"n_classes": 10}),
    )


@dataclass(frozen=True, slots=True)
class LossSection:
    """``function(outputs, targets)``, a mean over the samples."""

    function: Reference = field(
        default=Reference("torch.nn.functional:cross_entropy"),
        metadata=key("a function of outputs and targets", "torch.nn.functional:cross_entropy"),
    )


@dataclass(frozen=True, slots=True)
class MetricsSection:
    """What to report beside the loss: for each name a function of outputs and targets."""

    functions: dict[str, Reference] = field(
        default_factory=dict,
        metadata=rest("a function of outputs and targets", "accuracy", "accuracy"),
    )


@dataclass(frozen=True, slots=True)
class OptimizerSection:
    """A class of ``torch.optim`` and its keyword arguments."""

    name: Name = field(metadata=key("the name of a class in torch.optim", "SGD"))
    options: dict[str, Any] = field(
        default_factory=dict, metadata=rest("an option of the optimizer", "lr", 0.05)
    )


@dataclass(frozen=True, slots=True)
class LrScheduleSection:
    """A class of ``torch.optim.lr_scheduler`` and its keyword arguments."""

    name: Name = field(
        metadata=key("the name of a class in torch.optim.lr_scheduler", "CosineAnnealingLR")
    )
    interval: Literal["epoch", "step"] = field(
        default="epoch", metadata=key('"epoch" or "step": when it is stepped', "epoch")
    )
    options: dict[str, Any] = field(
        default_factory=dict, metadata=rest("an option of the schedule", "T_max", 1000)
    )


@dataclass(frozen=True, slots=True)
class DataSection:
    """What ``edgeweave.data.sources.load_source`` reads."""

    source: Name = field(metadata=key("the name of a data source", "digits"))
    path: Path | None = field(
        default=None, metadata=key("the file or folder of the source", "data/mnist")
    )
    normalise: bool = field(default=False, metadata=key("true or false", True))


@dataclass(frozen=True, slots=True)
class TrainSection:
    """How to train."""

    batch_size: Count = field(
        default=128, metadata=key("how many samples a step takes, 1 or more", 128)
    )
    n_microbatches: Count | Literal["auto"] = field(
        default="auto",
        metadata=key('how many parts a batch is cut into, 1 or more, or "auto"', 8),
    )
    epochs: Count = field(default=1, metadata=key("how often all samples are seen, 1 or more", 2))
    schedule: Literal["1f1b", "gpipe", "async-1f1b"] = field(
        default="1f1b", metadata=key('"1f1b", "gpipe" or "async-1f1b" (no flush)', "1f1b")
    )
    seed: Seed = field(default=0, metadata=key("a whole number of 0 or more", 0))
    clip_grad_norm: Norm | None = field(
        default=None, metadata=key("the largest norm of all gradients, above 0", 1.0)
    )
    checkpoint_directory: Path | None = field(default=None, metadata=key("a folder", "checkpoints"))
    checkpoint_every_steps: Count | None = field(
        default=None, metadata=key("the steps between two checkpoints, 1 or more", 100)
    )
    measure: Measure = field(
        default="profile",
        metadata=key('"profile" (devices run the model) or "probe" (predict)', "probe"),
    )
    codec: Name = field(
        default="none",
        metadata=key('"none", "auto" (where links are slow) or a codec', "uniform(8)"),
    )
    recover: bool = field(
        default=True, metadata=key("whether a run goes on without devices that vanish", False)
    )
    weight_aggregation: Count | None = field(
        default=None,
        metadata=key("the updates between two means of weight versions, 1 or more", 10),
    )


class DeviceEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device of a local fleet, or one that a fleet on the network must have."""

    name: Name
    speed: Speed = 1.0
    """The fraction of one core of this machine; a fleet on the network measures it instead."""
    memory: MemoryBytes | None = None


@dataclass(frozen=True, slots=True)
class FleetSection:
    """On whom to train."""

    kind: Literal["local", "lan"] = field(
        default="local", metadata=key('"local" or "lan"', "local")
    )
    devices: tuple[DeviceEntry, ...] = field(
        default=(),
        metadata=key(
            "a list of tables with name, speed and memory",
            [{"name": "pi-a", "speed": 0.5, "memory": "512MiB"}],
        ),
    )
    connect: tuple[str, ...] = field(
        default=(), metadata=key("a list of endpoints", ["tcp/10.0.0.5:7447"])
    )
    namespace: Name = field(default="default", metadata=key("the name of the fleet", "default"))
    file: Path | None = field(
        default=None, metadata=key("the file of an emulated fleet", "fleet.toml")
    )
    preset: Name | None = field(
        default=None,
        metadata=key("the name of an emulated fleet that comes with Edgeweave", PRESETS[0]),
    )


@dataclass(frozen=True, slots=True)
class Job:
    """Everything one training run is told. Functions are still named, not yet imported.

    Paths and the files of functions are absolute, so that it means the same wherever it is dumped.
    """

    model: ModelSection
    optimizer: OptimizerSection
    data: DataSection
    loss: LossSection = field(default_factory=LossSection)
    metrics: MetricsSection = field(default_factory=MetricsSection)
    lr_schedule: LrScheduleSection | None = None
    train: TrainSection = field(default_factory=TrainSection)
    fleet: FleetSection = field(default_factory=FleetSection)
    gossip: GossipSection = field(default_factory=GossipSection)
    serve: ServeSection = field(default_factory=ServeSection)
    super_neurons: SuperNeuronSection | None = None
    """None: the job trains in stages, not in slices."""


_SECTIONS: dict[str, type] = {
    "model": ModelSection,
    "loss": LossSection,
    "metrics": MetricsSection,
    "optimizer": OptimizerSection,
    "lr_schedule": LrScheduleSection,
    "data": DataSection,
    "train": TrainSection,
    "gossip": GossipSection,
    "fleet": FleetSection,
    "serve": ServeSection,
    "super_neurons": SuperNeuronSection,
}
_LEFT_OUT = {"lr_schedule", "super_neurons"}
"""Sections that mean something by being there."""


def load_job(path: Path, *, environment: Mapping[str, str], overrides: Mapping[str, str]) -> Job:
    """Read a job file under the environment and the command line; ``ConfigError`` if any is wrong.

    ``overrides`` are texts by dotted name, such as ``{"train.batch_size": "64"}``; ``none`` unsets
    what may be left out. Variables that begin with ``EDGEWEAVE_`` and a section are settings, and
    refused if the section has no such key.
    """
    settings = read_settings(path, environment, overrides)
    sections = {
        name: settings.build(name, str(path))
        for name in _SECTIONS
        if name in settings or name not in _LEFT_OUT
    }
    for name in sections.keys() & {"optimizer", "lr_schedule"}:
        named, origin = sections[name], functools.partial(settings.origin, name)
        options = torch_options(name, named.name, named.options, origin=origin)
        sections[name] = replace(named, options=options)
    job = Job(**sections)
    _check(job, path)
    return job


def read_settings(
    path: Path, environment: Mapping[str, str], overrides: Mapping[str, str]
) -> Settings:
    """File, then environment, then command line."""
    settings = Settings(_SECTIONS)
    settings.put_document(_read(path), str(path), path.parent)
    settings.put_environment(environment, ENVIRONMENT_PREFIX, Path())
    for dotted, text in overrides.items():
        settings.put_text(dotted, text, "command line", Path())
    return settings


def dump_job(job: Job) -> str:
    """The job as text of a job file; ``load_job`` reads an equal job from it, in any folder."""
    return to_toml(
        {
            name: _plain_section(getattr(job, name))
            for name in _SECTIONS
            if getattr(job, name) is not None
        }
    )


def _read(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path}: a job file is TOML in UTF-8 ({type(error).__name__}: {error}). "
            "Check the path and the line."
        ) from error


def _plain_section(section: object) -> dict[str, object]:
    plain: dict[str, object] = {}
    for spec in fields(section):  # type: ignore[arg-type]  # every section is a dataclass
        value = getattr(section, spec.name)
        if spec.metadata.get("rest"):
            plain.update(value)
        elif value is not None:
            plain[spec.name] = _plain(value)
    return plain


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, DeviceEntry | ExampleEntry):
        return {n: _plain(v) for n, v in msgspec.structs.asdict(value).items() if v is not None}
    return value


def _check(job: Job, path: Path) -> None:
    train = job.train
    try:
        chosen_codec(train.codec)
    except ConfigError as error:
        raise ConfigError(f"{path}: train.codec: {error}") from error
    if train.n_microbatches != "auto" and train.n_microbatches > train.batch_size:
        raise ConfigError(
            f"{path}: train.n_microbatches is at most train.batch_size (got "
            f"{train.n_microbatches} and {train.batch_size}). Lower the first or raise the second."
        )
    if train.checkpoint_every_steps is not None and train.checkpoint_directory is None:
        raise ConfigError(
            f"{path}: train.checkpoint_every_steps needs a place to write to (no "
            'train.checkpoint_directory). Write checkpoint_directory = "checkpoints" in [train].'
        )
    check_fleet(job.fleet, path)


def check_fleet(fleet: FleetSection, path: Path) -> None:
    """``ConfigError`` unless the devices differ by name and are described in one place."""
    names = [device.name for device in fleet.devices]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(
            f"{path}: fleet.devices have different names ({twice[0]!r} comes {len(twice)} times). "
            "Rename one."
        )
    _check_emulated(fleet, path)


def _check_emulated(fleet: FleetSection, path: Path) -> None:
    """A fleet is described in one place."""
    described = {
        "fleet.devices": bool(fleet.devices),
        "fleet.file": fleet.file is not None,
        "fleet.preset": fleet.preset is not None,
    }
    given = [name for name, is_given in described.items() if is_given]
    if fleet.kind == "lan" and given not in ([], ["fleet.devices"]):
        raise ConfigError(
            f"{path}: {given[-1]} describes an emulated fleet (fleet.kind is lan). Leave it out, "
            'or write kind = "local".'
        )
    if len(given) > 1:
        raise ConfigError(
            f"{path}: a fleet is described once ({' and '.join(given)} given). Leave one out."
        )
    if fleet.kind == "local" and not given:
        raise ConfigError(
            f"{path}: a local fleet has at least one device (fleet.devices is empty). "
            'Write devices = [{name = "pi-a", speed = 0.5}] in [fleet].'
        )
    if fleet.preset is not None and fleet.preset not in PRESETS:
        raise ConfigError(
            f"{path}: fleet.preset is the name of a fleet that comes with Edgeweave "
            f"(got {fleet.preset!r}). {suggest(fleet.preset, PRESETS)}"
        )
