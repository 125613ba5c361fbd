"""What serving took: requests, latencies, and what each device did for them. Frozen values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles

from edgeweave.device import ServingStatistics
from edgeweave.plan import ServingPlan
from edgeweave.serving.desk import DeskStatistics

__all__ = ["Change", "DeviceUse", "Latency", "ServingReport", "report_of"]


@dataclass(frozen=True, slots=True)
class Change:
    """The model is served by another plan from now on. ``line()`` says it."""

    at_seconds: float
    """From when the endpoint was made to the first request that could be sent by the new plan."""
    why: str
    plan: ServingPlan
    seconds: float
    """From the news to the first request that could be sent by the new plan."""
    n_resent: int
    """Requests that were under way and are sent again."""

    def line(self) -> str:
        """One sentence for a person."""
        again = f", {self.n_resent} requests sent again" if self.n_resent else ""
        noticed = self.at_seconds - self.seconds
        return (
            f"{noticed:.1f} s: {self.why}; {self.seconds:.2f} s later served by "
            f"{', '.join(self.plan.devices)}{again}."
        )


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from asking to the answer, waiting for room in the queue included."""

    mean_seconds: float
    p50_seconds: float
    p95_seconds: float
    p99_seconds: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency | None:
        """Of so many answers; None of none."""
        if not seconds:
            return None
        cuts = quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else [seconds[0]]
        at = {share: cuts[min(share, len(cuts)) - 1] for share in (50, 95, 99)}
        return cls(sum(seconds) / len(seconds), at[50], at[95], at[99])


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """What a device did, per answered request where it says so.

    Energy is an estimate: CPU seconds times what a busy core draws above idle.
    """

    device: str
    units: tuple[int, int] | None
    """The first unit and the one behind the last that it holds now; None if it holds none."""
    requests: int
    compute_seconds: float
    compute_seconds_per_request: float
    """Its share of the latency of a request that waits for no other."""
    wait_seconds: float
    cpu_seconds: float
    cpu_seconds_per_request: float
    joules: float
    joules_per_request: float
    bytes_in: int
    bytes_out: int
    peak_memory_bytes: int


@dataclass(frozen=True, slots=True)
class ServingReport:
    """What an endpoint did so far."""

    plan: ServingPlan | None
    """The one in use; None while nobody can serve."""
    answered: int
    refused: int
    expired: int
    resent: int
    duplicates: int
    seconds: float
    """From the first request to the last answer."""
    latency: Latency | None
    devices: tuple[DeviceUse, ...]
    """Those that serve now."""
    changes: tuple[Change, ...]

    @property
    def requests_per_second(self) -> float:
        return self.answered / self.seconds if self.seconds else 0.0

    @property
    def joules_per_request(self) -> float:
        """Of all devices together."""
        return sum(each.joules_per_request for each in self.devices)


def report_of(
    desk: DeskStatistics,
    plan: ServingPlan | None,
    statistics: Mapping[str, ServingStatistics],
    changes: Sequence[Change],
    *,
    watts: float,
) -> ServingReport:
    """Put together what the desk and the devices counted."""
    began, ended = desk.first_seconds, desk.last_seconds
    return ServingReport(
        plan=plan,
        answered=desk.answered,
        refused=desk.refused,
        expired=desk.expired,
        resent=desk.resent,
        duplicates=desk.duplicates,
        seconds=0.0 if began is None or ended is None else ended - began,
        latency=Latency.of(desk.latencies),
        devices=tuple(_use(name, each, plan, watts) for name, each in statistics.items()),
        changes=tuple(changes),
    )


def _use(
    device: str, found: ServingStatistics, plan: ServingPlan | None, watts: float
) -> DeviceUse:
    held = [s for s in (plan.stages if plan else ()) if s.device == device]
    n_requests = max(found.requests, 1)
    cpu = found.cpu_seconds / n_requests
    return DeviceUse(
        device=device,
        units=(held[0].first_unit, held[0].stop_unit) if held else None,
        requests=found.requests,
        compute_seconds=found.compute_seconds,
        compute_seconds_per_request=found.compute_seconds / n_requests,
        wait_seconds=found.wait_seconds,
        cpu_seconds=found.cpu_seconds,
        cpu_seconds_per_request=cpu,
        joules=watts * found.cpu_seconds,
        joules_per_request=watts * cpu,
        bytes_in=found.bytes_in,
        bytes_out=found.bytes_out,
        peak_memory_bytes=found.peak_memory_bytes,
    )
