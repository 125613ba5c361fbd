"""What a run did, as values: history, throughput, and where each device's time went."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median

import msgspec

from edgeweave.core.evaluation import Evaluation
from edgeweave.device import ServiceLevel, StageStatistics, TraceEvent
from edgeweave.fleet import ChaosRecord
from edgeweave.plan import Decision, Plan
from edgeweave.train.codec_watch import CodecChange
from edgeweave.train.failures.service import Recovery

__all__ = [
    "DeviceReport",
    "EpochRecord",
    "Evaluation",
    "OpenEpoch",
    "Report",
    "TrainingReport",
    "device_reports",
]


class EpochRecord(msgspec.Struct, frozen=True):
    """One epoch: training means over its samples, and the validation after it, if any."""

    epoch: int
    step: int
    """Steps done since the start of training."""
    loss: float
    metrics: dict[str, float]
    samples_per_second: float
    validation: Evaluation | None


class OpenEpoch(msgspec.Struct, frozen=True):
    """Sums over the samples of an epoch in progress."""

    n_samples: int = 0
    loss: float = 0.0
    metrics: dict[str, float] = {}
    seconds: float = 0.0

    def plus(
        self, n_samples: int, loss: float, metrics: dict[str, float], seconds: float
    ) -> OpenEpoch:
        """With one more step, whose loss and metrics are means over its samples."""
        return OpenEpoch(
            self.n_samples + n_samples,
            self.loss + n_samples * loss,
            {name: self.metrics.get(name, 0.0) + n_samples * v for name, v in metrics.items()},
            self.seconds + seconds,
        )

    def closed(self, epoch: int, step: int, validation: Evaluation | None) -> EpochRecord:
        """The epoch's record."""
        n_samples = max(self.n_samples, 1)
        return EpochRecord(
            epoch=epoch,
            step=step,
            loss=self.loss / n_samples,
            metrics={name: total / n_samples for name, total in self.metrics.items()},
            samples_per_second=self.n_samples / self.seconds if self.seconds else 0.0,
            validation=validation,
        )


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """Where one device's time went while it was deployed, in seconds, and what it moved and used.

    ``compute`` + ``wait`` + ``idle`` make up the run; ``send`` and ``coding`` happen beside, and
    ``snapshot`` (copying the stage's state against failures) is part of ``compute``.
    """

    device: str
    stage: int
    compute_seconds: float
    send_seconds: float
    coding_seconds: float
    snapshot_seconds: float
    wait_seconds: float
    idle_seconds: float
    bytes_in: int
    bytes_out: int
    peak_memory_bytes: int
    events: tuple[TraceEvent, ...] = field(repr=False, default=())
    """What it did, with times relative to the start of the run."""
    copy_bytes_out: int = 0
    """States it sent to those that keep copies of them against failures."""


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What training in any way reports."""

    epochs: tuple[EpochRecord, ...]
    step_losses: tuple[float, ...]
    n_samples: int
    """Samples trained on by this call."""
    seconds: float
    """Wall time spent in training steps by this call."""
    step_seconds: tuple[float, ...]
    """Wall time of each full step of this call."""

    @property
    def samples_per_second(self) -> float:
        """Training throughput, evaluation and checkpoints left out."""
        return self.n_samples / self.seconds if self.seconds else 0.0

    @property
    def measured_step_seconds(self) -> float:
        """Median wall time of a full step."""
        return median(self.step_seconds) if self.step_seconds else 0.0


@dataclass(frozen=True, slots=True)
class Report(TrainingReport):
    """The outcome of ``PipelineTrainer.fit``."""

    plan: Plan
    devices: tuple[DeviceReport, ...]
    chaos: tuple[ChaosRecord, ...] = ()
    """What a script did to the emulated fleet during this call."""
    replans: tuple[Decision, ...] = ()
    """What was decided whenever a device had left its prediction: to keep the plan or change it."""
    codec_changes: tuple[CodecChange, ...] = ()
    """When links began to code in other bits than before, and why."""
    recoveries: tuple[Recovery, ...] = ()
    """Devices that were lost, and how the run went on."""
    service: ServiceLevel = field(default_factory=ServiceLevel)
    """The same in figures, and how old copies of states were."""

    @property
    def predicted_over_measured(self) -> float:
        """The plan's step time over the measured one."""
        measured = self.measured_step_seconds
        return self.plan.step_seconds / measured if measured else 0.0


def device_reports(
    statistics: Mapping[str, StageStatistics],
    plan: Plan,
    *,
    clock_offsets: dict[str, float],
    started_seconds: float,
) -> tuple[DeviceReport, ...]:
    """Put the devices' own statistics on one time axis."""
    return tuple(
        DeviceReport(
            device=device,
            stage=stage,
            compute_seconds=statistics[device].compute_seconds,
            send_seconds=statistics[device].send_seconds,
            coding_seconds=statistics[device].coding_seconds,
            snapshot_seconds=statistics[device].snapshot_seconds,
            wait_seconds=statistics[device].wait_seconds,
            idle_seconds=statistics[device].idle_seconds,
            bytes_in=statistics[device].bytes_in,
            bytes_out=statistics[device].bytes_out,
            peak_memory_bytes=statistics[device].peak_memory_bytes,
            events=tuple(
                _shifted(statistics[device].events, clock_offsets[device] + started_seconds)
            ),
            copy_bytes_out=statistics[device].copy_bytes_out,
        )
        for stage, device in enumerate(plan.devices)
    )


def _shifted(events: Iterable[TraceEvent], zero_seconds: float) -> Iterable[TraceEvent]:
    for event in events:
        yield TraceEvent(
            event.kind,
            event.step,
            event.microbatch,
            event.start_seconds - zero_seconds,
            event.stop_seconds - zero_seconds,
        )
