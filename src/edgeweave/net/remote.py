"""Errors that cross the network: the same class on both sides, by a table and never by a name."""

from __future__ import annotations

import traceback

import msgspec

from edgeweave.core import errors
from edgeweave.core.units import format_bytes, format_seconds

__all__ = [
    "closed_error",
    "decode_error",
    "encode_error",
    "no_answer_error",
    "no_listener_error",
    "request_too_large_error",
    "stuck_link_error",
    "timeout_error",
]

_LONGEST_MESSAGE = 8_000
_LONGEST_TRACEBACK = 32_000
_TRACEBACK_MARK = "\n\n--- traceback on "

_PLAIN: dict[str, type[errors.EdgeweaveError]] = {
    kind.__name__: kind
    for kind in (
        errors.EdgeweaveError,
        errors.ConfigError,
        errors.CaptureError,
        errors.FormatError,
        errors.CheckpointError,
        errors.WireError,
        errors.VersionError,
        errors.PlanError,
        errors.FleetError,
        errors.RequestError,
        errors.QueueFull,
        errors.RequestTimeout,
    )
}
_OF_DEVICE: dict[str, type[errors.DeviceError]] = {
    kind.__name__: kind for kind in (errors.DeviceBusy, errors.DeviceLost, errors.DeviceTimeout)
}


class _Report(msgspec.Struct, frozen=True, array_like=True):
    """An exception as data."""

    kind: str
    message: str
    traceback: str
    device: str | None = None
    stage: int | None = None


_report_decoder = msgspec.msgpack.Decoder(_Report)


def encode_error(error: BaseException) -> bytes:
    """Describe an exception for another process; long texts keep their end."""
    text = "".join(traceback.format_exception(error))
    report = _Report(
        kind=type(error).__name__,
        message=_message(error)[:_LONGEST_MESSAGE],
        traceback=(getattr(error, "remote_traceback", "") or text)[-_LONGEST_TRACEBACK:],
        device=getattr(error, "device", None) if isinstance(error, errors.FleetError) else None,
        stage=getattr(error, "stage", None) if isinstance(error, errors.FleetError) else None,
    )
    return msgspec.msgpack.encode(report)


def decode_error(data: bytes, device: str) -> errors.EdgeweaveError:
    """The error that ``device`` described, ready to be raised here.

    A class Edgeweave does not have becomes ``DeviceFailed``, whose message holds the traceback.
    """
    try:
        report = _report_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return errors.WireError(
            f"device {device!r} answered with an error that cannot be read ({error}). "
            "Look into its log."
        )
    plain = _PLAIN.get(report.kind)
    if plain is not None:
        return plain(report.message)
    about = report.device or device
    of_device = _OF_DEVICE.get(report.kind)
    if of_device is not None:
        return of_device(report.message, device=about, stage=report.stage)
    known = report.kind == errors.DeviceFailed.__name__
    return errors.DeviceFailed(
        report.message if known else f"device {device!r} failed: {report.kind}: {report.message}",
        device=about,
        stage=report.stage,
        remote_traceback=report.traceback,
    )


def closed_error(name: str) -> errors.FleetError:
    """A transport was closed or killed."""
    return errors.FleetError(f"the transport of {name!r} is closed.")


def timeout_error(device: str, key: str, timeout_seconds: float) -> errors.DeviceTimeout:
    """The deadline of a request passed, and its device had not gone."""
    return errors.DeviceTimeout(
        f"device {device!r} did not answer {key} within {format_seconds(timeout_seconds)}. "
        "It lives: wait longer, or look into its log.",
        device=device,
    )


def no_answer_error(device: str, key: str) -> errors.FleetError:
    """A request ended without an answer."""
    return errors.FleetError(
        f"device {device!r} does not answer (nobody serves {key}, or it vanished while answering). "
        f"Start it with: edgeweave join --name {device}."
    )


def no_listener_error(device: str, key: str, waited_seconds: float) -> errors.FleetError:
    """A frame has no receiver: after a wait for the first one, or at once if there was one."""
    facts = (
        f"waited {format_seconds(waited_seconds)}"
        if waited_seconds
        else "its receiver closed or vanished"
    )
    return errors.FleetError(
        f"nobody listens to {key} ({facts}). Check that {device} runs: edgeweave status."
    )


def request_too_large_error(key: str, size_bytes: int, limit_bytes: int) -> errors.WireError:
    """A request holds more than whoever serves its key allows."""
    return errors.WireError(
        f"a request to {key} is at most {format_bytes(limit_bytes)} (it announces "
        f"{format_bytes(size_bytes)}). Send what that verb is made for."
    )


def stuck_link_error(device: str, key: str, waited_seconds: float) -> errors.FleetError:
    """A link takes nothing any more."""
    return errors.FleetError(
        f"the link to {device!r} took nothing for {format_seconds(waited_seconds)} (next: {key}). "
        "Look at the link, and into the log of its receiver, which may be stuck."
    )


def _message(error: BaseException) -> str:
    # The text of DeviceFailed already holds a traceback, which travels on its own.
    return str(error).split(_TRACEBACK_MARK, 1)[0]
