"""The frames of one stage: what it may receive, and to whom it sends.

    coordinator --begin, input-->  stage s  --activation-->  stage s + 1
                <----result------  stage s  <--gradient----           (each behind a ping, often)
                                   stage s  <--reduce-->  every other stage

Values that go past stages travel likewise, in frames of their own. A round is one training step or
one evaluation pass; ``step`` of a frame's header is its number.
A gradient frame without tensors is still sent: it tells its receiver that a microbatch has left
the pipeline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import torch

from edgeweave.core.clock import Clock
from edgeweave.core.errors import DeviceTimeout, EdgeweaveError, WireError
from edgeweave.core.timeouts import Timeouts
from edgeweave.device.frames.codec import MOST_OVERHEAD_BYTES, FrameCoding, decoded_frame
from edgeweave.device.frames.inbox import FrameId, Inbox
from edgeweave.device.frames.link_rates import Arrival, LinkRates
from edgeweave.device.frames.sender import Ping, Sender
from edgeweave.device.place import COORDINATOR, Place
from edgeweave.device.throttle import Throttle
from edgeweave.net import (
    Frame,
    FrameHeader,
    TensorSpec,
    Transport,
    frame_key,
    frame_pattern,
    payload_bytes,
    specs_of,
)
from edgeweave.plan import window
from edgeweave.program import Program, Value, is_external

__all__ = ["StageExchange", "as_mapping", "coding_names", "tensor_frame"]

_SCALARS = {
    "begin": ("step", "microbatches", "train"),
    "input": ("samples",),
    "activation": ("samples",),
    "gradient": ("samples",),
}
"""The numbers without which a frame is of no use."""

_TIMED = ("activation", "gradient")
"""Frames by which links are timed."""

_PING_EVERY = 2
"""Microbatches; a ping is some hundred bytes."""

_CODED = ("activation", "gradient")
"""Frames that may be coded; all others travel as they are."""

_TOO_MANY = 2.0**53


def coding_names(stage: int) -> tuple[str, str]:
    """What ``begin`` calls the bits of values in frames to a stage, and the rate of its link.

    There are none where values travel as they are; a rate may be missing.
    """
    return f"bits:{stage}", f"link:{stage}"


def tensor_frame(
    kind: str,
    device: str,
    stage: int,
    term: int,
    *,
    round: int,  # noqa: A002  the protocol's word
    microbatch: int,
    tensors: Mapping[str, torch.Tensor],
    scalars: Mapping[str, float] | None = None,
) -> Frame:
    """A frame that carries named tensors."""
    header = FrameHeader(
        kind=kind,
        device=device,
        stage=stage,
        term=term,
        step=round,
        microbatch=microbatch,
        tensors=specs_of(tensors),
        scalars=dict(scalars or {}),
    )
    return Frame(header, tuple(tensors.values()))


def as_mapping(frame: Frame) -> dict[str, torch.Tensor]:
    """A frame's tensors by name."""
    names = (spec.name for spec in frame.header.tensors)
    return dict(zip(names, frame.tensors, strict=True))


class StageExchange:
    """Receives and sends for one stage; owns its subscription, inbox and sender thread."""

    def __init__(
        self,
        assignment: Place,
        program: Program,
        transport: Transport,
        *,
        fleet: str,
        clock: Clock,
        timeouts: Timeouts,
        throttle: Throttle,
    ) -> None:
        self._assignment = assignment
        self._program = program
        self._transport = transport
        self._fleet = fleet
        self._timeouts = timeouts
        self._clock = clock
        self._rates = LinkRates()
        self._decoding = throttle.on_another_thread()
        self._decoding_seconds = 0.0
        self._may_receive = _declared(assignment, program)
        self._me = assignment.peer(assignment.stage)
        n_peers = max(2, len(assignment.senders) + len(assignment.receivers))
        n_stages = assignment.n_stages
        # Without a flush, microbatches of as many steps are on their way as the window lets.
        most = max(assignment.max_microbatches, window(n_stages, assignment.extra_in_flight))
        self.inbox = Inbox(capacity=(n_peers + 2) * most + 8 * n_stages + 16)
        self.awaited: FrameId | None = None
        """What the stage waits for at this moment; the first of several."""
        self._sender = Sender(
            transport,
            clock,
            capacity=n_peers * most + 2 * n_stages + 4,
            timeout_seconds=timeouts.frame,
            on_error=self.inbox.fail,
            throttle=throttle.on_another_thread(),
        )

    @property
    def send_seconds(self) -> float:
        return self._sender.seconds

    @property
    def coding_seconds(self) -> float:
        """Spent on coding what was sent and decoding what came, beside computing."""
        return self._sender.coding_seconds + self._decoding_seconds

    def __enter__(self) -> Self:
        assignment = self._assignment
        self._subscription = self._transport.subscribe(
            frame_pattern(self._fleet, assignment.run, assignment.term, assignment.stage),
            self._receive,
            on_error=self._refuse,
            expect=self._expect,
            limit_bytes=self._limit_bytes(),
        )
        self._sender.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._subscription.close()
        self._sender.__exit__(kind, error, traceback)

    def wait(self, kind: str, sender: int, round: int, microbatch: int = 0) -> Frame:  # noqa: A002
        """The next frame of that name; ``DeviceTimeout`` naming this stage and the peer."""
        idle = kind == "begin"
        seconds = self._timeouts.idle if idle else self._timeouts.frame
        key = FrameId(kind, sender, round, microbatch)
        self.awaited = key
        try:
            return self.inbox.wait(key, timeout_seconds=seconds, late=self._late)
        finally:
            self.awaited = None

    def first_of(self, options: Sequence[Sequence[FrameId]]) -> int:
        """Wait until all frames of one option are here, and say which; ``wait`` takes them."""
        idle = any(key.kind == "begin" for keys in options for key in keys)
        seconds = self._timeouts.idle if idle else self._timeouts.frame
        self.awaited = next((key for keys in options for key in keys), None)
        try:
            return self.inbox.first_of(options, timeout_seconds=seconds, late=self._late)
        finally:
            self.awaited = None

    def send(
        self,
        kind: str,
        stage: int,
        round: int,  # noqa: A002
        microbatch: int,
        tensors: Mapping[str, torch.Tensor],
        scalars: Mapping[str, float] | None = None,
        coding: FrameCoding | None = None,
    ) -> None:
        """Queue a frame for a stage, or for the coordinator; its tensors coded on the way."""
        frame = self._frame(kind, round, microbatch, tensors, scalars)
        ping = None
        if kind in _TIMED and microbatch % _PING_EVERY == 0:
            ping = Ping(self._key("ping", stage), self._frame("ping", round, microbatch, {}))
        device = self._assignment.device_of(stage)
        self._sender.post(self._key(kind, stage), frame, device=device, coding=coding, ping=ping)

    def _frame(
        self,
        kind: str,
        round: int,  # noqa: A002
        microbatch: int,
        tensors: Mapping[str, torch.Tensor],
        scalars: Mapping[str, float] | None = None,
    ) -> Frame:
        assignment = self._assignment
        return tensor_frame(
            kind,
            assignment.device,
            assignment.stage,
            assignment.term,
            round=round,
            microbatch=microbatch,
            tensors=tensors,
            scalars=scalars,
        )

    def _key(self, kind: str, stage: int) -> str:
        assignment = self._assignment
        return frame_key(self._fleet, assignment.run, assignment.term, stage, kind)

    def link_rates(self, round: int) -> dict[int, float]:  # noqa: A002
        """Bytes per second from the stages whose frames told of their link in a round."""
        return self._rates.end_round(round)

    def _receive(self, frame: Frame) -> None:
        header = frame.header
        is_ping = header.kind == "ping"
        if (is_ping or header.kind in _TIMED) and "sent" in header.scalars:
            size_bytes = payload_bytes(header.tensors)
            arrival = Arrival(header.scalars["sent"], self._clock.now(), size_bytes, is_ping)
            self._rates.add(header.step, header.stage, arrival)
        if is_ping:
            return
        try:
            self.inbox.put(self._decoded(frame))
        except WireError as error:
            self._refuse(error)

    def _decoded(self, frame: Frame) -> Frame:
        header = frame.header
        if header.codec == "none":
            return frame
        declared, samples = self._declared(header), self._samples(header)
        expected = (
            TensorSpec(name, value.dtype, value.shape_at(samples))
            for name, value in declared.items()
        )
        started = self._clock.now()
        with self._decoding.pace("decode"):
            found = decoded_frame(frame, expected)
        self._decoding_seconds += self._clock.now() - started
        return found

    def _refuse(self, error: WireError) -> None:
        named = self._me in str(error)
        self.inbox.fail(error if named else type(error)(f"{self._me} refuses a frame: {error}"))

    def _expect(self, header: FrameHeader) -> None:
        """Refuse what the program does not declare, before anything is allocated for it."""
        declared, me = self._declared(header), self._me
        names = {spec.name for spec in header.tensors}
        whole = header.kind in ("input", "activation")
        if names - declared.keys() or (whole and declared.keys() - names):
            raise WireError(
                f"{me} expects the tensors {sorted(declared)} in {header.kind!r} frames "
                f"(got {sorted(names)} from {header.device})."
            )
        self._check_scalars(header)
        samples = self._samples(header)
        if not 0 <= samples <= self._assignment.microbatch_size:
            raise WireError(
                f"a microbatch has at most {self._assignment.microbatch_size} samples "
                f"(got {samples} from {header.device})."
            )
        if header.codec != "none":
            self._check_coded(header)
            return
        for spec in header.tensors:
            value = declared[spec.name]
            if (spec.dtype, spec.shape) != (value.dtype, value.shape_at(samples)):
                raise WireError(
                    f"{me} expects {spec.name} as {value.dtype} {value.shape_at(samples)} "
                    f"(got {spec.dtype} {spec.shape} from {header.device})."
                )

    def _declared(self, header: FrameHeader) -> Mapping[str, Value]:
        """What such a frame may bring; ``WireError`` if its sender may send none."""
        declared = self._may_receive.get((header.kind, header.stage))
        if declared is None or header.device != self._assignment.device_of(header.stage):
            raise WireError(
                f"{self._me} expects no {header.kind!r} frame from stage {header.stage} "
                f"({header.device})."
            )
        return declared

    def _samples(self, header: FrameHeader) -> int:
        return 0 if header.kind == "reduce" else int(header.scalars.get("samples", 0))

    def _check_coded(self, header: FrameHeader) -> None:
        """Coded tensors are bytes; what they are of is checked when they are decoded."""
        if header.kind not in _CODED:
            raise WireError(
                f"{self._me} expects {header.kind!r} frames as they are "
                f"(got coded ones from {header.device})."
            )
        for spec in header.tensors:
            if spec.dtype != "uint8" or len(spec.shape) != 1:
                raise WireError(
                    f"{self._me} expects {spec.name}, which is coded, as bytes in a row "
                    f"(got {spec.dtype} {spec.shape} from {header.device})."
                )

    def _check_scalars(self, header: FrameHeader) -> None:
        me = self._me
        needed = _SCALARS.get(header.kind, ())
        if header.kind == "begin" and header.scalars.get("train"):
            needed += ("total_samples",)
        for name in needed:
            value = header.scalars.get(name, math.nan)
            if not 0 <= value < _TOO_MANY:
                raise WireError(
                    f"{me} expects a number called {name}, 0 or more, in {header.kind!r} frames "
                    f"(got {value} from {header.device})."
                )
        most = self._assignment.max_microbatches
        if "total_samples" in needed and not 1 <= header.scalars["microbatches"] <= most:
            raise WireError(
                f"{me} trains on 1 to {most} microbatches in a step "
                f"(got {header.scalars['microbatches']:.0f} from {header.device})."
            )

    def _limit_bytes(self) -> int:
        size = self._assignment.microbatch_size
        return max(
            payload_bytes(
                TensorSpec(value.name, value.dtype, value.shape_at(size))
                for value in declared.values()
            )
            + MOST_OVERHEAD_BYTES * len(declared)
            for declared in self._may_receive.values()
        )

    def _late(self, key: FrameId) -> EdgeweaveError:
        assignment = self._assignment
        return DeviceTimeout(
            f"{self._me} waited {self._timeouts.frame:.0f} s for the "
            f"{key.kind} of microbatch {key.microbatch} (round {key.round}) from "
            f"{assignment.peer(key.sender)}. Look at that device, or raise Timeouts.frame.",
            device=assignment.device,
            stage=assignment.stage,
        )


def _declared(assignment: Place, program: Program) -> dict[tuple[str, int], dict[str, Value]]:
    """The tensors that each kind of frame brings from each stage that may send it.

    Names of senders catch accidents: members are trusted.
    """
    values, state = program.values(), {spec.name: spec for spec in program.state}
    tied = {n: Value(n, state[n].dtype, state[n].shape) for n in assignment.tied if n in state}
    external = {v.name: v for v in program.inputs if is_external(v.name)}
    found = {("begin", COORDINATOR): {}, ("input", COORDINATOR): external}
    for stage in range(assignment.n_stages):
        if stage != assignment.stage:
            found["reduce", stage] = tied
    for stage in (*assignment.senders, *assignment.receivers):
        found["ping", stage] = {}
    for stage in assignment.senders:
        found["activation", stage] = {
            v.name: v
            for v in program.inputs
            if v.name not in external and assignment.source(v.name) == stage
        }
    for stage in assignment.receivers:
        found["gradient", stage] = {
            name: values[name]
            for name in program.outputs
            if values[name].requires_grad and assignment.target(name) == stage
        }
    return found
