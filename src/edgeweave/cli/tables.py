"""Values as tables for people. Computes nothing that the values do not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from edgeweave.cli.accuracy import Accuracy
from edgeweave.core.units import format_bytes, format_seconds
from edgeweave.device import Greeting
from edgeweave.plan import Costs, Explanation, Interval, Plan, ServingPlan, TriedSize
from edgeweave.plan.explanation import likely
from edgeweave.predict.probe import Probe
from edgeweave.serving import ServingReport
from edgeweave.train import DeviceReport, Report

__all__ = [
    "Alone",
    "accuracies_table",
    "alone_table",
    "costs_table",
    "devices_table",
    "explanation_table",
    "fleet_table",
    "plan_table",
    "probes_table",
    "serving_plan_table",
    "serving_table",
    "step_line",
    "tried_line",
]


@dataclass(frozen=True, slots=True)
class Alone:
    """What one device did without the others."""

    device: str
    samples_per_second: float


def explanation_table(plan: Plan, explanation: Explanation) -> Table:
    """Who does what in a step, and how certain that is."""
    predicted = likely(explanation.step_seconds, explanation.step_interval)
    table = _table(
        f"Plan: {plan.schedule}, {plan.n_microbatches} microbatches a step, "
        f"predicted {predicted} a step",
        ["stage", "device", "units"],
        ["computes", "transfers", "idle", "memory", "without it"],
    )
    n_units = plan.stages[-1].stop_unit
    for index, share in enumerate(explanation.devices):
        without = share.step_seconds_without
        table.add_row(
            str(index),
            share.device,
            f"{_units(share.first_unit, share.stop_unit)} of {n_units}",
            likely(share.compute_seconds, share.compute_interval),
            format_seconds(share.transfer_seconds),
            _idle(share.idle_share, share.idle_interval),
            _needed(share.memory_bytes, share.memory_limit_bytes),
            "no plan" if without is None else format_seconds(without),
        )
    table.caption = (
        "in a step; transfers: what links to and from it carry, beside computing; "
        "without it: a step of the best plan of the others"
    )
    return table


def plan_table(plan: Plan) -> Table:
    """Who does what, and how long that is predicted to take."""
    n = plan.n_microbatches
    table = _table(
        f"Plan: {plan.schedule}, {n} microbatches a step, "
        f"predicted {format_seconds(plan.step_seconds)} a step",
        ["stage", "device", "units"],
        ["forward", "backward", "a step", "memory"],
    )
    for index, stage in enumerate(plan.stages):
        table.add_row(
            str(index),
            stage.device,
            _units(stage.first_unit, stage.stop_unit),
            _milliseconds(stage.forward_seconds),
            _milliseconds(stage.backward_seconds),
            _milliseconds(n * (stage.forward_seconds + stage.backward_seconds)),
            format_bytes(stage.memory_bytes),
        )
    table.caption = "forward and backward: each microbatch; a step: computing alone, no waiting"
    return table


def serving_plan_table(plan: ServingPlan) -> Table:
    """Who does what for a request, and how long that is predicted to take."""
    rate = f"{1 / plan.period_seconds:.1f} requests a second" if plan.period_seconds else "at once"
    table = _table(
        f"Plan, predicted: {rate}; a request takes {format_seconds(plan.latency_seconds)} alone, "
        f"p50 {format_seconds(plan.busy_latency_seconds)} when all are busy",
        ["stage", "device", "units"],
        ["computes a request", "busy", "memory"],
    )
    for index, stage in enumerate(plan.stages):
        busy = stage.forward_seconds / plan.period_seconds if plan.period_seconds else 1.0
        table.add_row(
            str(index),
            stage.device,
            _units(stage.first_unit, stage.stop_unit),
            _milliseconds(stage.forward_seconds),
            f"{busy:.0%}",
            format_bytes(stage.memory_bytes),
        )
    past = "; values that skip stages go past them" if plan.skips == "direct" else ""
    table.caption = (
        f"requests of {plan.batch_size} samples, {plan.in_flight} under way at most{past}"
    )
    return table


def serving_table(report: ServingReport) -> Table:
    """What was answered and how fast, and what each device did for it."""
    latency = report.latency
    took = ""
    if latency is not None:
        p50, p99 = format_seconds(latency.p50_seconds), format_seconds(latency.p99_seconds)
        took = f", p50 {p50}, p99 {p99}"
    table = _table(
        f"{report.answered} requests answered, {report.requests_per_second:.1f} a second{took}; "
        f"{report.refused} refused, {report.expired} not in time, {report.resent} sent again",
        ["device", "units"],
        ["requests", "computes", "CPU", "energy", "in", "out", "peak memory"],
    )
    for device in report.devices:
        table.add_row(
            device.device,
            "-" if device.units is None else _units(*device.units),
            str(device.requests),
            format_seconds(device.compute_seconds_per_request),
            format_seconds(device.cpu_seconds_per_request),
            f"{1e3 * device.joules_per_request:.1f} mJ",
            format_bytes(device.bytes_in),
            format_bytes(device.bytes_out),
            format_bytes(device.peak_memory_bytes),
        )
    table.caption = (
        f"computes, CPU, energy: of one request; all devices together "
        f"{1e3 * report.joules_per_request:.1f} mJ, estimated from CPU seconds"
    )
    return table


def tried_line(tried: Sequence[TriedSize]) -> str:
    """Into how many microbatches a batch may be cut, and the step that is predicted for each."""
    shown = [
        f"{each.n_microbatches} of {each.microbatch_size}: "
        + ("nothing fits" if each.step_seconds is None else format_seconds(each.step_seconds))
        for each in tried
    ]
    return f"Microbatches, and the step they are predicted to take: {', '.join(shown)}."


def costs_table(costs: Costs) -> Table:
    """Every unit on every device: forward / backward for each microbatch."""
    names = [device.device for device in costs.devices]
    table = _table(
        "Measured, forward / backward for each microbatch", ["unit"], [*names, "weights", "output"]
    )
    for index, unit in enumerate(costs.units):
        times = [
            f"{_milliseconds(device.forward_seconds[index])} / "
            f"{_milliseconds(device.backward_seconds[index])}"
            for device in costs.devices
        ]
        crossing = costs.cuts[index].forward_bytes if index < len(costs.cuts) else 0
        table.add_row(
            str(index),
            *times,
            format_bytes(unit.parameter_bytes),
            format_bytes(crossing) if crossing else "",
        )
    totals = [
        f"{_milliseconds(sum(device.forward_seconds))} / "
        f"{_milliseconds(sum(device.backward_seconds))}"
        for device in costs.devices
    ]
    weights = format_bytes(sum(unit.parameter_bytes for unit in costs.units))
    table.add_section()
    table.add_row("all", *totals, weights, "", style="bold")
    return table


def probes_table(probes: Mapping[str, Probe]) -> Table:
    """What every device is, and how fast: the costs that fit its probe best."""
    table = _table(
        "Probed",
        ["device", "is", "computes on"],
        ["convolutions", "linear layers", "memory", "an operator", "networks", "one pass"],
    )
    for name, probe in probes.items():
        facts, rates = probe.facts, probe.rates()
        table.add_row(
            name,
            f"{facts.processor}, {facts.cores} cores",
            f"{facts.accelerator or facts.device}, threads={facts.threads}",
            _giga(rates.convolution_macs_per_second, "GMAC/s"),
            _giga(rates.matmul_macs_per_second, "GMAC/s"),
            _giga(rates.bytes_per_second, "GB/s"),
            "" if rates.operator_seconds is None else f"{rates.operator_seconds * 1e6:.1f} us",
            f"{len(probe.networks)} of {len(probe.networks) + len(probe.left_out)}",
            _milliseconds(sum(network.seconds for network in probe.networks)),
        )
    table.caption = (
        "forward passes: multiply-adds, bytes in and out, and what an operator takes beside them; "
        "one pass: forward and backward of all networks that ran"
    )
    return table


def devices_table(report: Report) -> Table:
    """Where each device's time went. Sending and coding, if any, happen beside computing; copies
    are what keeping its state elsewhere took: bytes sent beside, and seconds of computing.
    """
    coding = ["coding"] if any(device.coding_seconds for device in report.devices) else []
    copies = ["copies"] if any(device.copy_bytes_out for device in report.devices) else []
    table = _table(
        "Where each device's time went",
        ["stage", "device"],
        ["computing", "waiting", "idle", "sending", *coding, "in", "out", *copies, "peak memory"],
    )
    for device in report.devices:
        total = device.compute_seconds + device.wait_seconds + device.idle_seconds
        table.add_row(
            str(device.stage),
            device.device,
            _share(device.compute_seconds, total),
            _share(device.wait_seconds, total),
            _share(device.idle_seconds, total),
            format_seconds(device.send_seconds),
            *(format_seconds(device.coding_seconds) for _ in coding),
            format_bytes(device.bytes_in),
            format_bytes(device.bytes_out),
            *(_copies(device) for _ in copies),
            format_bytes(device.peak_memory_bytes),
        )
    table.caption = "waiting: for neighbours within a step; idle: for the next step or evaluation"
    if copies:
        table.caption += "; copies of states, against failures: sent, and time of computing"
    return table


def step_line(report: Report) -> str:
    """Predicted against measured."""
    return (
        f"A step took {format_seconds(report.measured_step_seconds)}, predicted "
        f"{format_seconds(report.plan.step_seconds)} "
        f"({report.predicted_over_measured:.2f} of it)."
    )


def alone_table(samples_per_second: float, alone: Sequence[Alone]) -> Table:
    """The fleet against each of its devices alone, fastest first."""
    table = _table("The fleet against its devices alone", [""], ["samples/s", "fleet is"])
    table.add_row("fleet", f"{samples_per_second:.0f}", "", style="bold")
    for each in sorted(alone, key=lambda one: -one.samples_per_second):
        times = samples_per_second / each.samples_per_second
        table.add_row(
            f"{each.device} alone", f"{each.samples_per_second:.0f}", f"{times:.2f} times as fast"
        )
    total = sum(each.samples_per_second for each in alone)
    table.add_section()
    table.add_row("all alone, summed", f"{total:.0f}", _of(samples_per_second, total))
    return table


def fleet_table(fleet: str, devices: Sequence[tuple[str, Greeting | str]]) -> Table:
    """Who is there; a text stands for what a device that does not answer gave instead."""
    table = _table(
        f"Fleet {fleet}",
        ["device", "edgeweave", "torch", "machine", "computes on", "memory", "works for"],
        [],
    )
    for name, greeting in devices:
        if isinstance(greeting, str):
            table.add_row(name, "", "", greeting, "", "", "")
            continue
        table.add_row(
            name,
            greeting.hello.package,
            greeting.hello.torch,
            f"{greeting.machine}, {greeting.cores} cores",
            _computes_on(greeting),
            _memory(greeting),
            greeting.run or "nobody",
        )
    return table


def accuracies_table(accuracies: Sequence[Accuracy]) -> Table:
    """Predicted before, beside what was measured."""
    table = _table(
        "Predicted before this profile, beside it",
        ["device"],
        ["a unit's error", "in the interval", "forward in all", "backward in all"],
    )
    for each in accuracies:
        table.add_row(
            each.device,
            f"{each.mean_error:.0%}",
            f"{each.within_interval:.0%}",
            f"{each.forward_ratio:.2f} times",
            f"{each.backward_ratio:.2f} times",
        )
    table.caption = "a unit's error: mean, forward and backward; the interval is meant to hold 90 %"
    return table


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left", title_style="bold")
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table


def _units(first: int, stop: int) -> str:
    return str(first) if first == stop - 1 else f"{first} to {stop - 1}"


def _idle(share: float, interval: Interval | None) -> str:
    if interval is None:
        return f"{share:.0%}"
    return f"{share:.0%} ({interval.low:.0%} to {interval.high:.0%})"


def _needed(n_bytes: int, limit_bytes: int | None) -> str:
    needed = format_bytes(n_bytes)
    return needed if limit_bytes is None else f"{needed} of {format_bytes(limit_bytes)}"


def _computes_on(greeting: Greeting) -> str:
    speed = "" if greeting.speed is None else f", speed {greeting.speed:g}"
    return f"{greeting.device}, {greeting.threads}{speed}"


def _memory(greeting: Greeting) -> str:
    total = format_bytes(greeting.memory_bytes)
    limit = greeting.memory_limit_bytes
    return total if limit is None else f"{format_bytes(limit)} of {total}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def _giga(rate: float | None, unit: str) -> str:
    return "" if rate is None else f"{rate / 1e9:.1f} {unit}"


def _share(seconds: float, total: float) -> str:
    share = seconds / total if total else 0.0
    return f"{seconds:.1f} s  {share * 100:3.0f} %"


def _copies(device: DeviceReport) -> str:
    return f"{format_bytes(device.copy_bytes_out)}, {format_seconds(device.snapshot_seconds)}"


def _of(part: float, whole: float) -> str:
    return f"{part / whole * 100:.0f} % of it" if whole else ""
