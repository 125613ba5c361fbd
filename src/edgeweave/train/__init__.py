"""Pipeline-parallel training: data, runs, checkpoints, reports."""

from edgeweave.train.failures.service import Recovery
from edgeweave.train.learning_rate import LRSchedule
from edgeweave.train.measuring.experience import Experience
from edgeweave.train.measuring.measurements import measure_costs
from edgeweave.train.measuring.predictions import device_latencies, predict_units
from edgeweave.train.measuring.probes import probe_devices
from edgeweave.train.report import DeviceReport, EpochRecord, Evaluation, Report
from edgeweave.train.slices.link_fates import Fates, RecordedLosses, losses_on_all_links
from edgeweave.train.slices.rehearsal import Rehearsal, RehearsalSetup
from edgeweave.train.slices.report import SuperNeuronReport
from edgeweave.train.slices.trainer import SuperNeuronTrainer
from edgeweave.train.trainer import PipelineTrainer

__all__ = [
    "DeviceReport",
    "EpochRecord",
    "Evaluation",
    "Experience",
    "Fates",
    "LRSchedule",
    "PipelineTrainer",
    "RecordedLosses",
    "Recovery",
    "Rehearsal",
    "RehearsalSetup",
    "Report",
    "SuperNeuronReport",
    "SuperNeuronTrainer",
    "device_latencies",
    "losses_on_all_links",
    "measure_costs",
    "predict_units",
    "probe_devices",
]
