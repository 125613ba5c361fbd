"""``edgeweave gossip``: start a run of gossip, or find one, wait for it, fetch it, or stop it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import safetensors.torch
from rich.console import Console
from rich.live import Live

from edgeweave.cli.gossip_tables import peers_table, progress_line, run_lines
from edgeweave.cli.job_parts import build_model, objective
from edgeweave.cli.jobs import FleetOptions, open_fleet
from edgeweave.cli.network import Network
from edgeweave.cli.output import Output, read_file, write_file
from edgeweave.codec import parse
from edgeweave.core.errors import ConfigError
from edgeweave.data import ArrayDataset, DataPair, load_source, told_split
from edgeweave.device import PeerStatus, SourceData
from edgeweave.fleet import Fleet
from edgeweave.gossip import DeviceFiles, GossipReport, GossipTrainer, Members
from edgeweave.mixing import BalanceSettings, Topology, edges_in
from edgeweave.train.job import Job

__all__ = ["GossipOptions", "admit", "gossip", "stop"]

_LOOK_SECONDS = 2.0
"""How long devices have to be seen before a run is looked for among them."""


@dataclass(frozen=True, slots=True)
class GossipOptions:
    """What the command line says about one run."""

    fleet: FleetOptions
    attach: bool = False
    detach: bool = False
    run: str | None = None
    save: Path | None = None


def gossip(job: Job, options: GossipOptions, output: Output) -> None:
    """Start, wait, evaluate, show; or only one end of that."""
    _check(job, options)
    section = job.gossip
    data = load_source(job.data.source, path=job.data.path, normalise=job.data.normalise)
    output.say(data.description)
    with open_fleet(job.fleet, options.fleet, output) as fleet:
        trainer = _trainer(job, fleet)
        if not options.attach:
            run = trainer.start(
                _train_set(job, data),
                batch_size=job.train.batch_size,
                epochs=job.train.epochs,
                split=replace(told_split(section.split), seed=job.train.seed),
                example=data.test,
            )
            output.say(f"run {run}: {section.algorithm} on {', '.join(fleet.devices)}")
            if options.detach:
                output.say("The devices go on by themselves. See: edgeweave status")
                output.finish({"run": run, "report": None, "saved": None, "stopped": []})
                return
        report = _collect(trainer, options, data)
        if options.save is not None:
            write_file(options.save, safetensors.torch.save(trainer.state_dict()))
    _show(report, options, output)
    output.finish(
        {
            "run": report.run,
            "report": report_document(report),
            "saved": None if options.save is None else str(options.save),
            "stopped": [],
        }
    )


def stop(network: Network, run: str, output: Output) -> None:
    """Let the devices of a run do no more steps. They keep their models, to be fetched."""
    with _watched(network, run, output) as members:
        told = members.stop()
        statuses = members.statuses()
    for line in run_lines(statuses):
        output.say(line)
    output.say(f"{run} was stopped on {', '.join(told) or 'no device'}.")
    output.finish({"run": run, "report": None, "saved": None, "stopped": list(told)})


def admit(job: Job, options: GossipOptions, device: str, output: Output) -> None:
    """Let another device into a run that goes on. It trains on all its files of the job's data."""
    connect = options.fleet.network.connect or job.fleet.connect
    path = job.gossip.device_path or job.data.path
    data = SourceData(job.data.source, None if path is None else str(path), job.data.normalise)
    network = replace(options.fleet.network, connect=connect)
    with _watched(network, options.run, output) as members:
        near = members.admit(device, data)
        run = members.run
    output.say(f"{device} is in {run}, as a neighbour of {' and '.join(near)}.")
    output.finish({"run": run, "report": None, "saved": None, "stopped": []})


@contextmanager
def _watched(network: Network, run: str | None, output: Output) -> Iterator[Members]:
    """The devices of a run, seen from here."""
    with Fleet.lan(network.settings(), n_devices=0) as fleet:
        with output.doing(f"looking for devices for {_LOOK_SECONDS:g} s"):
            fleet.clock.sleep(_LOOK_SECONDS)
        yield Members.of_run(fleet, run)


def report_document(report: GossipReport) -> dict[str, object]:
    """The report as ``--json`` has it."""
    plain: dict[str, object] = msgspec.to_builtins(report)
    return {**plain, "iteration_time_cv": report.iteration_time_cv}


def _check(job: Job, options: GossipOptions) -> None:
    if options.attach and options.detach:
        raise ConfigError("--attach waits for a run, --detach does not. Leave one out.")
    if job.fleet.kind == "local" and (options.attach or options.detach):
        raise ConfigError(
            "emulated devices end with the command that started them (fleet.kind is local). "
            "Leave --attach and --detach out, or use --fleet lan."
        )
    if job.lr_schedule is not None:
        raise ConfigError(
            "gossip has no learning rate schedule ([lr_schedule] is given). Leave it out."
        )


def _collect(trainer: GossipTrainer, options: GossipOptions, data: DataPair) -> GossipReport:
    with Live("", console=Console(stderr=True), transient=True) as live:

        def shown(statuses: Mapping[str, PeerStatus]) -> None:
            live.update(progress_line(statuses))

        return trainer.collect(run=options.run, validate=data.test, on_status=shown)


def _trainer(job: Job, fleet: Fleet) -> GossipTrainer:
    section, learnt = job.gossip, objective(job)
    return GossipTrainer(
        build_model(job),
        learnt.loss,
        optimizer=learnt.optimizer,
        fleet=fleet,
        metrics=learnt.metrics,
        topology=_topology(job, fleet),
        algorithm=section.algorithm,
        local_steps=section.local_steps,
        balance=BalanceSettings(enabled=section.balance, share=section.share),
        importance=section.importance,
        choosing=section.choosing,
        group_size=section.group_size,
        warm_up_epochs=section.warm_up_epochs,
        codec=parse(section.codec),
        consensus_rate=section.consensus_rate,
        seed=job.train.seed,
    )


def _topology(job: Job, fleet: Fleet) -> str | Topology:
    edges = job.gossip.edges
    if edges is None:
        return job.gossip.topology
    text = read_file(edges).decode(errors="replace")
    return edges_in(text, fleet.devices, origin=str(edges))


def _train_set(job: Job, data: DataPair) -> ArrayDataset | DeviceFiles:
    section = job.gossip
    path = section.device_path or job.data.path
    if section.data == "sent":
        return data.train
    return DeviceFiles(job.data.source, path, job.data.normalise, own=section.data == "own")


def _show(report: GossipReport, options: GossipOptions, output: Output) -> None:
    output.show(peers_table(report))
    output.say("")
    output.say(
        f"{report.seconds:.1f} s; models are {report.consensus_distance:.2%} of their mean's norm "
        f"from it; iteration times vary by {report.iteration_time_cv:.1%}"
    )
    if report.evaluation is not None:
        output.say(f"mean model: {report.evaluation.line()}")
    if options.save is not None:
        output.say(f"Saved the mean model: {options.save}")
