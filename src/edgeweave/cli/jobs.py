"""A job at work: its fleet opened, its model built, its trainer ready. Shared by three commands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch

from edgeweave.cli.cache import cache_directory
from edgeweave.cli.documents import explanation_document
from edgeweave.cli.job_parts import build_model, objective
from edgeweave.cli.network import COORDINATOR_PORT, Network, join_lines
from edgeweave.cli.output import Output
from edgeweave.cli.tables import explanation_table
from edgeweave.core.errors import ConfigError
from edgeweave.data.sources import DataPair, load_source
from edgeweave.fleet import Device, Fleet, FleetDescription, load_fleet, load_preset
from edgeweave.plan import Costs, Plan, explain
from edgeweave.train import PipelineTrainer
from edgeweave.train.compression import chosen_codec
from edgeweave.train.jobs.job import FleetSection, Job
from edgeweave.train.measuring.experience import Experience

__all__ = ["FleetOptions", "Session", "explained", "open_fleet", "open_session"]


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """What the command line says about the devices of a job."""

    network: Network
    n_devices: int | None = None
    wait_seconds: float = 300.0
    kernel: bool = False


@dataclass(frozen=True, slots=True)
class Session:
    """Everything between a job and its training."""

    job: Job
    data: DataPair
    fleet: Fleet
    trainer: PipelineTrainer
    experience: Experience
    """What earlier jobs learnt of the devices, and this one notes."""


@contextmanager
def open_session(
    job: Job, options: FleetOptions, output: Output, *, plan: Plan | None = None
) -> Iterator[Session]:
    """Read the data and build the model first, which costs no device anything if it fails."""
    emulated = _emulated(job.fleet, options)
    data = load_source(job.data.source, path=job.data.path, normalise=job.data.normalise)
    output.say(data.description)
    model = build_model(job)
    with _fleet(job.fleet, emulated, options, output) as fleet:
        output.say(f"devices: {', '.join(fleet.devices)}")
        experience = Experience(None if fleet.is_local else cache_directory())
        trainer = _trainer(job, model, fleet, plan, experience)
        yield Session(job, data, fleet, trainer, experience)


@contextmanager
def open_fleet(section: FleetSection, options: FleetOptions, output: Output) -> Iterator[Fleet]:
    """The fleet of a job alone, for what needs neither its data nor its optimizer."""
    with _fleet(section, _emulated(section, options), options, output) as fleet:
        output.say(f"devices: {', '.join(fleet.devices)}")
        yield fleet


def explained(plan: Plan, costs: Costs, output: Output) -> dict[str, object]:
    """Show the plan and say why it is as it is; return the same as a document."""
    explanation = explain(plan, costs)
    output.show(explanation_table(plan, explanation))
    output.say("")
    for line in explanation.lines():
        output.say(line)
    return explanation_document(explanation)


def _trainer(
    job: Job, model: torch.nn.Module, fleet: Fleet, plan: Plan | None, experience: Experience
) -> PipelineTrainer:
    learnt = objective(job)
    return PipelineTrainer(
        model,
        learnt.loss,
        optimizer=learnt.optimizer,
        fleet=fleet,
        metrics=learnt.metrics,
        lr_schedule=learnt.lr_schedule,
        clip_grad_norm=job.train.clip_grad_norm,
        schedule=job.train.schedule,
        weight_aggregation=job.train.weight_aggregation,
        n_microbatches=None if job.train.n_microbatches == "auto" else job.train.n_microbatches,
        seed=job.train.seed,
        measure=job.train.measure,
        codec=chosen_codec(job.train.codec),
        plan=plan,
        recover=job.train.recover,
        experience=experience,
    )


def _emulated(fleet: FleetSection, options: FleetOptions) -> FleetDescription | None:
    """The devices, links and chaos to emulate; None if the job is for real devices."""
    if fleet.kind == "lan":
        if options.kernel:
            raise ConfigError(
                "--kernel shapes the links of emulated devices (fleet.kind is lan). Leave it out."
            )
        return None
    if fleet.file is not None:
        return load_fleet(fleet.file)
    if fleet.preset is not None:
        return load_preset(fleet.preset)
    return FleetDescription(
        tuple(Device(each.name, each.speed, each.memory) for each in fleet.devices)
    )


@contextmanager
def _fleet(
    section: FleetSection,
    emulated: FleetDescription | None,
    options: FleetOptions,
    output: Output,
) -> Iterator[Fleet]:
    with ExitStack() as stack:
        if emulated is not None:
            fleet = Fleet.described(emulated, kernel=options.kernel)
            with output.doing(f"starting {len(emulated.devices)} devices"):
                stack.enter_context(fleet)
        else:
            fleet = _lan(section, options, output)
            with output.doing("waiting for devices"):
                stack.enter_context(fleet)
        yield fleet


def _lan(section: FleetSection, options: FleetOptions, output: Output) -> Fleet:
    """The fleet of the job on the network: its listed devices, or any number that was asked for."""
    names = [each.name for each in section.devices] if options.n_devices is None else []
    network = replace(options.network, fleet=section.namespace, connect=section.connect)
    port = 0 if network.connect else COORDINATOR_PORT
    listen, why = network.listens(port)
    output.say(f"listen={', '.join(listen)} ({why})")
    n_devices = options.n_devices or len(names) or 1
    usher = _Usher(network, names, n_devices, output)
    return Fleet.lan(
        network.settings(port=port),
        devices=names,
        n_devices=n_devices,
        wait_seconds=options.wait_seconds,
        on_waiting=usher.waiting,
    )


class _Usher:
    """Says where to join, then who did."""

    def __init__(
        self, network: Network, names: Sequence[str], n_devices: int, output: Output
    ) -> None:
        self._network = network
        self._names = names
        self._n_devices = n_devices
        self._output = output
        self._there: set[str] | None = None

    def waiting(self, endpoints: tuple[str, ...], there: tuple[str, ...]) -> None:
        """The hook of ``Fleet.lan``."""
        if self._there is None:
            self._there = set()
            self._invite(endpoints)
        for name in sorted(set(there) - self._there):
            self._output.say(f"{name} has joined ({len(there)} of {self._n_devices})")
        for name in sorted(self._there - set(there)):
            self._output.say(f"{name} has gone ({len(there)} of {self._n_devices})")
        self._there = set(there)

    def _invite(self, endpoints: tuple[str, ...]) -> None:
        lines = join_lines(self._network, endpoints, self._names)
        n = self._n_devices
        anywhere = "on one device" if n == 1 else f"on {n} devices"
        where = "one line on each device" if self._names else anywhere
        self._output.say(f"To join, run {where}:")
        for line in lines:
            self._output.say(f"    {line}")
        if len(endpoints) > 1 and not self._network.connect:
            others = ", ".join(endpoints[1:])
            self._output.say(f"This machine has other addresses too: {others}")
