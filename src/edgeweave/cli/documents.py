"""Values as the documents of ``--json``. Keys are names with units; docs/reference-cli.md has them.

What JSON cannot say (NaN, infinity) becomes null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from edgeweave.cli.accuracy import Accuracy
from edgeweave.plan import Costs, Decision, Explanation, Plan, TriedSize
from edgeweave.predict.probe import Probe
from edgeweave.serving import ServingReport
from edgeweave.train import DeviceReport, Recovery, Report

__all__ = [
    "accuracies_document",
    "costs_document",
    "explanation_document",
    "plan_document",
    "probes_document",
    "report_document",
    "serving_document",
    "tried_document",
]


def plan_document(plan: Plan) -> dict[str, object]:
    """Stages, schedule and predicted times: what a plan file holds under ``plan``."""
    return _plain(plan)


def explanation_document(explanation: Explanation) -> dict[str, object]:
    """The answers, and the same as sentences."""
    return {
        **_plain(explanation),
        "speedup": explanation.speedup,
        "lines": list(explanation.lines()),
    }


def costs_document(costs: Costs) -> dict[str, object]:
    """Sizes per unit, seconds per unit and device, and the links."""
    return _plain(costs)


def tried_document(tried: Sequence[TriedSize]) -> list[dict[str, object]]:
    """Count, size and predicted step of the microbatches that were compared."""
    return [_plain(each) for each in tried]


def probes_document(probes: Mapping[str, Probe]) -> dict[str, object]:
    """Facts, seconds by network and unit, and rates, by device."""
    return {
        name: {**_plain(probe), "rates": _plain(probe.rates())} for name, probe in probes.items()
    }


def accuracies_document(accuracies: Sequence[Accuracy]) -> dict[str, object]:
    """How well the probe predicted each device."""
    return {each.device: _plain(each) for each in accuracies}


def report_document(report: Report) -> dict[str, object]:
    """History, speed and where time went. Events are in the trace, not here."""
    return {
        "plan": plan_document(report.plan),
        "epochs": msgspec.to_builtins(report.epochs),
        "step_losses": list(report.step_losses),
        "n_samples": report.n_samples,
        "seconds": report.seconds,
        "samples_per_second": report.samples_per_second,
        "measured_step_seconds": report.measured_step_seconds,
        "predicted_step_seconds": report.plan.step_seconds,
        "predicted_over_measured": report.predicted_over_measured,
        "devices": [_device(device) for device in report.devices],
        "chaos": msgspec.to_builtins(report.chaos),
        "replans": [_decision(decision) for decision in report.replans],
        "recoveries": [_recovery(recovery) for recovery in report.recoveries],
        "service": _plain(report.service),
        "codec_changes": [
            {**msgspec.to_builtins(change), "line": change.line()}
            for change in report.codec_changes
        ],
    }


def serving_document(report: ServingReport) -> dict[str, object]:
    """Requests, latencies, devices, and the plans that were used."""
    return {
        **_plain(report),
        "requests_per_second": report.requests_per_second,
        "joules_per_request": report.joules_per_request,
        "changes": [{**_plain(change), "line": change.line()} for change in report.changes],
    }


def _decision(decision: Decision) -> dict[str, object]:
    return {
        "line": decision.line(),
        "step": decision.step,
        "verdict": decision.verdict,
        "devices": {each.device: each.ratio for each in decision.departures if each.target is None},
        "links": [
            {"source": each.device, "target": each.target, "ratio": each.ratio}
            for each in decision.departures
            if each.target is not None
        ],
        "arrivals": list(decision.arrivals),
        "new_plan": plan_document(decision.new),
        "old_step_seconds": decision.old_step_seconds,
        "new_step_seconds": decision.new_step_seconds,
        "move_bytes": decision.move_bytes,
        "move_seconds": decision.move_seconds,
        "break_even_steps": decision.break_even_steps,
        "steps_left": decision.steps_left,
    }


def _recovery(recovery: Recovery) -> dict[str, object]:
    return {
        "line": recovery.line(),
        "step": recovery.step,
        "lost": list(recovery.lost),
        "devices": list(recovery.plan.devices),
        "resumed_step": recovery.resumed_step,
        "recomputed_steps": recovery.recomputed_steps,
        "silent_seconds": recovery.silent_seconds,
        "seconds": recovery.seconds,
    }


def _device(device: DeviceReport) -> dict[str, object]:
    found = _plain(device)
    del found["events"]
    return found


def _plain(value: object) -> dict[str, object]:
    plain: dict[str, object] = msgspec.to_builtins(value)
    return plain
