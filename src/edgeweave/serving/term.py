"""A plan at work: stages deployed, shipments sent, outputs received. Plans nothing.

Shipments have the numbers 0, 1, 2, ... in a term; every stage computes them in this order. Frames
of a term are heard until it is closed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from edgeweave.codec import Codec
from edgeweave.core.clock import Clock
from edgeweave.core.errors import EdgeweaveError, RequestError, WireError
from edgeweave.device import COORDINATOR, Place, Serve, as_mapping, tensor_frame
from edgeweave.fleet import Fleet
from edgeweave.net import (
    Frame,
    FrameHeader,
    Subscription,
    TensorSpec,
    frame_key,
    frame_pattern,
    payload_bytes,
)
from edgeweave.net.remote import decode_error
from edgeweave.plan import ServingPlan
from edgeweave.program import Program, cut, encode_state, is_external
from edgeweave.serving.requests import Shipment

__all__ = ["Hearing", "ServingTerm"]

_LONGEST_REASON_BYTES = 1 << 17
_ROUND = 0


@dataclass(frozen=True, slots=True)
class Hearing:
    """Who is told what of a term."""

    answered: Callable[[Shipment, Mapping[str, torch.Tensor]], None]
    refused: Callable[[Shipment, EdgeweaveError], None]
    room: Callable[[], None]
    """Another shipment may be sent."""
    failed: Callable[[int, EdgeweaveError], None]
    """The term, by its number, cannot go on."""


@dataclass(slots=True)
class _Open:
    """A shipment under way. One that is refused is over when both halves of that are here."""

    shipment: Shipment
    reason: EdgeweaveError | None = None
    is_returned: bool = False


class ServingTerm:
    """One plan, from ``deploy`` to ``close``. Safe from several threads."""

    def __init__(
        self,
        fleet: Fleet,
        run: str,
        number: int,
        program: Program,
        plan: ServingPlan,
        *,
        most_samples: int,
        hearing: Hearing,
        codec: Codec | None = None,
    ) -> None:
        self.number = number
        self.plan = plan
        self.stages: Sequence[Program] = cut(program, [s.first_unit for s in plan.stages[1:]])
        self._fleet = fleet
        self._run = run
        self._most_samples = most_samples
        self._hearing = hearing
        self._codec = codec
        self._lock = threading.Lock()
        self._open: dict[int, _Open] = {}
        self._next = 0
        self._has_ended = False
        self._clock: Clock = fleet.clock
        self._progress_seconds = self._clock.now()
        values = self.stages[-1].values()
        self._outputs = {name: values[name] for name in program.outputs}
        self._subscription: Subscription | None = None

    @property
    def has_room(self) -> bool:
        with self._lock:
            return len(self._open) < self.plan.in_flight

    @property
    def is_empty(self) -> bool:
        """Whether nothing is under way."""
        with self._lock:
            return not self._open

    @property
    def n_sent(self) -> int:
        """Shipments sent so far."""
        with self._lock:
            return self._next

    def silent_seconds(self) -> float:
        """For how long something has been under way and nothing came; 0 if nothing is."""
        with self._lock:
            return self._clock.now() - self._progress_seconds if self._open else 0.0

    def listen(self) -> None:
        """Hear what the stages answer, until ``close``."""
        specs = [
            TensorSpec(name, value.dtype, value.shape_at(self._most_samples))
            for name, value in self._outputs.items()
        ]
        self._subscription = self._fleet.transport.subscribe(
            frame_pattern(self._fleet.name, self._run, self.number, COORDINATOR),
            self._receive,
            on_error=lambda error: self._hearing.failed(self.number, error),
            expect=self._expect,
            limit_bytes=max(payload_bytes(specs), _LONGEST_REASON_BYTES),
        )

    def deploy(
        self,
        graph: bytes,
        state: Mapping[str, torch.Tensor],
        held: Mapping[str, frozenset[str] | None],
    ) -> dict[str, EdgeweaveError]:
        """Put the stages on their devices, all at once; who could not take its stage, and why.

        ``held``: those that have the program, and what tensors they have of the term before, which
        do not travel again.
        """
        failed: dict[str, EdgeweaveError] = {}

        def give(index: int) -> None:
            device = self.plan.devices[index]
            known = held.get(device)
            sent = graph if known is None else None
            message = self._message(index, sent, state, known or frozenset())
            seconds = self._fleet.timeouts.work
            try:
                self._fleet.ask(device, "serve", message, timeout_seconds=seconds)
            except EdgeweaveError as error:
                failed[device] = error

        with ThreadPoolExecutor(max_workers=len(self.stages)) as pool:
            list(pool.map(give, range(len(self.stages))))
        return failed

    def weights_of(self, device: str) -> frozenset[str]:
        """The names of what a device holds in this term."""
        stage = self.stages[self.plan.devices.index(device)]
        return frozenset(spec.name for spec in stage.state)

    def send(self, shipment: Shipment) -> bool:
        """Send a shipment to the stages that take its inputs; False if the term has ended.

        One thread at a time. Where sending fails, the shipment is among those to be taken back.
        """
        with self._lock:
            if self._has_ended:
                return False
            number, self._next = self._next, self._next + 1
            if not self._open:
                self._progress_seconds = self._clock.now()
            self._open[number] = _Open(shipment)
        tensors = shipment.tensors()
        for index, stage in enumerate(self.stages):
            used = {v.name: tensors[v.name] for v in stage.inputs if is_external(v.name)}
            if used:
                self._send(index, number, used, shipment.samples)
        return True

    def take_back(self) -> list[Shipment]:
        """Hear and send nothing more, and hand out what is unanswered, in its order."""
        self.close()
        with self._lock:
            self._has_ended = True
            left = [self._open[number].shipment for number in sorted(self._open)]
            self._open.clear()
        return left

    def close(self) -> None:
        """Hear nothing more."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()

    def _message(
        self,
        index: int,
        graph: bytes | None,
        state: Mapping[str, torch.Tensor],
        held: frozenset[str],
    ) -> Serve:
        needed = [spec.name for spec in self.stages[index].state]
        own = tuple(sorted(held.intersection(needed)))
        tensors = encode_state({name: state[name] for name in needed if name not in own})
        place = Place(
            run=self._run,
            term=self.number,
            coordinator=self._fleet.transport.name,
            stage=index,
            devices=self.plan.devices,
            microbatch_size=self._most_samples,
            max_microbatches=self.plan.in_flight,
        )
        first_units = tuple(stage.first_unit for stage in self.plan.stages[1:])
        usual = self.plan.batch_size
        return Serve(place, first_units, graph, memoryview(tensors), usual, own, self._codec)

    def _send(
        self, stage: int, number: int, tensors: Mapping[str, torch.Tensor], samples: int
    ) -> None:
        transport = self._fleet.transport
        frame = tensor_frame(
            "input",
            transport.name,
            COORDINATOR,
            self.number,
            round=_ROUND,
            microbatch=number,
            tensors=tensors,
            scalars={"samples": float(samples)},
        )
        key = frame_key(self._fleet.name, self._run, self.number, stage, "input")
        transport.send(key, frame, device=self.plan.devices[stage])

    def _expect(self, header: FrameHeader) -> None:
        """Refuse what no stage of this term sends, before anything is allocated for it."""
        n_stages = len(self.stages)
        is_known = 0 <= header.stage < n_stages
        if not is_known or header.device != self.plan.devices[header.stage]:
            raise WireError(
                f"term {self.number} has no stage {header.stage} on {header.device} "
                f"(it sent {header.kind!r})."
            )
        found = {spec.name: (spec.dtype, spec.shape) for spec in header.tensors}
        if header.kind == "refused":
            if [(kind, len(shape)) for kind, shape in found.values()] == [("uint8", 1)]:
                return
        elif header.kind == "result" and header.stage == n_stages - 1:
            samples = int(header.scalars.get("samples", 0))
            declared = {n: (v.dtype, v.shape_at(samples)) for n, v in self._outputs.items()}
            if found == ({} if header.scalars.get("refused") else declared):
                return
        raise WireError(
            f"the coordinator expects the outputs {sorted(self._outputs)} of stage {n_stages - 1} "
            f"(got {header.kind!r} with {sorted(found)} from stage {header.stage} on "
            f"{header.device})."
        )

    def _receive(self, frame: Frame) -> None:
        header = frame.header
        with self._lock:
            self._progress_seconds = self._clock.now()
            under_way = self._open.get(header.microbatch)
            if under_way is None:
                return
            if header.kind == "refused":
                data = bytes(frame.tensors[0].numpy().tobytes())
                under_way.reason = decode_error(data, header.device)
            else:
                under_way.is_returned = True
            is_refused = bool(header.scalars.get("refused")) or under_way.reason is not None
            if not under_way.is_returned or (is_refused and under_way.reason is None):
                return
            del self._open[header.microbatch]
        if under_way.reason is not None:
            text = str(under_way.reason).splitlines()[0]
            error = RequestError(f"the model cannot compute this request ({text}).")
            self._hearing.refused(under_way.shipment, error)
        else:
            self._hearing.answered(under_way.shipment, as_mapping(frame))
        self._hearing.room()
