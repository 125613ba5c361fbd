"""``edgeweave train``: the plan, the training, and where the time went."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch

from edgeweave.cli.documents import plan_document, report_document
from edgeweave.cli.jobs import FleetOptions, Session, explained, open_session
from edgeweave.cli.output import Output, read_file, write_file
from edgeweave.cli.planning import measured
from edgeweave.cli.super_neurons import train_slices
from edgeweave.cli.tables import devices_table, plan_table, step_line
from edgeweave.core.errors import ConfigError
from edgeweave.plan import from_json
from edgeweave.train import Report
from edgeweave.train.jobs.job import Job

__all__ = ["TrainOptions", "train"]


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What the command line says about one training."""

    fleet: FleetOptions
    resume: bool = False
    plan: Path | None = None
    save: Path | None = None


def train(job: Job, options: TrainOptions, output: Output) -> None:
    """Plan, show the plan, train, show what it took."""
    if job.super_neurons is not None:
        if options.plan is not None:
            raise ConfigError(
                "super neurons make their own plan ([super_neurons] is in the job, and --plan "
                "given). Leave one of them out."
            )
        train_slices(job, options.fleet, output, save=options.save, resume=options.resume)
        return
    given = None if options.plan is None else from_json(read_file(options.plan))
    with open_session(job, options.fleet, output, plan=given) as session:
        explanation = None
        if given is None:
            kept = job.train.checkpoint_directory if options.resume else None
            plan, costs = measured(session, output, resume=kept)
            explanation = explained(plan, costs, output)
        else:
            plan = given
            output.show(plan_table(plan))
        output.say("")
        report = _fit(session, options)
        if options.save is not None:
            weights = session.trainer.state_dict()
            write_file(options.save, safetensors.torch.save(weights))
    _show(report, options, output)
    output.finish(
        {
            "plan": plan_document(plan),
            "explanation": explanation,
            "report": report_document(report),
            "saved": None if options.save is None else str(options.save),
        }
    )


def _fit(session: Session, options: TrainOptions) -> Report:
    settings = session.job.train
    return session.trainer.fit(
        session.data.train,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        validate=session.data.test,
        checkpoint=settings.checkpoint_directory,
        checkpoint_every=settings.checkpoint_every_steps,
        resume=options.resume,
    )


def _show(report: Report, options: TrainOptions, output: Output) -> None:
    output.show(devices_table(report))
    output.say("")
    if report.step_seconds:
        output.say(step_line(report))
    output.say(
        f"{report.n_samples} samples in {report.seconds:.1f} s: "
        f"{report.samples_per_second:.0f} samples/s, without evaluation and checkpoints."
    )
    for decision in report.replans:
        output.say(decision.line())
    for change in report.codec_changes:
        output.say(change.line())
    for recovery in report.recoveries:
        output.say(recovery.line())
    output.say(report.service.line())
    last = report.epochs[-1].validation if report.epochs else None
    if last is not None:
        output.say(f"validation: {last.line()}")
    if options.save is not None:
        output.say(f"Saved the weights: {options.save}")
