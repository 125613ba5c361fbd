"""What one member says and hears: messages of other members that may be lost, and what the
coordinator sends, which is not.

    input         coordinator -> member     reliable: the tensors of a round and what to do
    values        member -> member          a burst of datagrams of 1 KB; or a reliable frame
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

from edgeweave.codec import PAYLOAD_BYTES
from edgeweave.core.clock import Clock
from edgeweave.core.errors import (
    ConfigError,
    DeviceTimeout,
    EdgeweaveError,
    FleetError,
    WireError,
)
from edgeweave.core.timeouts import Timeouts
from edgeweave.device.frames.codec import MOST_OVERHEAD_BYTES, message_seed
from edgeweave.device.frames.inbox import FrameId, Inbox
from edgeweave.device.frames.outbox import Outboxes
from edgeweave.device.place import COORDINATOR
from edgeweave.device.slices.checks import SliceChecks
from edgeweave.device.slices.member_frames import MOST_ROW_BYTES, rows_in, rows_of
from edgeweave.device.slices.member_messages import Message, messages
from edgeweave.device.slices.messages import SliceAssignment
from edgeweave.device.slices.parcels import ParcelId, Parcels, Way
from edgeweave.device.slices.roster import Roster
from edgeweave.device.stages.exchange import tensor_frame
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
from edgeweave.net.bursts import check_datagrams
from edgeweave.program import Sliced, is_external

__all__ = ["SliceExchange"]

_MOST_WAITING: Final = 256
_FIRST_SECONDS: Final = 2.0
"""The deadline of a sender and way before anything is learnt of them."""
_TRY_SECONDS: Final = 0.05
_TRIED_SECONDS: Final = 5.0
"""How long a receiver that does not listen is tried, where nothing may be lost."""
_MOST_ROWS: Final = 1 << 20
_NONE: Final = torch.zeros(0)


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
        self.roster = Roster(assignment.devices)
        self._checks = SliceChecks(assignment, self.messages, self._external, self.roster)
        self._noticing = threading.Lock()
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
        told = {"of": 1.0, "samples": 1.0}
        names = ("row", "x", "size")
        row = {name: torch.zeros((1, 1), dtype=torch.int32) for name in names}
        row["x"] = torch.zeros((1, PAYLOAD_BYTES), dtype=torch.uint8)
        largest = self._frame("gradients", 2**31, 2**31, row, told)
        try:
            check_datagrams(largest, encode(largest), Reliability.ROW_TOLERANT)
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

    def move(self, rank: int, device: str) -> None:
        """Another member is on that device from now on, which is another link."""
        with self._noticing:
            if rank == self._assignment.stage:
                raise FleetError(f"{self._me} is told of others that move (got {device} for it).")
            self.roster.move(rank, device)
            self.parcels.forget_sender(rank)
            self.parcels.set_gone(rank, not self.roster.is_there(device))

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
            reliability = Reliability.RELIABLE if reliable else Reliability.ROW_TOLERANT
            key, device = self._key(way, receiver), self.roster.device_of(receiver)

            def hand_over() -> None:
                frame = self._message(way, message, round, tensor, samples, reliable=reliable)
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
                tolerant = reliability is not Reliability.RELIABLE
                if tolerant or self._clock.now() > deadline or self._closing.wait(_TRY_SECONDS):
                    raise
            else:
                return

    def tell(self, round: int, scalars: Mapping[str, float]) -> None:  # noqa: A002
        """Queue a result for the coordinator."""
        frame = self._frame("result", round, 0, {}, scalars)
        key, device = self._key("result", COORDINATOR), self._assignment.coordinator
        self._outboxes.to(device).post(lambda: self._transport.send(key, frame, device=device))

    def _message(
        self,
        way: Way,
        message: Message,
        round: int,  # noqa: A002
        tensor: torch.Tensor | None,
        samples: int,
        *,
        reliable: bool,
    ) -> Frame:
        """Values are rounded to nearest, gradients at random: their errors would add up."""
        number, tensors = message.transfer, {}
        count = 0 if tensor is None else 1 if reliable else message.n_datagrams(samples)
        ends = message.receiver, message.sender

        def seed_of(row: int) -> int | None:
            if way == "values":
                return None
            return message_seed(self._assignment.seed, round, number * _MOST_ROWS + row, *ends)

        if tensor is not None:
            tensors = rows_of(message, tensor, count, seed_of, reliable=reliable)
        told = {"of": float(count), "samples": float(samples)}
        return self._frame(way, round, number, tensors, told)

    def _frame(
        self,
        kind: str,
        round: int,  # noqa: A002
        number: int,
        tensors: Mapping[str, torch.Tensor],
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
            tensors=tensors,
            scalars=scalars,
        )

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
        if header.device != self.roster.device_of(header.stage):
            return  # the member is elsewhere now
        way = cast(Way, header.kind)  # the checks saw to it
        key = ParcelId(way, header.step, header.microbatch)
        message = self.messages[header.microbatch]
        count, samples = int(header.scalars["of"]), int(header.scalars["samples"])
        try:
            numbers, rows = rows_in(frame, message, count, samples) if count else (_NONE, _NONE)
        except WireError as error:
            self._refuse(error)
        else:
            self.parcels.put(key, header.stage, count, numbers, rows)

    def _noticed(self, key: str, alive: bool) -> None:
        with self._noticing:
            rank = self.roster.note(device_of(key), there=alive)
            if rank not in (None, self._assignment.stage):
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
            payload_bytes([TensorSpec(m.value.name, m.value.dtype, m.shape(size))])
            + m.n_datagrams(size) * MOST_ROW_BYTES
            for m in self.messages
        )
        return max(inputs, *parts) + MOST_OVERHEAD_BYTES

    def _late(self, key: FrameId) -> EdgeweaveError:
        return DeviceTimeout(
            f"{self._me} waited {self._timeouts.idle:.0f} s for round {key.round} of its "
            "coordinator. Look at that process, or raise Timeouts.idle.",
            device=self._assignment.device,
            stage=self._assignment.stage,
        )
