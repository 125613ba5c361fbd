"""Edgeweave: train one PyTorch model across the unequal, unreliable devices you already have.

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
        VersionError,
        WireError,
    )
    from edgeweave.core.timeouts import Timeouts
    from edgeweave.device import Optimizer
    from edgeweave.fleet import Device, Fleet
    from edgeweave.net import NetSettings, TlsFiles
    from edgeweave.plan import Plan
    from edgeweave.train import Evaluation, LRSchedule, PipelineTrainer, Report

__all__ = [
    "CaptureError",
    "CheckpointError",
    "ConfigError",
    "Device",
    "DeviceBusy",
    "DeviceError",
    "DeviceFailed",
    "DeviceLost",
    "DeviceTimeout",
    "EdgeweaveError",
    "Evaluation",
    "Fleet",
    "FleetError",
    "FormatError",
    "LRSchedule",
    "NetSettings",
    "Optimizer",
    "PipelineTrainer",
    "Plan",
    "PlanError",
    "Report",
    "Timeouts",
    "TlsFiles",
    "VersionError",
    "WireError",
    "__version__",
]

_HOMES = {
    "Device": "edgeweave.fleet",
    "Evaluation": "edgeweave.train",
    "Fleet": "edgeweave.fleet",
    "LRSchedule": "edgeweave.train",
    "NetSettings": "edgeweave.net",
    "Optimizer": "edgeweave.device",
    "PipelineTrainer": "edgeweave.train",
    "Plan": "edgeweave.plan",
    "Report": "edgeweave.train",
    "Timeouts": "edgeweave.core.timeouts",
    "TlsFiles": "edgeweave.net",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'edgeweave' has no attribute {name!r}")
    home = importlib.import_module(_HOMES.get(name, "edgeweave.core.errors"))
    found: object = getattr(home, name)
    globals()[name] = found
    return found
