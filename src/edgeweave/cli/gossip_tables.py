"""Runs of gossip as tables and lines for people."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from edgeweave.core.units import format_bytes, format_seconds
from edgeweave.device import Enrolled, PeerStatus
from edgeweave.gossip import GossipReport

__all__ = ["peers_table", "progress_line", "run_lines"]


def peers_table(report: GossipReport) -> Table:
    """Every peer: what it did, what it took, and what its own model is worth."""
    table = Table(title=f"Run {report.run}", title_justify="left", box=None, pad_edge=False)
    columns = ["steps", "samples", "share", "iteration", "waited", "choosing", "sent", "own model"]
    table.add_column("device")
    for name in columns:
        table.add_column(name, justify="right")
    for peer in report.peers:
        status = peer.status
        if status is None:
            table.add_row(peer.device, *["?"] * len(columns))
            continue
        own = peer.evaluation
        metric = next(iter(own.metrics.items()), ("loss", own.loss)) if own else None
        table.add_row(
            peer.device,
            f"{status.step} of {status.steps}",
            str(status.n_samples),
            f"{status.share:.0%}",
            format_seconds(status.iteration_seconds),
            format_seconds(status.waited_seconds),
            format_seconds(_choosing(peer.enrolled, status)),
            format_bytes(status.bytes_sent),
            "gone" if metric is None else f"{metric[0]} {metric[1]:.4f}",
        )
    return table


def progress_line(statuses: Mapping[str, PeerStatus]) -> str:
    """Where a run is, in one line."""
    if not statuses:
        return "nobody answers"
    steps = [status.step for status in statuses.values()]
    losses = [status.loss for status in statuses.values() if status.loss is not None]
    loss = f", loss {sum(losses) / len(losses):.4f}" if losses else ""
    total = max(status.steps for status in statuses.values())
    return f"{len(statuses)} devices, step {min(steps)} to {max(steps)} of {total}{loss}"


def run_lines(statuses: Mapping[str, PeerStatus]) -> list[str]:
    """A line for each run that devices are in, and one for each device that cannot go on."""
    lines = []
    for run in sorted({status.run for status in statuses.values() if status.run is not None}):
        own = {name: status for name, status in statuses.items() if status.run == run}
        done = all(status.phase == "finished" for status in own.values())
        end = "; done, its models can be fetched" if done else ""
        lines.append(f"{run} (gossip): {progress_line(own)}; on {', '.join(own)}{end}")
        lines += [f"  {name} cannot go on: {s.error}" for name, s in own.items() if s.error]
    return lines


def _choosing(enrolled: Enrolled | None, status: PeerStatus) -> float:
    """Seconds of grouping samples once, and of scoring groups."""
    return status.scoring_seconds + (0.0 if enrolled is None else enrolled.grouping_seconds)
