"""What a stage that cannot go on tells its coordinator."""

from __future__ import annotations

import logging
import traceback

import torch

from edgeweave.core.errors import DeviceError, DeviceFailed, EdgeweaveError
from edgeweave.device.messages import Fault, encode_message
from edgeweave.device.place import Place
from edgeweave.net import Transport, control_key
from edgeweave.net.remote import encode_error

__all__ = ["located", "out_of_memory", "report_fault"]

_log = logging.getLogger(__name__)

_SHORTAGE = ("out of memory", "not enough memory", "can't allocate memory")
"""What allocators of torch say, of those that raise a plain RuntimeError."""


def report_fault(
    error: BaseException,
    place: Place,
    transport: Transport,
    *,
    fleet: str,
    timeout_seconds: float,
) -> None:
    """Tell the coordinator of a run what ended a stage of it; what cannot be told is logged."""
    _log.error("run %s: stage %d failed: %s", place.run, place.stage, error)
    described = encode_error(located(error, place))
    fault = Fault(place.run, place.term, place.device, place.stage, described)
    try:
        transport.request(
            control_key(fleet, place.coordinator, "fault"),
            encode_message(fault),
            device=place.coordinator,
            timeout_seconds=timeout_seconds,
        )
    except EdgeweaveError as unreported:
        _log.error("the coordinator could not be told: %s", unreported)


def located(error: BaseException, place: Place) -> EdgeweaveError:
    """The error with the stage and the device in its message, whatever raised it."""
    me = place.peer(place.stage)
    if isinstance(error, DeviceError) or (isinstance(error, EdgeweaveError) and me in str(error)):
        return error
    if isinstance(error, EdgeweaveError):
        return type(error)(f"{me}: {error}")
    return DeviceFailed(
        f"{me} failed: {type(error).__name__}: {error}",
        device=place.device,
        stage=place.stage,
        remote_traceback="".join(traceback.format_exception(error)),
    )


def out_of_memory(error: BaseException, place: Place, samples: int) -> DeviceFailed | None:
    """What to say if this is the device's fault, not that of the request: its memory was too small.

    None for every other error.
    """
    is_shortage = isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _SHORTAGE)
    )
    if not is_shortage:
        return None
    return DeviceFailed(
        f"{place.peer(place.stage)} ran out of memory on a request of {samples} samples "
        f"({str(error).splitlines()[0][:200] if str(error) else type(error).__name__}). Send fewer "
        "samples at once, end what else runs there, or serve with more devices.",
        device=place.device,
        stage=place.stage,
    )
