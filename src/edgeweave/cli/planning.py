"""``edgeweave profile`` and ``edgeweave plan``: measure the devices; train nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgeweave.cli.accuracy import Accuracy
from edgeweave.cli.documents import (
    accuracies_document,
    costs_document,
    plan_document,
    probes_document,
    tried_document,
)
from edgeweave.cli.jobs import FleetOptions, Session, explained, open_fleet, open_session
from edgeweave.cli.output import Output, write_file
from edgeweave.cli.super_neurons import plan_slices
from edgeweave.cli.tables import accuracies_table, costs_table, probes_table, tried_line
from edgeweave.core.errors import ConfigError, PlanError
from edgeweave.observe import draw_plan
from edgeweave.plan import Costs, Plan, to_json
from edgeweave.train import device_latencies, predict_units, probe_devices
from edgeweave.train.jobs.job import Job

__all__ = ["PlanFiles", "make_plan", "measured", "probe", "profile"]


@dataclass(frozen=True, slots=True)
class PlanFiles:
    """Where a plan is kept, and where its picture; nowhere if the command line names no place."""

    save: Path | None = None
    plot: Path | None = None


def profile(job: Job, options: FleetOptions, output: Output) -> None:
    """Show what every unit takes on every device, and how well that was predicted before."""
    job = replace(job, train=replace(job.train, measure="profile"))
    with open_session(job, options, output) as session:
        with output.doing("probing every device"):
            probes = probe_devices(session.fleet)
        latencies = device_latencies(probes, session.experience)
        costs = _costs(session, output)
        measured = session.trainer.measured
        assert measured is not None, "costs are about something that was measured"
        output.show(costs_table(costs))
    accuracies = [
        Accuracy.of(costs.device(name), predicted)
        for name, predicted in predict_units(*measured, latencies).items()
    ]
    output.show(accuracies_table(accuracies))
    output.finish({"costs": costs_document(costs), "predicted": accuracies_document(accuracies)})


def probe(job: Job, options: FleetOptions, output: Output) -> None:
    """Show what every device is and how fast, whatever the model."""
    with (
        open_fleet(job.fleet, options, output) as fleet,
        output.doing("probing every device, about two seconds each"),
    ):
        probes = probe_devices(fleet)
    output.show(probes_table(probes))
    output.finish({"probes": probes_document(probes)})


def make_plan(job: Job, options: FleetOptions, output: Output, files: PlanFiles) -> None:
    """Show the plan and why it is so; keep it in a file for ``train --plan``, draw it."""
    if job.super_neurons is not None:
        if files != PlanFiles():
            raise ConfigError(
                "a plan of super neurons is made anew by each training, and has no steps to draw "
                "([super_neurons] is in the job, and --save or --plot given). Leave one of them "
                "out."
            )
        plan_slices(job, options, output)
        return
    with open_session(job, options, output) as session:
        plan, costs = measured(session, output)
    explanation = explained(plan, costs, output)
    output.say("")
    if files.save is not None:
        write_file(files.save, to_json(plan))
        output.say(f"Saved {files.save}. Train with it: edgeweave train JOB --plan {files.save}")
    if files.plot is not None:
        write_file(files.plot, draw_plan(plan, costs))
        output.say(f"Drew one step: {files.plot}, to open in a browser.")
    output.finish(
        {
            "plan": plan_document(plan),
            "explanation": explanation,
            "microbatches": tried_document(session.trainer.tried),
            "saved": None if files.save is None else str(files.save),
            "plot": None if files.plot is None else str(files.plot),
        }
    )


def measured(session: Session, output: Output, *, resume: Path | None = None) -> tuple[Plan, Costs]:
    """Measure every device, or predict what it takes, and plan.

    ``resume`` as ``PipelineTrainer.prepare`` has it.
    """
    trainer, settings = session.trainer, session.job.train
    doing = {
        "profile": "measuring every unit on every device",
        "probe": "probing every device, about two seconds each",
    }
    with output.doing(doing[settings.measure]):
        plan = trainer.prepare(session.data.train, batch_size=settings.batch_size, resume=resume)
    costs = trainer.costs
    assert costs is not None, "a trainer without a plan measures"
    if trainer.tried:
        output.say(tried_line(trainer.tried))
    return plan, costs


def _costs(session: Session, output: Output) -> Costs:
    """The costs, even if no plan fits them: then they are what one wants to see."""
    try:
        return measured(session, output)[1]
    except PlanError:
        if session.trainer.costs is None:
            raise
        return session.trainer.costs
