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
from edgeweave.cli.network import COORDINATOR_PORT, Network
from edgeweave.cli.output import Output, read_file, write_file
from edgeweave.codec import parse
from edgeweave.core.errors import ConfigError
from edgeweave.data import ArrayDataset, DataPair, load_source, told_split
from edgeweave.device import PeerStatus, SourceData
from edgeweave.fleet import Fleet
from edgeweave.gossip import DeviceFiles, GossipReport, GossipTrainer, Members, wait_members
from edgeweave.mixing import BalanceSettings, Topology, edges_in
from edgeweave.train.jobs.job import Job

__all__ = ["GossipOptions", "admit", "attach", "gossip", "stop"]

_LOOK_SECONDS = 10.0
"""How long to wait for any device to be there."""


@dataclass(frozen=True, slots=True)
class GossipOptions:
    """What the command line says about one run."""

    fleet: FleetOptions
    detach: bool = False
    run: str | None = None
    save: Path | None = None


def gossip(job: Job, options: GossipOptions, output: Output) -> None:
    """Start, wait, evaluate, show; or only start."""
    _check(job, is_alone=options.detach)
    section = job.gossip
    data = _data(job, output)
    with open_fleet(job.fleet, options.fleet, output) as fleet:
        trainer = _trainer(job, fleet, _topology(job, fleet))
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
        with _told_how_to_go_on(run, output, goes_on=not fleet.is_local):
            _finish(trainer, run, data, options, output)


def attach(job: Job, options: GossipOptions, output: Output) -> None:
    """Wait for a run that goes on, whoever of its devices is left; evaluate and show it."""
    _check(job, is_alone=True)
    data = _data(job, output)
    network = replace(options.fleet.network, fleet=job.fleet.namespace, connect=job.fleet.connect)
    port = 0 if network.connect else COORDINATOR_PORT
    seconds = options.fleet.wait_seconds
    with _watched(network, options.run, output, port=port, seconds=seconds) as (fleet, members):
        output.say(f"run {members.run} is on {', '.join(members.devices)}")
        with _told_how_to_go_on(members.run, output, goes_on=True):
            _finish(_trainer(job, fleet, "ring"), members.run, data, options, output)


def stop(network: Network, run: str, output: Output) -> None:
    """Let the devices of a run do no more steps. They keep their models, to be fetched."""
    with _watched(network, run, output) as (_fleet, members):
        told = members.stop()
        statuses = members.statuses()
    for line in run_lines(statuses):
        output.say(line)
    output.say(f"{run} was stopped on {', '.join(told) or 'no device'}.")
    absent = sorted({peer for each in statuses.values() for peer in each.peers} - {*told})
    if absent:
        output.say(f"Not there: {', '.join(absent)}. Stop it again if one of them goes on.")
    output.finish({"run": run, "report": None, "saved": None, "stopped": list(told)})


def admit(job: Job, options: GossipOptions, device: str, output: Output) -> None:
    """Let another device into a run that goes on. It trains on all its files of the job's data."""
    network = replace(options.fleet.network, fleet=job.fleet.namespace, connect=job.fleet.connect)
    path = job.gossip.device_path or job.data.path
    data = SourceData(job.data.source, None if path is None else str(path), job.data.normalise)
    with _watched(network, options.run, output) as (_fleet, members):
        near = members.admit(device, data)
        run = members.run
    output.say(f"{device} is in {run}, as a neighbour of {' and '.join(near)}.")
    output.finish({"run": run, "report": None, "saved": None, "stopped": []})


@contextmanager
def _watched(
    network: Network,
    run: str | None,
    output: Output,
    *,
    port: int = 0,
    seconds: float = _LOOK_SECONDS,
) -> Iterator[tuple[Fleet, Members]]:
    """The devices of a run, seen from here by somebody who has no part in it."""
    with Fleet.lan(network.settings(port=port), n_devices=0) as fleet:
        with output.doing("looking for the run"):
            members = wait_members(fleet, run, seconds=seconds)
        yield fleet, members


def report_document(report: GossipReport) -> dict[str, object]:
    """The report as ``--json`` has it."""
    plain: dict[str, object] = msgspec.to_builtins(report)
    return {**plain, "iteration_time_cv": report.iteration_time_cv}


def _check(job: Job, *, is_alone: bool) -> None:
    """``is_alone``: the run is to go on without this command, or has done so."""
    if job.fleet.kind == "local" and is_alone:
        raise ConfigError(
            "emulated devices end with the command that started them (fleet.kind is local). "
            "Leave --attach and --detach out, or use --fleet lan."
        )
    if job.lr_schedule is not None:
        raise ConfigError(
            "gossip has no learning rate schedule ([lr_schedule] is given). Leave it out."
        )


@contextmanager
def _told_how_to_go_on(run: str, output: Output, *, goes_on: bool) -> Iterator[None]:
    """Ctrl-C ends the command, not the run."""
    try:
        yield
    except KeyboardInterrupt:
        if goes_on:
            output.say(f"{run} goes on without this command: --attach fetches it, --stop ends it.")
        raise


def _data(job: Job, output: Output) -> DataPair:
    data = load_source(job.data.source, path=job.data.path, normalise=job.data.normalise)
    output.say(data.description)
    return data


def _finish(
    trainer: GossipTrainer, run: str, data: DataPair, options: GossipOptions, output: Output
) -> None:
    """Wait for a run, fetch and evaluate it, and show what came of it."""
    with Live("", console=Console(stderr=True), transient=True) as live:

        def shown(statuses: Mapping[str, PeerStatus]) -> None:
            live.update(progress_line(statuses))

        report = trainer.collect(run=run, validate=data.test, on_status=shown)
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


def _trainer(job: Job, fleet: Fleet, topology: str | Topology) -> GossipTrainer:
    section, learnt = job.gossip, objective(job)
    return GossipTrainer(
        build_model(job),
        learnt.loss,
        optimizer=learnt.optimizer,
        fleet=fleet,
        metrics=learnt.metrics,
        topology=topology,
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
    for peer in report.peers:
        if peer.status is not None and peer.status.error is not None:
            output.say(f"{peer.device} could not go on: {peer.status.error}")
    output.say(
        f"{report.seconds:.1f} s; models are {report.consensus_distance:.2%} of their mean's norm "
        f"from it; iteration times vary by {report.iteration_time_cv:.1%}"
    )
    if report.evaluation is not None:
        output.say(f"mean model: {report.evaluation.line()}")
    if options.save is not None:
        output.say(f"Saved the mean model: {options.save}")
