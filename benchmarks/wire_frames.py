"""Our frames in the wire benchmark: the same bursts and echoes as over the raw socket."""

from __future__ import annotations

import queue
from types import TracebackType
from typing import Self

import torch

from edgeweave.core.errors import WireError
from edgeweave.net import (
    Frame,
    FrameHeader,
    NetSettings,
    Subscription,
    TlsFiles,
    Transport,
    frame_key,
    frame_pattern,
    specs_of,
)

__all__ = ["FrameSender", "net_settings", "serve_frames"]

_FLEET, _RUN = "default", "wire"
_LIMIT_BYTES = 16 << 20
_DEADLINE_SECONDS = 60.0
_RECEIVER, _SENDER = 1, 0


def net_settings(files: TlsFiles | None, connect: tuple[str, ...] = ()) -> NetSettings:
    """On loopback, with mutual TLS where there are certificates."""
    protocol = "tcp" if files is None else "tls"
    return NetSettings(
        fleet=_FLEET, listen=(f"{protocol}/127.0.0.1:0",), connect=connect, tls=files
    )


class FrameSender:
    """The sending side, on a transport that knows the receiver."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._answers: queue.SimpleQueue[Frame | WireError] = queue.SimpleQueue()
        self._key = frame_key(_FLEET, _RUN, 0, _RECEIVER, "bulk")

    def __enter__(self) -> Self:
        self._subscription = _subscribe(self._transport, _SENDER, self._answers)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._subscription.close()

    def burst(self, tensor: torch.Tensor, count: int) -> None:
        """Send a tensor ``count`` times; returns when the receiver has all of them."""
        for index in range(count):
            self._send("burst", tensor, index, count)
        self._wait_answer()

    def echo(self, tensor: torch.Tensor) -> None:
        """Send a tensor and receive it back."""
        self._send("echo", tensor, 0, 1)
        self._wait_answer()

    def _send(self, kind: str, tensor: torch.Tensor, index: int, count: int) -> None:
        tensors = {"x": tensor}
        header = FrameHeader(
            kind, "sender", _SENDER, 0, 0, index, specs_of(tensors), {"count": float(count)}
        )
        self._transport.send(self._key, Frame(header, (tensor,)), device="receiver")

    def _wait_answer(self) -> None:
        answer = self._answers.get(timeout=_DEADLINE_SECONDS)
        if isinstance(answer, WireError):
            raise answer


def serve_frames(transport: Transport) -> Subscription:
    """Answer an echo with its own tensor, and the last frame of a burst with an empty one."""
    key = frame_key(_FLEET, _RUN, 0, _SENDER, "answer")

    def on_frame(frame: Frame) -> None:
        header = frame.header
        last = header.microbatch == header.scalars["count"] - 1
        if header.kind == "echo" or last:
            tensors = frame.tensors if header.kind == "echo" else ()
            specs = header.tensors if tensors else ()
            back = FrameHeader("answer", "receiver", _RECEIVER, 0, 0, 0, specs)
            transport.send(key, Frame(back, tensors), device="sender")

    return transport.subscribe(
        frame_pattern(_FLEET, _RUN, 0, _RECEIVER),
        on_frame,
        on_error=_refuse,
        expect=lambda header: None,
        limit_bytes=_LIMIT_BYTES,
    )


def _subscribe(
    transport: Transport, stage: int, answers: queue.SimpleQueue[Frame | WireError]
) -> Subscription:
    return transport.subscribe(
        frame_pattern(_FLEET, _RUN, 0, stage),
        answers.put,
        on_error=answers.put,
        expect=lambda header: None,
        limit_bytes=_LIMIT_BYTES,
    )


def _refuse(error: WireError) -> None:
    # Raised on the transport's thread, which logs it; the sender's wait then ends by its deadline.
    raise error
