"""Every error that leaves a public function of Edgeweave, and the exit code it ends a command with.

    EdgeweaveError                    1   anything below
    ├── ConfigError                   2   an option, a job file or a data set is wrong
    ├── CaptureError                  3   a model cannot be captured or cut
    ├── FormatError                   4   a file is damaged, foreign or of another version
    │   └── CheckpointError           5   a checkpoint cannot be written, found or resumed
    ├── WireError                     6   a message is malformed, too large or unexpected
    │   └── VersionError              7   two processes speak different protocol versions
    ├── PlanError                     8   no plan satisfies the constraints
    ├── FleetError                    9   devices cannot be started, found or reached
    │   ├── DeviceBusy               10   a device already works for another run
    │   ├── DeviceLost               11   a device vanished during a run
    │   ├── DeviceTimeout            12   a device lives but missed a deadline
    │   └── DeviceFailed             13   a device reported an error of its own
    └── RequestError                 14   a served model cannot answer a request
        ├── QueueFull                15   too many requests wait already
        └── RequestTimeout           16   no answer came by the request's deadline

A message states the rule, the facts in parentheses, and the fix:
``stage 2 needs 812 MiB on pi-3 (limit: 640 MiB). Lower batch_size or add a device.``
"""

from __future__ import annotations

__all__ = [
    "CaptureError",
    "CheckpointError",
    "ConfigError",
    "DeviceBusy",
    "DeviceError",
    "DeviceFailed",
    "DeviceLost",
    "DeviceTimeout",
    "EdgeweaveError",
    "FleetError",
    "FormatError",
    "PlanError",
    "QueueFull",
    "RequestError",
    "RequestTimeout",
    "VersionError",
    "WireError",
]


class EdgeweaveError(Exception):
    """The root of all errors Edgeweave raises on purpose."""

    exit_code = 1


class ConfigError(EdgeweaveError):
    """An option, a job file or a data set is wrong."""

    exit_code = 2


class CaptureError(EdgeweaveError):
    """A model cannot be captured or cut; the message names the user's line and the way out."""

    exit_code = 3


class FormatError(EdgeweaveError):
    """A file is damaged, foreign, or of a version this package does not read."""

    exit_code = 4


class CheckpointError(FormatError):
    """A checkpoint cannot be written, found or resumed; earlier whole checkpoints are untouched."""

    exit_code = 5


class WireError(EdgeweaveError):
    """A message from another process is malformed, too large or unexpected; it was not used."""

    exit_code = 6


class VersionError(WireError):
    """Two processes run versions that do not understand each other."""

    exit_code = 7


class PlanError(EdgeweaveError):
    """No plan satisfies the constraints."""

    exit_code = 8


class FleetError(EdgeweaveError):
    """Devices cannot be started, found or reached."""

    exit_code = 9


class DeviceError(FleetError):
    """Trouble with one device: its name, and the stage it held if it held one."""

    def __init__(self, message: str, *, device: str, stage: int | None = None) -> None:
        super().__init__(message)
        self.device = device
        self.stage = stage


class DeviceBusy(DeviceError):
    """A device already works for another run."""

    exit_code = 10


class DeviceLost(DeviceError):
    """A device vanished during a run; the last checkpoint is whole."""

    exit_code = 11


class DeviceTimeout(DeviceError):
    """A device lives but did not answer by its deadline."""

    exit_code = 12


class DeviceFailed(DeviceError):
    """A device reported an error of its own.

    ``remote_traceback`` is the text of the traceback on that device, and is part of the message.
    """

    exit_code = 13

    def __init__(
        self, message: str, *, device: str, stage: int | None = None, remote_traceback: str = ""
    ) -> None:
        shown = f"{message}\n\n--- traceback on {device} ---\n{remote_traceback}"
        super().__init__(shown if remote_traceback else message, device=device, stage=stage)
        self.remote_traceback = remote_traceback


class RequestError(EdgeweaveError):
    """A served model cannot answer a request: its inputs are not the model's, or cannot be used."""

    exit_code = 14


class QueueFull(RequestError):
    """A served model has as many unanswered requests as it accepts; ask again in a moment."""

    exit_code = 15


class RequestTimeout(RequestError):
    """A served model did not answer a request by its deadline; nobody works on it any more."""

    exit_code = 16
