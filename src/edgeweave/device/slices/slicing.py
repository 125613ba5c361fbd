"""What a device has of a run of super neurons, from its first ``DeploySlice`` until it is released.

working --token gone and back, deploy without tensors--> working, with the weights it has
working --released, coordinator gone--> nothing
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack

import torch

from edgeweave.core.errors import FleetError, PlanError
from edgeweave.core.units import format_bytes
from edgeweave.device import memory
from edgeweave.device.coordinator_watch import CoordinatorWatch
from edgeweave.device.faults import report_fault
from edgeweave.device.messages import Pulse, Weigh, encode_message
from edgeweave.device.optimizer import StageOptimizer
from edgeweave.device.slices.exchange import SliceExchange
from edgeweave.device.slices.executor import SliceExecutor
from edgeweave.device.slices.messages import DeploySlice, SliceAssignment, SliceStatistics
from edgeweave.device.stages.snapshots import State
from edgeweave.device.workplace import Workplace
from edgeweave.plan import in_flight, older_versions
from edgeweave.program import (
    Member,
    Program,
    Sliced,
    StateSpec,
    decode_program,
    decode_state,
    encode_state,
    slice_program,
)

__all__ = ["Slicing"]

_log = logging.getLogger(__name__)

_SCHEDULE = "async-1f1b"
"""The order of groups: what a member holds in flight follows from it."""


class Slicing:
    """One run's place on this device. ``on_orphaned`` is called when its coordinator vanishes."""

    def __init__(self, run: str, place: Workplace, *, on_orphaned: Callable[[], None]) -> None:
        self.run = run
        self._place = place
        self._changing = threading.RLock()
        self._stack = ExitStack()
        self._executor: SliceExecutor | None = None
        self._sliced: Sliced | None = None
        self._watch = CoordinatorWatch(place, lambda _coordinator: on_orphaned())
        self._moved_before = place.transport.statistics()
        memory.reset_peak()

    @property
    def is_empty(self) -> bool:
        """Whether there is no member at work."""
        return self._executor is None

    def deploy(self, message: DeploySlice) -> None:
        """Put a member to work, in place of the one before."""
        with self._changing:
            assignment, before = message.place, self._executor
            if message.tensors is None and before is None:
                raise FleetError(
                    f"{assignment.device} has no slice of run {self.run} to go on with. "
                    "Send its weights along."
                )
            self._stack.close()
            self._executor = None
            kept = {} if before is None else before.state()
            program = decode_program(message.graph, examine=self._examine)
            sliced = slice_program(program, assignment.groups, assignment.mode)
            specs = _specs(sliced, assignment.stage)
            if message.tensors is None:
                own = {spec.name: kept[spec.name] for spec in specs if spec.name in kept}
            else:
                own = decode_state(message.tensors, specs)
            self._check_memory(assignment, sliced)
            self._begin(message, sliced, own, kept)
            self._watch.follow(assignment.coordinator)

    def state(self, rounds: int) -> bytes:
        """What training changed, the optimizer's part included, after so many rounds."""
        seconds = self._place.timeouts.work
        return encode_state(self._working().wait_state(rounds, timeout_seconds=seconds))

    def copy(self) -> bytes:
        """The same as it was when it was last to be copied; nothing before."""
        return encode_state(self._working().copy())

    def move(self, rank: int, device: str) -> None:
        """Another member is on that device from now on."""
        with self._changing:
            self._working().move(rank, device)

    def pulse(self) -> Pulse:
        """What the member does now. Waits for nothing."""
        executor = self._executor
        return Pulse(None) if executor is None else executor.pulse()

    def statistics(self) -> SliceStatistics:
        """Where the member's time went, and what reached it."""
        executor = self._working()
        moved, before = self._place.transport.statistics(), self._moved_before
        return SliceStatistics(
            compute_seconds=executor.seconds["compute"],
            wait_seconds=executor.seconds["wait"],
            idle_seconds=executor.seconds["idle"],
            rounds=executor.rounds,
            bytes_in=moved.bytes_received - before.bytes_received,
            bytes_out=moved.bytes_sent - before.bytes_sent,
            peak_memory_bytes=memory.peak_bytes(),
            senders=executor.hearing.statistics(),
        )

    def close(self) -> None:
        """Let everything go."""
        with self._changing:
            self._watch.close()
            self._stack.close()
            self._executor = None
        memory.release_freed()

    def _working(self) -> SliceExecutor:
        executor = self._executor
        if executor is None:
            raise FleetError(
                f"{self._place.settings.name} has no slice of run {self.run} at work. Deploy one."
            )
        return executor

    def _begin(self, message: DeploySlice, sliced: Sliced, own: State, kept: State) -> None:
        place, assignment = self._place, message.place
        torch.set_num_threads(place.n_threads)
        group, number = sliced.members[assignment.stage]
        member = Member(sliced, group, number, own, seed=assignment.seed, device=place.torch_device)
        optimizer = StageOptimizer(assignment.optimizer, member.parameters)
        if message.optimizer_state is not None:
            optimizer.load_state(message.optimizer_state)
        elif message.tensors is None:
            optimizer.load_tensors({name: t for name, t in kept.items() if "|" in name})
        exchange = SliceExchange(
            assignment,
            sliced,
            place.transport,
            fleet=place.settings.fleet,
            clock=place.clock,
            timeouts=place.timeouts,
        )
        executor = SliceExecutor(
            assignment,
            sliced,
            member,
            optimizer,
            exchange,
            throttle=place.throttle,
            clock=place.clock,
            patience_seconds=place.timeouts.frame,
            on_fault=lambda error: report_fault(
                error,
                assignment,
                place.transport,
                fleet=place.settings.fleet,
                timeout_seconds=place.timeouts.request,
            ),
        )
        with ExitStack() as stack:
            stack.enter_context(executor)
            self._stack = stack.pop_all()
        self._executor = executor

    def _examine(self, program: Program) -> None:
        self._place.run_task("check", encode_message(program))

    def _check_memory(self, assignment: SliceAssignment, sliced: Sliced) -> None:
        limit = self._place.settings.memory_limit_bytes
        if limit is None:
            return
        group, n_groups = sliced.members[assignment.stage][0], len(assignment.groups)
        held = in_flight(_SCHEDULE, group, n_groups, 1, 0)
        older = older_versions(_SCHEDULE, n_groups - 1 - group, 1, 0)
        needed = 0
        for program in _programs(sliced, assignment.stage):
            weigh = Weigh(program, assignment.microbatch_size, held, assignment.optimizer, older)
            needed += int.from_bytes(self._place.run_task("weigh", encode_message(weigh)), "big")
        if needed > limit:
            raise PlanError(
                f"{assignment.peer(assignment.stage)} needs {format_bytes(needed)} "
                f"(limit: {format_bytes(limit)}). Lower batch_size or add a device."
            )


def _programs(sliced: Sliced, rank: int) -> list[Program]:
    """What a member computes, segment by segment."""
    group, number = sliced.members[rank]
    found = (s.programs[number] for s in sliced.segments if s.group == group)
    return [program for program in found if program is not None]


def _specs(sliced: Sliced, rank: int) -> tuple[StateSpec, ...]:
    """The state that a member holds, each name once."""
    named = {spec.name: spec for program in _programs(sliced, rank) for spec in program.state}
    return tuple(named.values())
