"""Compute one member of a sliced program: one thread that takes its group's actions in order.

    input(round) -> [ values of others -> segment -> values ] for each segment -> result
                    [ gradients of others -> segment -> gradients ] in reverse -> update

Order and staleness are ``plan.Stream``'s, as in a pipeline of the groups, with one microbatch a
step and without a flush. What has not come when nothing more is to be expected of a message counts
as zero; what came is scaled by one over the share that arrives from its sender, forward and
backward, so that sums are right on average (``codec.datagrams``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import torch

from edgeweave.core.clock import Clock
from edgeweave.device.activity import Activity
from edgeweave.device.frames.scalars import hyperparameters_in, told_loss
from edgeweave.device.messages import Pulse
from edgeweave.device.optimizer import StageOptimizer
from edgeweave.device.slices.exchange import SliceExchange
from edgeweave.device.slices.flight import Flight
from edgeweave.device.slices.hearing import Factor, Hearing
from edgeweave.device.slices.member_messages import Message, Wire, Wiring
from edgeweave.device.slices.messages import SliceAssignment
from edgeweave.device.slices.parcels import Parcel, ParcelId, Way
from edgeweave.device.stages.executor import RunEnded
from edgeweave.device.stages.rounds import Rounds
from edgeweave.device.stages.snapshots import State
from edgeweave.device.threads import adopt_torch_threads
from edgeweave.device.throttle import Throttle
from edgeweave.net import Frame
from edgeweave.plan import Backward, Due, Forward, Learn, Stream
from edgeweave.program import Member, Moment, Routes, Sliced, StageResult

__all__ = ["SliceExecutor"]

_Tensors = dict[str, torch.Tensor]


class SliceExecutor:
    """Runs one member until it is released. Owned by ``with``: leaving joins the thread."""

    def __init__(
        self,
        assignment: SliceAssignment,
        sliced: Sliced,
        member: Member,
        optimizer: StageOptimizer,
        exchange: SliceExchange,
        *,
        throttle: Throttle,
        clock: Clock,
        patience_seconds: float,
        on_fault: Callable[[BaseException], None],
    ) -> None:
        """``patience_seconds`` are for messages that are not lost (``Timeouts.frame``)."""
        self._assignment = assignment
        self._rank = assignment.stage
        self._group = sliced.members[self._rank][0]
        self._member = member
        self._optimizer = optimizer
        self._exchange = exchange
        self._throttle = throttle
        self._clock = clock
        self._patience_seconds = patience_seconds
        self._on_fault = on_fault
        self._routes = Routes(sliced)
        self._wiring = Wiring.of(self._routes, exchange.messages, sliced, self._rank)
        self.hearing = Hearing(exchange.roster, exchange.parcels)
        self._flights: dict[int, Flight] = {}
        self._copy: State = {}
        self._square: float | None = None
        """Of the gradient that the last update applied, where that is asked for."""
        self._activity = Activity(assignment, clock, lambda: exchange.awaited)
        self._thread = threading.Thread(target=self._run, name=f"edgeweave-member-{self._rank}")
        self._rounds = Rounds(assignment)
        self.seconds: dict[str, float] = {"compute": 0.0, "wait": 0.0, "idle": 0.0}

    @property
    def rounds(self) -> int:
        """Rounds finished so far, those before this member came included."""
        return self._rounds.done

    def pulse(self) -> Pulse:
        """What the compute thread does now; it is not asked."""
        return self._activity.pulse(self._rounds.done)

    def __enter__(self) -> Self:
        self._exchange.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._exchange.fail(RunEnded("the run was released"))
        self._thread.join()
        self._exchange.__exit__(None, None, None)

    def wait_state(self, rounds: int, *, timeout_seconds: float) -> State:
        """A copy of what training changes, the optimizer's part included, after so many rounds.

        Raises an error at once if they never will be done.
        """
        self._rounds.wait(rounds, timeout_seconds=timeout_seconds)
        return self.state()

    def move(self, rank: int, device: str) -> None:
        """Another member is on that device from now on."""
        self._exchange.move(rank, device)

    def copy(self) -> State:
        """What training changed up to the last update that was to be copied; empty before."""
        return self._copy

    def state(self) -> State:
        """The same at once. Only on the member's own thread, or while it computes nothing."""
        tensors = {**self._member.state_dict(), **self._optimizer.tensors()}
        return {n: t.detach().to("cpu", copy=True).contiguous() for n, t in tensors.items()}

    def _run(self) -> None:
        adopt_torch_threads()
        try:
            with self._timed("idle", "idle"):
                begin = self._exchange.wait_first()
            self._end_round(begin.header.step - 1)
            while True:
                if begin.header.scalars["train"]:
                    begin = self._train(begin)
                    continue
                self._evaluate(begin)
                begin = self._learn(begin.header.step + 1)
        except RunEnded:
            return
        except BaseException as error:  # noqa: BLE001 - a thread's boundary: reported, never lost
            self._exchange.fail(RunEnded("the member failed"))
            self._on_fault(error)
        finally:
            self._rounds.end()

    def _learn(self, round: int) -> Frame:  # noqa: A002  the protocol's word
        """What the coordinator says of a round, waited for."""
        with self._timed("idle", "idle"):
            return self._exchange.wait_input(round)

    def _train(self, begin: Frame) -> Frame:
        """This round and all that follow, until one that trains nothing, which is returned."""
        first = begin.header.step
        stream = Stream(self._group, len(self._assignment.groups))
        stream.begin_step(1)
        self._flights = {first: Flight.of(begin)}
        while choices := stream.choices():
            due = choices[0]
            stream.take(due)
            round_ = first + due.step
            if not isinstance(due.action, Learn):
                self._do(due, round_)
                continue
            begin = self._learn(round_)
            if begin.header.scalars["train"]:
                self._flights[round_] = Flight.of(begin)
                stream.begin_step(1)
            else:
                stream.end()
        return begin

    def _do(self, due: Due, round_: int) -> None:
        flight = self._flights[round_]
        if isinstance(due.action, Forward):
            self._forward(round_, flight)
        elif isinstance(due.action, Backward):
            self._backward(round_, flight)
        else:
            self._update(flight)
            del self._flights[round_]
            self._end_round(round_)

    def _end_round(self, round_: int) -> None:
        self._exchange.parcels.forget_before(min(self._flights, default=round_ + 1))
        self._rounds.finish(round_)

    def _forward(self, round_: int, flight: Flight) -> None:
        told = {"samples": float(flight.samples)}
        for segment in self._member.segments:
            given = self._given(segment, round_, flight)
            with self._computing("forward", segment, flight):
                moment = Moment(flight.step, 0)
                result = self._member.forward(segment, given, moment, key=round_)
            self._hand_on(segment, round_, flight, result)
            told |= told_loss(result)
        if self._square is not None:
            told["square"] = self._square
        self._exchange.tell(round_, told)

    def _evaluate(self, begin: Frame) -> None:
        """A round without a backward; without samples it only ends what is under way."""
        flight, round_ = Flight.of(begin), begin.header.step
        told = {"samples": float(flight.samples)}
        for segment in self._member.segments if flight.samples else ():
            given = self._given(segment, round_, flight)
            with self._computing("evaluate", segment, flight):
                result = self._member.evaluate(segment, given)
            self._hand_on(segment, round_, flight, result)
            told |= told_loss(result)
        self._exchange.tell(round_, told)
        self._end_round(round_)

    def _given(self, segment: int, round_: int, flight: Flight) -> _Tensors:
        """A segment's inputs, as far as they come."""
        wires = self._wiring.arriving[segment]
        senders = [(each, each.message.sender) for each in wires]
        parcels = self._wait("values", senders, round_, flight)
        given = self._member.blank(segment, flight.samples)
        for wire in wires:
            transfer, sender = wire.transfer, wire.message.sender
            part: torch.Tensor | None
            factor: Factor
            if sender == self._rank:
                held = flight.outputs[transfer.source.segment][transfer.value]
                part, factor = self._routes.cut_from_source(transfer, held), 1.0
            else:
                part, factor = self._opened(wire, parcels, sender, flight)
            flight.factors[wire.number] = factor
            if part is not None:
                self._routes.add_at_target(transfer, given[transfer.value], part)
        return given | dict(flight.inputs)

    def _wait(
        self, way: Way, wires: list[tuple[Wire, int]], round_: int, flight: Flight
    ) -> dict[int, Parcel]:
        """What comes of other members' messages, by transfer, as soon as nothing more will."""
        wanted = {
            ParcelId(way, round_, wire.number): sender
            for wire, sender in wires
            if sender != self._rank and sender not in flight.absent
        }
        if not wanted:
            return {}
        seconds = self._patience_seconds if flight.is_reliable else None
        with self._timed("wait", way):
            found = self._exchange.parcels.wait(wanted, seconds=seconds)
        return {key.transfer: parcel for key, parcel in found.items()}

    def _opened(
        self, wire: Wire, parcels: Mapping[int, Parcel], sender: int, flight: Flight
    ) -> tuple[torch.Tensor | None, Factor]:
        return self.hearing.opened(
            parcels.get(wire.number),
            wire.message,
            sender,
            samples=flight.samples,
            reliable=flight.is_reliable,
        )

    def _hand_on(self, segment: int, round_: int, flight: Flight, result: StageResult) -> None:
        """What a segment made, to those who need it."""
        made = {name: tensor.cpu() for name, tensor in result.outputs.items()}
        flight.outputs[segment] = made
        for wire in self._wiring.leaving[segment]:
            receiver = wire.message.receiver
            if receiver != self._rank and receiver not in flight.absent:
                part = self._routes.cut_from_source(wire.transfer, made[wire.transfer.value])
                self._send("values", wire.message, round_, part, flight)

    def _backward(self, round_: int, flight: Flight) -> None:
        for segment in self._member.segments[::-1]:
            gradients = self._gradients(segment, round_, flight)
            with self._computing("backward", segment, flight):
                found = self._member.backward(segment, round_, gradients)
            for wire in self._wiring.arriving[segment]:
                self._hand_back(wire, round_, flight, found)

    def _gradients(self, segment: int, round_: int, flight: Flight) -> _Tensors:
        """Those of a segment's outputs, as far as they come."""
        wires = self._wiring.returning[segment]
        receivers = [(each, each.message.receiver) for each in wires]
        parcels = self._wait("gradients", receivers, round_, flight)
        found: _Tensors = {}
        for wire in wires:
            transfer, target = wire.transfer, wire.message.receiver
            if target == self._rank:
                part = flight.returned.pop(wire.number, None)
            else:
                part, _ = self._opened(wire, parcels, target, flight)
            if part is None:
                continue
            made = flight.outputs[segment][transfer.value]
            into = found.setdefault(transfer.value, torch.zeros_like(made))
            self._routes.add_at_source(transfer, into, part)
        return found

    def _hand_back(
        self, wire: Wire, round_: int, flight: Flight, found: Mapping[str, torch.Tensor]
    ) -> None:
        """The gradient of what a transfer brought, to who sent it: scaled as that was."""
        transfer, sender = wire.transfer, wire.message.sender
        gradient, factor = found.get(transfer.value), flight.factors[wire.number]
        is_known = gradient is not None and not (isinstance(factor, float) and factor == 0.0)
        part = None
        if gradient is not None and is_known:
            part = self._routes.cut_from_target(transfer, gradient.cpu())
            part = part if isinstance(factor, float) and factor == 1.0 else part * factor
        if sender == self._rank:
            if part is not None:
                flight.returned[wire.number] = part
        elif wire.message.value.requires_grad and sender not in flight.absent:
            self._send("gradients", wire.message, round_, part, flight)

    def _send(
        self,
        way: Way,
        message: Message,
        round_: int,
        part: torch.Tensor | None,
        flight: Flight,
    ) -> None:
        samples, reliable = flight.samples, flight.is_reliable
        self._exchange.send(way, message, round_, part, samples=samples, reliable=reliable)

    def _update(self, flight: Flight) -> None:
        with self._computing("update", -1, flight):
            self._square = _squared(self._member) if flight.scalars.get("square") else None
            self._member.leave_version()
            self._optimizer.step(hyperparameters_in(flight.scalars))
            self._optimizer.clear_gradients()
        if flight.scalars.get("copy"):
            self._copy = self.state()

    @contextmanager
    def _computing(self, kind: str, segment: int, flight: Flight) -> Iterator[None]:
        pace = (kind, segment, flight.samples)
        with self._timed("compute", kind), self._throttle.pace(pace):
            yield

    @contextmanager
    def _timed(self, account: str, shown: str) -> Iterator[None]:
        started = self._clock.now()
        try:
            with self._activity.of(account, shown, -1):
                yield
        finally:
            self.seconds[account] += self._clock.now() - started


def _squared(member: Member) -> float:
    """The square of a member's gradient."""
    gradients = (parameter.grad for parameter in member.parameters.values())
    return sum(float(each.square().sum()) for each in gradients if each is not None)
