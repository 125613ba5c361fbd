"""Edgeweave: train and serve one PyTorch model on the unequal, unreliable devices you already have.

Names are imported at their first use: an agent on a small device needs few of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from edgeweave.core.version import __version__

if TYPE_CHECKING:
    from edgeweave.core.errors import (
        CaptureError,
        CheckpointError,
        ConfigError,
        DeviceBusy,
        DeviceError,
        DeviceFailed,
        DeviceLost,
        DeviceTimeout,
        EdgeweaveError,
        FleetError,
        FormatError,
        PlanError,
        QueueFull,
        RequestError,
        RequestTimeout,
        VersionError,
        WireError,
    )
    from edgeweave.core.evaluation import Evaluation
    from edgeweave.core.timeouts import Timeouts
    from edgeweave.data import Split
    from edgeweave.device import Optimizer
    from edgeweave.fleet import Chaos, Device, Fleet, FleetDescription, load_fleet, load_preset
    from edgeweave.gossip import DeviceFiles, GossipReport, GossipTrainer
    from edgeweave.mixing import BalanceSettings
    from edgeweave.net import Links, LinkShape, NetSettings, TlsFiles
    from edgeweave.plan import Plan
    from edgeweave.serving import Endpoint, ServeOptions, serve
    from edgeweave.train import (
        LRSchedule,
        PipelineTrainer,
        Report,
        SuperNeuronReport,
        SuperNeuronTrainer,
    )

__all__ = [
    "BalanceSettings",
    "CaptureError",
    "Chaos",
    "CheckpointError",
    "ConfigError",
    "Device",
    "DeviceBusy",
    "DeviceError",
    "DeviceFailed",
    "DeviceFiles",
    "DeviceLost",
    "DeviceTimeout",
    "EdgeweaveError",
    "Endpoint",
    "Evaluation",
    "Fleet",
    "FleetDescription",
    "FleetError",
    "FormatError",
    "GossipReport",
    "GossipTrainer",
    "LRSchedule",
    "LinkShape",
    "Links",
    "NetSettings",
    "Optimizer",
    "PipelineTrainer",
    "Plan",
    "PlanError",
    "QueueFull",
    "Report",
    "RequestError",
    "RequestTimeout",
    "ServeOptions",
    "Split",
    "SuperNeuronReport",
    "SuperNeuronTrainer",
    "Timeouts",
    "TlsFiles",
    "VersionError",
    "WireError",
    "__version__",
    "load_fleet",
    "load_preset",
    "serve",
]

_HOMES = {
    "BalanceSettings": "edgeweave.mixing",
    "Chaos": "edgeweave.fleet",
    "Device": "edgeweave.fleet",
    "Endpoint": "edgeweave.serving",
    "DeviceFiles": "edgeweave.gossip",
    "Evaluation": "edgeweave.core.evaluation",
    "Fleet": "edgeweave.fleet",
    "FleetDescription": "edgeweave.fleet",
    "GossipReport": "edgeweave.gossip",
    "GossipTrainer": "edgeweave.gossip",
    "LRSchedule": "edgeweave.train",
    "LinkShape": "edgeweave.net",
    "Links": "edgeweave.net",
    "NetSettings": "edgeweave.net",
    "Optimizer": "edgeweave.device",
    "PipelineTrainer": "edgeweave.train",
    "Plan": "edgeweave.plan",
    "Report": "edgeweave.train",
    "ServeOptions": "edgeweave.serving",
    "Split": "edgeweave.data",
    "SuperNeuronReport": "edgeweave.train",
    "SuperNeuronTrainer": "edgeweave.train",
    "Timeouts": "edgeweave.core.timeouts",
    "TlsFiles": "edgeweave.net",
    "load_fleet": "edgeweave.fleet",
    "load_preset": "edgeweave.fleet",
    "serve": "edgeweave.serving",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'edgeweave' has no attribute {name!r}")
    home = importlib.import_module(_HOMES.get(name, "edgeweave.core.errors"))
    found: object = getattr(home, name)
    globals()[name] = found
    return found
