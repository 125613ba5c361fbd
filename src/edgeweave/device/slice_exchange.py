"""What one member says and hears: messages of other members that may be lost, and what the
coordinator sends, which is not.

    input         coordinator -> member     reliable: the tensors of a round and what to do
    values        member -> member          datagrams of 1 KB, and ends; or one reliable frame
    gradients     member -> member          the same, back
    result        member -> coordinator     reliable: a forward is done, and its loss if any

A message is numbered by its transfer (``FrameHeader.microbatch``) and the round (``step``). Sending
is beside computing, on a thread for each receiver: one that is stuck holds up nobody else.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self, cast

import torch

from edgeweave.codec import PAYLOAD_BYTES, dealt
from edgeweave.core.clock import Clock
from edgeweave.core.errors import (
    ConfigError,
    DeviceTimeout,
    EdgeweaveError,
    FleetError,
    WireError,
)
from edgeweave.core.timeouts import Timeouts
from edgeweave.device.exchange import tensor_frame
from edgeweave.device.frame_codec import (
    MOST_OVERHEAD_BYTES,
    FrameCoding,
    decoded_frame,
    encoded_frame,
    message_seed,
)
from edgeweave.device.inbox import FrameId, Inbox
from edgeweave.device.member_messages import FLAT, Message, messages
from edgeweave.device.outbox import Outboxes
from edgeweave.device.parcels import ParcelId, Parcels, Way
from edgeweave.device.place import COORDINATOR
from edgeweave.device.slice_checks import SliceChecks
from edgeweave.device.slice_messages import SliceAssignment
from edgeweave.net import (
    Frame,
    Reliability,
    TensorSpec,
    Transport,
    control_pattern,
    device_of,
    encode,
    frame_key,
    frame_pattern,
    payload_bytes,
)
from edgeweave.net.transport import check_datagram
from edgeweave.program import Sliced, is_external

__all__ = ["SliceExchange"]

_N_ENDS: Final = 3
"""Of a message: at 20 % of packets lost, 8 of 1000 lose all, and are waited for to a deadline."""
_MOST_WAITING: Final = 256
_FIRST_SECONDS: Final = 2.0
"""The deadline of a sender and way before anything is learnt of them."""
_TRY_SECONDS: Final = 0.05
_TRIED_SECONDS: Final = 5.0
"""How long a receiver that does not listen is tried, where nothing may be lost."""
_MOST_PARTS: Final = 1 << 20


class SliceExchange:
    """Receives and sends for one member; owns its subscriptions and the threads that send."""

    def __init__(
        self,
        assignment: SliceAssignment,
        sliced: Sliced,
        transport: Transport,
        *,
        fleet: str,
        clock: Clock,
        timeouts: Timeouts,
    ) -> None:
        self._assignment = assignment
        self._transport = transport
        self._fleet = fleet
        self._timeouts = timeouts
        self.messages = messages(sliced, assignment.codec)
        self._me = assignment.peer(assignment.stage)
        self._external = {v.name: v for v in sliced.program.inputs if is_external(v.name)}
        self._checks = SliceChecks(assignment, self.messages, self._external)
        self._ranks = {device: rank for rank, device in enumerate(assignment.devices)}
        self.parcels = Parcels(
            clock,
            first_seconds=max(_FIRST_SECONDS, assignment.least_wait_seconds),
            least_seconds=assignment.least_wait_seconds,
        )
        self.inbox = Inbox(capacity=_MOST_WAITING)
        self._clock = clock
        self._closing = threading.Event()
        self._has_begun = threading.Event()
        self._first_round = 0
        # Nobody is further than the groups behind it: more never waits at once.
        capacity = 4 * (len(self.messages) + 1) * (len(assignment.groups) + 1)
        self._outboxes = Outboxes(stop_seconds=timeouts.stop, capacity=capacity)
        self._stack = ExitStack()
        self._check_fits()
        self.awaited: FrameId | None = None
        """The frame of the coordinator that is waited for at this moment."""

    def _check_fits(self) -> None:
        """``ConfigError`` if a datagram's header, with the device's name in it, leaves no room."""
        told = {"of": 1.0, "samples": 1.0, "part": 1.0}
        full = torch.zeros(PAYLOAD_BYTES // 4)
        largest = self._frame("gradients", 2**31, 2**31, full, told)
        try:
            check_datagram(encode(largest), Reliability.LOSS_TOLERANT)
        except ConfigError as error:
            raise ConfigError(
                f"a device's name travels in every datagram of {PAYLOAD_BYTES} bytes, and is short "
                f"({self._assignment.device!r} has {len(self._assignment.device)} characters: "
                f"{error}) Rename it."
            ) from error

    def __enter__(self) -> Self:
        assignment = self._assignment
        with ExitStack() as stack:
            stack.callback(self._outboxes.close)
            heard = self._transport.subscribe(
                frame_pattern(self._fleet, assignment.run, assignment.term, assignment.stage),
                self._receive,
                on_error=self._refuse,
                expect=self._checks.expect,
                limit_bytes=self._limit_bytes(),
            )
            stack.callback(heard.close)
            alive = control_pattern(self._fleet, "alive")
            stack.callback(self._transport.watch(alive, self._noticed).close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._stack.close()

    def fail(self, error: EdgeweaveError) -> None:
        """Make every wait, now and later, raise ``error``. The first error stays."""
        self.inbox.fail(error)
        self.parcels.fail(error)
        self._has_begun.set()

    def wait_first(self) -> Frame:
        """The first thing that the coordinator says, whatever the round."""
        if not self._has_begun.wait(self._timeouts.idle):
            raise self._late(FrameId("input", COORDINATOR, 0, 0))
        return self.wait_input(self._first_round)

    def wait_input(self, round: int) -> Frame:  # noqa: A002  the protocol's word
        """What the coordinator says of a round."""
        self.awaited = FrameId("input", COORDINATOR, round, 0)
        try:
            return self.inbox.wait(
                self.awaited, timeout_seconds=self._timeouts.idle, late=self._late
            )
        finally:
            self.awaited = None

    def send(
        self,
        way: Way,
        message: Message,
        round: int,  # noqa: A002
        tensor: torch.Tensor | None,
        *,
        samples: int,
        reliable: bool,
    ) -> None:
        """Queue a message, or the news that there is none."""
        receiver = message.receiver if way == "values" else message.sender
        if reliable or not self.parcels.is_gone(receiver):
            reliability = Reliability.RELIABLE if reliable else Reliability.LOSS_TOLERANT
            key, device = self._key(way, receiver), self._assignment.device_of(receiver)

            def hand_over() -> None:
                for frame in self._frames(way, message, round, tensor, samples, reliable=reliable):
                    self._hand_over(key, frame, device, reliability)

            self._outboxes.to(device).post(hand_over)

    def _hand_over(self, key: str, frame: Frame, device: str, reliability: Reliability) -> None:
        """A device that has just come back may not be known to listen yet: where nothing may be
        lost, it is tried for a while. Nobody tells when it is.
        """
        deadline = self._clock.now() + _TRIED_SECONDS
        while True:
            try:
                self._transport.send(key, frame, device=device, reliability=reliability)
            except FleetError:
                tolerant = reliability is Reliability.LOSS_TOLERANT
                if tolerant or self._clock.now() > deadline or self._closing.wait(_TRY_SECONDS):
                    raise
            else:
                return

    def tell(self, round: int, scalars: Mapping[str, float]) -> None:  # noqa: A002
        """Queue a result for the coordinator."""
        frame = self._frame("result", round, 0, None, scalars)
        key, device = self._key("result", COORDINATOR), self._assignment.coordinator
        self._outboxes.to(device).post(lambda: self._transport.send(key, frame, device=device))

    def _frames(
        self,
        way: Way,
        message: Message,
        round: int,  # noqa: A002
        tensor: torch.Tensor | None,
        samples: int,
        *,
        reliable: bool,
    ) -> list[Frame]:
        number = message.transfer
        if tensor is None:
            count, parts = 0, []
        else:
            count = 1 if reliable else message.n_datagrams(samples)
            parts = dealt(tensor.contiguous(), count)
        told = {"of": float(count), "samples": float(samples)}
        frames = [
            self._coded(frame, way, message)
            for index, part in enumerate(parts)
            for frame in [self._frame(way, round, number, part, {**told, "part": float(index)})]
        ]
        if not reliable:
            # What did not become small enough (not finite, or too large) is as good as lost.
            frames = [f for f in frames if payload_bytes(f.header.tensors) <= PAYLOAD_BYTES]
        ends = 0 if reliable and count else 1 if reliable else _N_ENDS
        return frames + [self._frame(way, round, number, None, told) for _ in range(ends)]

    def _frame(
        self,
        kind: str,
        round: int,  # noqa: A002
        number: int,
        tensor: torch.Tensor | None,
        scalars: Mapping[str, float],
    ) -> Frame:
        assignment = self._assignment
        return tensor_frame(
            kind,
            assignment.device,
            assignment.stage,
            assignment.term,
            round=round,
            microbatch=number,
            tensors={} if tensor is None else {FLAT: tensor},
            scalars=scalars,
        )

    def _coded(self, frame: Frame, way: Way, message: Message) -> Frame:
        """Values are rounded to nearest, gradients at random: their errors would add up."""
        codec, header = message.codec, frame.header
        if codec is None:
            return frame
        seed = None
        if way == "gradients":
            ends = message.receiver, message.sender
            part = header.microbatch * _MOST_PARTS + int(header.scalars["part"])
            seed = message_seed(self._assignment.seed, header.step, part, *ends)
        return encoded_frame(frame, FrameCoding(codec, seed))

    def _key(self, kind: str, receiver: int) -> str:
        assignment = self._assignment
        return frame_key(self._fleet, assignment.run, assignment.term, receiver, kind)

    # The transport's threads.

    def _receive(self, frame: Frame) -> None:
        header = frame.header
        if header.kind == "input":
            try:
                self.inbox.put(frame)
            except WireError as error:
                self._refuse(error)
            if not self._has_begun.is_set():
                self._first_round = header.step
                self._has_begun.set()
            return
        way = cast(Way, header.kind)  # the checks saw to it
        key = ParcelId(way, header.step, header.microbatch)
        count = int(header.scalars["of"])
        if not frame.tensors:
            self.parcels.end(key, header.stage, count)
            return
        index = int(header.scalars["part"])
        try:
            if header.codec != "none":
                message, samples = self.messages[header.microbatch], int(header.scalars["samples"])
                frame = decoded_frame(frame, [message.part(index, count, samples)])
            self.parcels.put(key, header.stage, index, count, frame.tensors[0])
        except WireError as error:
            self._refuse(error)

    def _noticed(self, key: str, alive: bool) -> None:
        rank = self._ranks.get(device_of(key))
        if rank is not None and rank != self._assignment.stage:
            self.parcels.set_gone(rank, not alive)

    def _refuse(self, error: WireError) -> None:
        named = self._me in str(error)
        self.fail(error if named else type(error)(f"{self._me} refuses a frame: {error}"))

    def _limit_bytes(self) -> int:
        size = self._assignment.microbatch_size
        inputs = payload_bytes(
            TensorSpec(v.name, v.dtype, v.shape_at(size)) for v in self._external.values()
        )
        parts = (
            payload_bytes([TensorSpec(FLAT, m.value.dtype, m.shape(size))]) for m in self.messages
        )
        return max(inputs, PAYLOAD_BYTES, *parts) + MOST_OVERHEAD_BYTES

    def _late(self, key: FrameId) -> EdgeweaveError:
        return DeviceTimeout(
            f"{self._me} waited {self._timeouts.idle:.0f} s for round {key.round} of its "
            "coordinator. Look at that process, or raise Timeouts.idle.",
            device=self._assignment.device,
            stage=self._assignment.stage,
        )
