"""Pipeline-parallel training: data, runs, checkpoints, reports."""

from edgeweave.train.experience import Experience
from edgeweave.train.learning_rate import LRSchedule
from edgeweave.train.link_fates import Fates, RecordedLosses, losses_on_all_links
from edgeweave.train.measurements import measure_costs
from edgeweave.train.predictions import device_latencies, predict_units
from edgeweave.train.probes import probe_devices
from edgeweave.train.rehearsal import Rehearsal, RehearsalSetup
from edgeweave.train.report import DeviceReport, EpochRecord, Evaluation, Report
from edgeweave.train.service import Recovery
from edgeweave.train.slice_report import SuperNeuronReport
from edgeweave.train.super_neurons import SuperNeuronTrainer
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
