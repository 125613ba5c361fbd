"""Train super neurons in one process, over links that lose, on a clock that counts slots.

Members compute their real segments with their real weights; what is made up is the links and the
time. A slot is one layer forward or backward (EdgePipe's unit); a message takes none, unless it is
sent again, and then one for each time. Groups follow 1F1B without a flush, so weights are stashed
as on devices. It answers, before any board is bought: what will this model learn over such links?

    tolerant         what is lost is zero, the rest is rescaled; nobody waits
    dropping         a lost message ends its microbatch there: PipeDream under loss
    retransmitting   nothing is lost, and everybody waits
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from edgeweave.codec import kept, n_datagrams
from edgeweave.plan import Backward, Due, Forward, Learn, Stream
from edgeweave.program import (
    Member,
    Moment,
    Routes,
    Shard,
    Sliced,
    StageResult,
    Transfer,
    flatten_inputs,
    gather_state,
    slice_state,
)
from edgeweave.train.slices.link_fates import Fates

__all__ = ["Delivery", "Rehearsal", "RehearsalSetup"]

Delivery = Literal["tolerant", "dropping", "retransmitting"]
Batch = tuple[Any, Any]
_Tensors = dict[str, torch.Tensor]
_Factor = torch.Tensor | float


@dataclass(frozen=True, slots=True)
class RehearsalSetup:
    """How a rehearsal runs."""

    placement: Sequence[str]
    """The device of each of ``Sliced.members``."""
    delivery: Delivery = "tolerant"
    is_rescaled: bool = True
    is_pipelined: bool = True
    repeat_slots: float = 1.0
    """What sending a message again takes."""
    seed: int = 0
    deaths: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Devices that are dead from one slot to another."""


@dataclass(slots=True)
class _Flight:
    """A microbatch on its way."""

    inputs: _Tensors
    outputs: dict[Shard, _Tensors] = field(default_factory=dict)
    gradients: dict[Shard, _Tensors] = field(default_factory=dict)
    factors: dict[Transfer, _Factor] = field(default_factory=dict)
    ready: dict[tuple[int, str], float] = field(default_factory=dict)
    """When a group may begin with it: (group, "forward" or "backward")."""
    is_dropped: bool = False
    waits_between: float = 0.0
    waits_inside: float = 0.0
    """Slots that the present turn waited for messages sent again: of other groups, of its own."""
    waits: dict[int, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Worker:
    """A group: its members do everything at the same time."""

    number: int
    members: list[Member]
    optimizers: list[torch.optim.Optimizer | None]
    segments: list[int]
    forward_slots: float
    backward_slots: float
    stream: Stream
    free_at: float = 0.0


class Rehearsal:
    """Members that own copies of their parts of ``state``."""

    def __init__(
        self,
        sliced: Sliced,
        state: Mapping[str, torch.Tensor],
        make_optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
        fates: Fates,
        setup: RehearsalSetup,
    ) -> None:
        self._sliced, self._fates, self._setup = sliced, fates, setup
        self._state = {name: tensor.detach().clone() for name, tensor in state.items()}
        self._device = dict(zip(sliced.members, setup.placement, strict=True))
        self._routes = Routes(sliced)
        self._workers = [
            self._worker(number, make_optimizer) for number in range(len(sliced.groups))
        ]
        self._flights: dict[int, _Flight] = {}
        self.slots = 0.0
        """When the last update was done."""
        self.n_broken = 0
        """Microbatches that were dropped on their way."""

    def train(self, batches: Iterator[Batch], *, slots: float | None = None) -> int:
        """Train until the batches or the slots end; how many batches were begun."""
        known = 0
        is_over = False
        busy = True
        while busy:
            busy = False
            for worker in self._workers:
                choices = worker.stream.choices()
                if not choices:
                    continue
                due = choices[0]
                if isinstance(due.action, Learn):
                    late = slots is not None and worker.free_at >= slots
                    if due.step == known and not is_over:
                        batch = None if late else next(batches, None)
                        is_over = batch is None
                        if batch is not None:
                            self._flights[known] = _Flight(flatten_inputs(*batch))
                            known += 1
                    if due.step < known:
                        worker.stream.begin_step(1)
                    else:
                        worker.stream.end()
                    busy = True
                elif self._do(worker, due):
                    worker.stream.take(due)
                    busy = True
        for worker in self._workers:
            worker.stream = self._stream(worker.number)
        return known

    def evaluate(self, batch: Batch, *, over: Fates | None = None) -> dict[str, float]:
        """Loss and metrics of the living devices' answers; ``over`` links, or losing nothing."""
        inputs = flatten_inputs(*batch)
        outputs: dict[Shard, _Tensors] = {}
        found: StageResult | None = None
        for worker in self._workers:
            for shard, member in self._living(worker, worker.segments):
                given = self._given(member, shard, inputs, outputs, over)
                result = member.evaluate(shard.segment, given)
                outputs[shard] = result.outputs
                found = result if result.loss is not None else found
        if found is None or found.loss is None:
            return {}
        return {"loss": float(found.loss)} | {k: float(v) for k, v in found.metrics.items()}

    def state_dict(self) -> _Tensors:
        """The user's state, from all members."""
        parts = {
            (worker.number, number): member.state_dict()
            for worker in self._workers
            for number, member in enumerate(worker.members)
        }
        return gather_state(self._sliced, parts, self._state)

    def _worker(
        self,
        number: int,
        make_optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
    ) -> _Worker:
        sliced, group = self._sliced, self._sliced.groups[number]
        members = [
            Member(
                sliced,
                number,
                member,
                slice_state(sliced, self._state, number, member),
                seed=self._setup.seed,
            )
            for member in range(group.n_members)
        ]
        optimizers = [
            make_optimizer(list(m.parameters.values())) if m.parameters else None for m in members
        ]
        segments = [n for n, segment in enumerate(sliced.segments) if segment.group == number]
        n_layers = sliced.n_layers(number)
        return _Worker(
            number,
            members,
            optimizers,
            segments,
            forward_slots=n_layers,
            # Nobody needs the gradient of what the data owner sent.
            backward_slots=n_layers - (number == 0),
            stream=self._stream(number),
        )

    def _stream(self, number: int) -> Stream:
        n_groups = len(self._sliced.groups)
        return Stream(number, n_groups) if self._setup.is_pipelined else Stream(0, 1)

    def _do(self, worker: _Worker, due: Due) -> bool:
        flight = self._flights[due.step]
        if isinstance(due.action, Forward):
            return self._take_turn(worker, flight, due.step, "forward")
        if isinstance(due.action, Backward):
            return self._take_turn(worker, flight, due.step, "backward")
        self._update(worker)
        if worker.number == 0:
            del self._flights[due.step]
        self.slots = max(self.slots, worker.free_at)
        return True

    def _take_turn(self, worker: _Worker, flight: _Flight, step: int, way: str) -> bool:
        """One pass of a group, if what comes before is done."""
        last = len(self._workers) - 1
        begins = worker.number == (0 if way == "forward" else last)
        ready = 0.0 if begins else flight.ready.get((worker.number, way))
        if ready is None:
            return False
        self._bury(max(worker.free_at, ready))
        flight.waits_between = flight.waits_inside = 0.0
        flight.waits = {}
        if way == "forward":
            self._forward(worker, flight, step)
            start = max(worker.free_at, ready + flight.waits_between)
            worker.free_at = start + worker.forward_slots + flight.waits_inside
            flight.ready[worker.number + 1, way] = worker.free_at
        else:
            self._backward(worker, flight, step)
            start = max(worker.free_at, ready)
            worker.free_at = start + worker.backward_slots + flight.waits_inside
            flight.ready[worker.number - 1, way] = worker.free_at + flight.waits_between
        return True

    def _forward(self, worker: _Worker, flight: _Flight, step: int) -> None:
        for shard, member in self._living(worker, worker.segments):
            if flight.is_dropped:
                return
            given = self._given(member, shard, flight.inputs, flight.outputs, self._fates, flight)
            if not flight.is_dropped:
                result = member.forward(shard.segment, given, Moment(step, 0), key=step)
                flight.outputs[shard] = result.outputs

    def _living(self, worker: _Worker, segments: Sequence[int]) -> Iterator[tuple[Shard, Member]]:
        for segment in segments:
            for number, member in enumerate(worker.members):
                if not self._is_dead(worker.number, number) and segment in member.segments:
                    yield Shard(segment, number), member

    def _given(
        self,
        member: Member,
        shard: Shard,
        inputs: _Tensors,
        outputs: Mapping[Shard, _Tensors],
        fates: Fates | None,
        flight: _Flight | None = None,
    ) -> _Tensors:
        """A segment's inputs, as far as they arrive."""
        given = member.blank(shard.segment, len(next(iter(inputs.values()))))
        for transfer in self._routes.arriving.get(shard, ()):
            held = outputs.get(transfer.source, {}).get(transfer.value)
            part = None if held is None else self._routes.cut_from_source(transfer, held)
            factor: _Factor = 0.0 if part is None else 1.0
            if fates is not None and self._is_link(transfer):
                factor = self._carry(transfer, self._ends(transfer), part, fates, flight)
            if flight is not None:
                if flight.is_dropped:
                    self.n_broken += 1
                    return given
                flight.factors[transfer] = factor
            if part is not None and not _is_number(factor, 0.0):
                part = part if _is_number(factor, 1.0) else part * factor
                self._routes.add_at_target(transfer, given[transfer.value], part)
        return given | inputs

    def _carry(
        self,
        transfer: Transfer,
        ends: tuple[str, str],
        part: torch.Tensor | None,
        fates: Fates,
        flight: _Flight | None,
    ) -> _Factor:
        """What a part is multiplied with on its way over a link."""
        delivery = "tolerant" if flight is None else self._setup.delivery
        if part is None or fates.dead.intersection(ends):
            if flight is not None:
                flight.is_dropped = delivery != "tolerant"
            return 0.0
        count = n_datagrams(part.shape, part.element_size())
        if delivery == "retransmitting" and flight is not None:
            slots = self._setup.repeat_slots * fates.repeats(*ends, count)
            self._wait(flight, transfer, slots)
            return 1.0
        arrived = fates.arrived(*ends, count)
        if delivery == "dropping" and flight is not None:
            flight.is_dropped = not bool(arrived.all())
            return 1.0
        if not bool(arrived.any()):
            return 0.0
        scale = fates.scale(*ends) if self._setup.is_rescaled else 1.0
        if bool(arrived.all()):
            return scale
        return kept(part.shape, arrived).to(part.dtype) * scale

    def _wait(self, flight: _Flight, transfer: Transfer, slots: float) -> None:
        """Messages of one exchange travel at the same time; exchanges follow each other."""
        segment = transfer.target.segment
        groups = [
            self._sliced.segments[at.segment].group for at in (transfer.source, transfer.target)
        ]
        if groups[0] != groups[1]:
            flight.waits_between = max(flight.waits_between, slots)
            return
        before = flight.waits.get(segment, 0)
        flight.waits[segment] = max(before, slots)
        flight.waits_inside += max(before, slots) - before

    def _backward(self, worker: _Worker, flight: _Flight, step: int) -> None:
        for shard, member in self._living(worker, worker.segments[::-1]):
            if shard not in flight.outputs:
                continue
            if flight.is_dropped:
                member.forget(shard.segment, step)
                continue
            gradients = flight.gradients.pop(shard, {})
            self._return(shard, member.backward(shard.segment, step, gradients), flight)

    def _return(self, shard: Shard, found: _Tensors, flight: _Flight) -> None:
        """Hand the gradients of a segment's inputs to who made them."""
        for transfer in self._routes.arriving.get(shard, ()):
            gradient = found.get(transfer.value)
            factor = flight.factors[transfer]
            if gradient is None or _is_number(factor, 0.0):
                continue
            part = self._routes.cut_from_target(transfer, gradient)
            part = part if _is_number(factor, 1.0) else part * factor
            if self._is_link(transfer):
                ends = self._ends(transfer)[::-1]
                back = self._carry(transfer, ends, part, self._fates, flight)
                if flight.is_dropped:
                    self.n_broken += 1
                    return
                if _is_number(back, 0.0):
                    continue
                part = part * back
            into = flight.gradients.setdefault(transfer.source, {})
            if transfer.value not in into:
                made = flight.outputs[transfer.source][transfer.value]
                into[transfer.value] = torch.zeros_like(made)
            self._routes.add_at_source(transfer, into[transfer.value], part)

    def _update(self, worker: _Worker) -> None:
        for number, (member, optimizer) in enumerate(
            zip(worker.members, worker.optimizers, strict=True)
        ):
            if optimizer is None or self._is_dead(worker.number, number):
                continue
            member.leave_version()
            optimizer.step()
            optimizer.zero_grad()

    def _bury(self, slot: float) -> None:
        self._fates.dead = {
            device for device, (start, stop) in self._setup.deaths.items() if start <= slot < stop
        }

    def _is_dead(self, group: int, member: int) -> bool:
        return self._device[group, member] in self._fates.dead

    def _ends(self, transfer: Transfer) -> tuple[str, str]:
        source, target = (
            self._device[self._sliced.segments[shard.segment].group, shard.member]
            for shard in (transfer.source, transfer.target)
        )
        return source, target

    def _is_link(self, transfer: Transfer) -> bool:
        source, target = self._ends(transfer)
        return source != target


def _is_number(factor: _Factor, number: float) -> bool:
    return isinstance(factor, float) and factor == number
