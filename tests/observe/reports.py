"""Reports made by hand: what a pipeline of two would have recorded, step after step."""

from __future__ import annotations

from edgeweave.device import TraceEvent
from edgeweave.plan import Plan, Stage
from edgeweave.train import DeviceReport, EpochRecord, Evaluation, Report

N_MICROBATCHES = 2
STEP_SECONDS = 0.1


def plan() -> Plan:
    return Plan(
        stages=(Stage("pi-a", 0, 3, 0.004, 0.008, 1 << 20), Stage("pi-b", 3, 4, 0.002, 0.004, 512)),
        schedule="1f1b",
        n_microbatches=N_MICROBATCHES,
        extra_in_flight=0,
        period_seconds=0.012,
        step_seconds=0.05,
    )


def step_events(step: int, *, n_microbatches: int = N_MICROBATCHES) -> list[TraceEvent]:
    """A step of one device: forward and backward of each microbatch, a wait, an update."""
    start = step * STEP_SECONDS
    events = []
    for microbatch in range(n_microbatches):
        moment = start + microbatch * 0.03
        events.append(TraceEvent("forward", step, microbatch, moment, moment + 0.01))
        events.append(TraceEvent("backward", step, microbatch, moment + 0.01, moment + 0.03))
    events.append(TraceEvent("wait", step, -1, start + 0.06, start + 0.08))
    events.append(TraceEvent("update", step, -1, start + 0.08, start + 0.09))
    return events


def report(*events: TraceEvent) -> Report:
    """A report of which every device recorded the same events."""
    return Report(
        plan=plan(),
        epochs=(EpochRecord(0, 3, 0.5, {}, 80.0, Evaluation(0.4, {"accuracy": 0.9}, 10)),),
        step_losses=(0.9, 0.5),
        n_samples=16,
        seconds=0.2,
        step_seconds=(0.1, 0.1),
        devices=tuple(
            DeviceReport(
                name, stage, 0.6, 0.05, 0.01, 0.0, 0.3, 0.1, 1024, 2048, 1 << 28, tuple(events)
            )
            for stage, name in enumerate(("pi-a", "pi-b"))
        ),
    )


def three_steps() -> Report:
    """Two full steps, one with half a batch, and an evaluation after them."""
    half = step_events(2, n_microbatches=1)
    evaluation = [TraceEvent("idle", -1, -1, 0.3, 0.4), TraceEvent("evaluate", 3, 0, 0.4, 0.5)]
    return report(*step_events(0), *step_events(1), *half, *evaluation)
