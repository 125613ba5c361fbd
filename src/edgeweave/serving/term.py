"""A plan at work: stages deployed, shipments sent, outputs received. Plans nothing.

Shipments have the numbers 0, 1, 2, ... in a term; every stage computes them in this order. Frames
of a term are heard until it is closed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

import torch

from edgeweave.codec import Codec
from edgeweave.core.clock import Clock
from edgeweave.core.errors import DeviceFailed, EdgeweaveError, RequestError, WireError
from edgeweave.device import (
    COORDINATOR,
    Place,
    Serve,
    Served,
    as_mapping,
    decode_message,
    tensor_frame,
)
from edgeweave.device.timings import told_forwards
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
from edgeweave.program import Program, cut, encode_state, is_external, ways
from edgeweave.serving.requests import Shipment

__all__ = ["Deployed", "Hearing", "ServingTerm"]

_LONGEST_REASON_BYTES = 1 << 17
_ROUND = 0
_TIMED, _LEAST_TIMED = 256, 8
"""So many requests tell what they took at most, and at least, before anything is said of it."""
_CROWDED = Served(is_ready=False)


@dataclass(frozen=True, slots=True)
class Hearing:
    """Who is told what of a term."""

    answered: Callable[[Shipment, Mapping[str, torch.Tensor]], None]
    refused: Callable[[Shipment, EdgeweaveError], None]
    room: Callable[[], None]
    """Another shipment may be sent."""
    failed: Callable[[int, EdgeweaveError], None]
    """The term, by its number, cannot go on."""


@dataclass(frozen=True, slots=True)
class Deployed:
    """What became of putting a term's stages on their devices."""

    failed: Mapping[str, EdgeweaveError]
    """Who could not take its stage, and why; the term is ready if it is empty."""
    taken: frozenset[str]
    """Who has its stage now."""
    has_ended_stages: bool
    """Whether stages of earlier terms were ended for it: these answer no more."""


@dataclass(frozen=True, slots=True)
class _Goods:
    """What devices may be sent, and what each has."""

    graph: bytes
    state: Mapping[str, torch.Tensor]
    held: Mapping[str, frozenset[str] | None]


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
        self._is_direct = plan.skips == "direct"
        first_units = [stage.first_unit for stage in plan.stages[1:]]
        self.stages: Sequence[Program] = cut(program, first_units, direct=self._is_direct)
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
        self._took: dict[int, deque[float]] = {
            index: deque(maxlen=_TIMED) for index in range(len(plan.stages))
        }

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

    def taken_seconds(self) -> dict[str, float]:
        """What a usual request took on each device since this was last asked, the median.

        Empty until enough of them were answered.
        """
        with self._lock:
            if min(map(len, self._took.values())) < _LEAST_TIMED:
                return {}
            found = {
                self.plan.devices[index]: median(seconds) for index, seconds in self._took.items()
            }
            for seconds in self._took.values():
                seconds.clear()
            return found

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
        *,
        makes_room: bool = False,
    ) -> Deployed:
        """Put the stages on their devices, all at once.

        ``held``: those that have the program, and what tensors they have of the term before, which
        do not travel again. Where a device has no room for two stages, the one of the term before
        is ended only once all others have taken theirs, or at once with ``makes_room``.
        """
        goods = _Goods(graph, state, held)
        everybody = range(len(self.stages))
        outcomes = self._given(everybody, goods, makes_room=makes_room)
        crowded = [i for i, found in outcomes.items() if found == _CROWDED]
        if crowded and not any(isinstance(found, EdgeweaveError) for found in outcomes.values()):
            outcomes |= self._given(crowded, goods, makes_room=True)
        named = {self.plan.devices[index]: found for index, found in outcomes.items()}
        served = {d: found for d, found in named.items() if isinstance(found, Served)}
        return Deployed(
            failed={d: found for d, found in named.items() if isinstance(found, EdgeweaveError)},
            taken=frozenset(device for device, found in served.items() if found.is_ready),
            has_ended_stages=any(found.has_ended_stages for found in served.values()),
        )

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

    def _given(
        self, indices: Sequence[int], goods: _Goods, *, makes_room: bool
    ) -> dict[int, Served | EdgeweaveError]:
        """Give these stages to their devices; what each says."""

        def outcome(index: int) -> Served | EdgeweaveError:
            message = self._message(index, goods, makes_room=makes_room)
            seconds = self._fleet.timeouts.work
            device = self.plan.devices[index]
            try:
                answer = self._fleet.ask(device, "serve", message, timeout_seconds=seconds)
                return decode_message(answer, Served)
            except EdgeweaveError as error:
                return error

        with ThreadPoolExecutor(max_workers=len(indices)) as pool:
            return dict(zip(indices, pool.map(outcome, indices), strict=True))

    def _message(self, index: int, goods: _Goods, *, makes_room: bool) -> Serve:
        known = goods.held.get(self.plan.devices[index])
        needed = [spec.name for spec in self.stages[index].state]
        own = tuple(sorted((known or frozenset()).intersection(needed)))
        tensors = encode_state({name: goods.state[name] for name in needed if name not in own})
        way = ways(self.stages)[index]
        place = Place(
            run=self._run,
            term=self.number,
            coordinator=self._fleet.transport.name,
            stage=index,
            devices=self.plan.devices,
            microbatch_size=self._most_samples,
            max_microbatches=self.plan.in_flight,
            sources=way.sources,
            targets=way.targets,
        )
        return Serve(
            place,
            tuple(stage.first_unit for stage in self.plan.stages[1:]),
            goods.graph if known is None else None,
            memoryview(tensors),
            self.plan.batch_size,
            own,
            self._codec,
            makes_room,
            self._is_direct,
        )

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
        told_forwards(header.scalars, n_stages)
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
                under_way.reason = _reason(frame)
            else:
                under_way.is_returned = True
                for stage, seconds in told_forwards(header.scalars, len(self.stages)).items():
                    self._took[stage].append(seconds)
            is_refused = bool(header.scalars.get("refused")) or under_way.reason is not None
            if not under_way.is_returned or (is_refused and under_way.reason is None):
                return
            del self._open[header.microbatch]
        if under_way.reason is not None:
            self._hearing.refused(under_way.shipment, under_way.reason)
        else:
            self._hearing.answered(under_way.shipment, as_mapping(frame))
        self._hearing.room()


def _reason(frame: Frame) -> EdgeweaveError:
    """Why a stage refused: the request's fault, unless it says that it is the device's."""
    data = bytes(frame.tensors[0].numpy().tobytes())
    header = frame.header
    text = str(decode_error(data, header.device)).splitlines()[0]
    if header.scalars.get("device"):
        return DeviceFailed(text, device=header.device, stage=header.stage)
    return RequestError(f"the model cannot compute this request ({text}).")
