"""``edgeweave plan`` and ``train`` of a job with ``[super_neurons]``: in slices, over links that
lose.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import safetensors.torch
from rich.table import Table

from edgeweave.cli.job_parts import build_model, objective
from edgeweave.cli.jobs import FleetOptions, open_fleet
from edgeweave.cli.output import Output, write_file
from edgeweave.codec import parse
from edgeweave.core.errors import ConfigError
from edgeweave.core.units import format_bytes, format_seconds
from edgeweave.data import load_source
from edgeweave.fleet import Fleet
from edgeweave.plan import SliceExplanation
from edgeweave.train import SuperNeuronReport, SuperNeuronTrainer
from edgeweave.train.jobs.job import Job, SuperNeuronSection

__all__ = [
    "members_table",
    "plan_slices",
    "report_lines",
    "slice_document",
    "slice_plan_document",
    "slices_table",
    "train_slices",
]


def plan_slices(job: Job, fleet: FleetOptions, output: Output) -> None:
    """Measure devices and links, show who would have which slices and what comes of it; train
    nothing.
    """
    section = job.super_neurons
    assert section is not None, "whoever calls has looked"
    _check(job)
    data = load_source(job.data.source, path=job.data.path, normalise=job.data.normalise)
    output.say(data.description)
    with open_fleet(job.fleet, fleet, output) as devices:
        trainer = _trainer(job, section, devices)
        with output.doing("measuring devices and links"):
            found = trainer.explain(data.train, batch_size=job.train.batch_size)
    output.show(slices_table(found))
    output.say("")
    for line in found.lines():
        output.say(line)
    output.finish(slice_plan_document(found))


def slice_plan_document(found: SliceExplanation) -> dict[str, object]:
    """The plan and what is predicted of it, as ``--json`` has it."""
    plain: dict[str, object] = msgspec.to_builtins(found)
    plan = plain.pop("plan")
    explanation = {**plain, "speedup": found.speedup, "lines": list(found.lines())}
    return {"plan": plan, "explanation": explanation}


def slices_table(found: SliceExplanation) -> Table:
    """Every device: its group, its layers, its share of their weights, and its work in a step."""
    table = Table(
        title=f"Plan: super neurons, mode {found.plan.mode}, {len(found.plan.groups)} groups",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("group", justify="right")
    table.add_column("device")
    table.add_column("units")
    for name in ("layers", "of all weights", "computes"):
        table.add_column(name, justify="right")
    for each in found.members:
        table.add_row(
            str(each.group),
            each.device,
            f"{each.first_unit} to {each.stop_unit - 1}",
            str(each.n_layers),
            f"{each.weights_share:.0%}",
            format_seconds(each.compute_seconds),
        )
    table.caption = (
        "devices of a group have some neurons of each of its layers; computes: in a step, messages "
        "included"
    )
    return table


def train_slices(
    job: Job, fleet: FleetOptions, output: Output, *, save: Path | None, resume: bool
) -> None:
    """Plan, show the plan, train, show what reached whom."""
    section = job.super_neurons
    assert section is not None, "whoever calls has looked"
    _check(job)
    data = load_source(job.data.source, path=job.data.path, normalise=job.data.normalise)
    output.say(data.description)
    with open_fleet(job.fleet, fleet, output) as devices:
        trainer = _trainer(job, section, devices)
        with output.doing("measuring devices and links"):
            plan = trainer.prepare(data.train, batch_size=job.train.batch_size)
        for line in plan.lines():
            output.say(line)
        report = trainer.fit(
            data.train,
            batch_size=job.train.batch_size,
            epochs=job.train.epochs,
            validate=data.test,
            checkpoint=job.train.checkpoint_directory,
            resume=resume,
        )
        if save is not None:
            write_file(save, safetensors.torch.save(trainer.state_dict()))
    output.show(members_table(report))
    output.say("")
    for line in report_lines(report):
        output.say(line)
    if save is not None:
        output.say(f"Saved the weights: {save}")
    output.finish({"report": slice_document(report), "saved": None if save is None else str(save)})


def slice_document(report: SuperNeuronReport) -> dict[str, object]:
    """The report as ``--json`` has it."""
    plain: dict[str, object] = msgspec.to_builtins(report)
    return {
        **plain,
        "samples_per_second": report.samples_per_second,
        "measured_step_seconds": report.measured_step_seconds,
        "lost_share": report.lost_share,
    }


def members_table(report: SuperNeuronReport) -> Table:
    """Every device: where its time went, and what reached it of each other one."""
    table = Table(title="What reached whom", title_justify="left", box=None, pad_edge=False)
    table.add_column("group", justify="right")
    table.add_column("device")
    for name in ("computing", "waiting", "idle", "in", "out"):
        table.add_column(name, justify="right")
    table.add_column("arrived, of")
    table.add_column("masks", justify="right")
    table.add_column("overdue", justify="right")
    for member in report.members:
        told = member.statistics
        if told is None:
            table.add_row(str(member.group), member.device, "away")
            continue
        total = told.compute_seconds + told.wait_seconds + told.idle_seconds
        times = (told.compute_seconds, told.wait_seconds, told.idle_seconds)
        arrived = (
            f"{each.sender} {each.arrived / each.datagrams:.1%}"
            for each in told.senders
            if each.datagrams
        )
        table.add_row(
            str(member.group),
            member.device,
            *(f"{seconds / total:.0%}" if total else "" for seconds in times),
            format_bytes(told.bytes_in),
            format_bytes(told.bytes_out),
            ", ".join(arrived),
            str(sum(each.masked for each in told.senders)),
            str(sum(each.overdue for each in told.senders)),
        )
    table.caption = (
        "arrived: share of datagrams; masks: messages of which nothing came, or whose sender was "
        "away; overdue: given up at a learnt deadline"
    )
    return table


def report_lines(report: SuperNeuronReport) -> Iterator[str]:
    """Speed, losses, absences, moves, and what was learnt."""
    if report.step_seconds:
        predicted = report.plan.predicted
        plan = "" if predicted is None else f" (predicted {format_seconds(predicted.step_seconds)})"
        yield f"a step takes {format_seconds(report.measured_step_seconds)}{plan}"
    yield (
        f"{report.n_samples} samples in {report.seconds:.1f} s: "
        f"{report.samples_per_second:.0f} samples/s, without evaluation."
    )
    yield f"{report.lost_share:.1%} of what devices sent each other was lost."
    yield from (choice.line() for choice in report.choices)
    yield from (absence.line() for absence in report.absences)
    yield from (move.line() for move in report.moves)
    last = report.epochs[-1].validation if report.epochs else None
    if last is not None:
        yield f"validation: {last.line()}"


def _trainer(job: Job, section: SuperNeuronSection, fleet: Fleet) -> SuperNeuronTrainer:
    learnt = objective(job)
    return SuperNeuronTrainer(
        build_model(job),
        learnt.loss,
        optimizer=learnt.optimizer,
        fleet=fleet,
        metrics=learnt.metrics,
        lr_schedule=learnt.lr_schedule,
        groups=section.groups,
        mode=section.mode,
        delivery=section.delivery,
        measure=job.train.measure,
        codec=parse(job.train.codec),
        seed=job.train.seed,
    )


def _check(job: Job) -> None:
    """``ConfigError`` for what trains otherwise than super neurons do."""
    train = job.train
    unknown = {
        "clip_grad_norm": train.clip_grad_norm is not None,
        'codec = "auto"': train.codec == "auto",
        "checkpoint_every_steps": train.checkpoint_every_steps is not None,
        "weight_aggregation": train.weight_aggregation is not None,
        "n_microbatches": train.n_microbatches not in ("auto", 1),
    }
    for name, is_given in unknown.items():
        if is_given:
            raise ConfigError(
                f"super neurons know no {name} (train.{name} is given beside [super_neurons]). "
                "Leave one of them out."
            )
