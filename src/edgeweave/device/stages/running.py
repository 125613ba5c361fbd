"""One run on one device: from a ``Deploy`` to its end, whatever ends it.

Everything that belongs to the run (threads, subscriptions, the stage's memory) is held here and let
go by ``close``. Which run is on, and whether there may be one, is the agent's business.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack

import torch

from edgeweave.core.errors import PlanError
from edgeweave.core.units import format_bytes
from edgeweave.device import memory
from edgeweave.device.faults import report_fault
from edgeweave.device.messages import Pulse, StateRequest, Weigh, encode_message
from edgeweave.device.optimizer import StageOptimizer
from edgeweave.device.stages.exchange import StageExchange
from edgeweave.device.stages.messages import Deploy, Fetch, Replicate, StageStatistics
from edgeweave.device.stages.replicator import Replicator
from edgeweave.device.stages.snapshots import Snapshots, State, of_parameter, received_state
from edgeweave.device.stages.stream_executor import executor_of
from edgeweave.device.workplace import Workplace
from edgeweave.net import Priority, control_key
from edgeweave.plan import in_flight, is_flushed, older_versions
from edgeweave.program import Program, StageProgram, VersionedStage, decode, encode_state

__all__ = ["Running"]


class Running:
    """A stage that is deployed, from construction to ``close``.

    Raises what makes it impossible: ``PlanError`` if the stage does not fit, ``WireError`` if the
    program is unsound, ``FleetError`` if a state is not where it should be. A stage that fails
    later tells the coordinator. Its states go to ``snapshots``, which outlive it.
    """

    def __init__(self, message: Deploy, place: Workplace, snapshots: Snapshots) -> None:
        self.assignment = assignment = message.assignment
        self._place = place
        self._snapshots = snapshots
        self._copying = threading.Lock()
        self._copy_bytes_out = 0
        known = self._known(message)
        program, stage = self._load(message, known)
        optimizer = StageOptimizer(assignment.optimizer, stage.parameters)
        if message.optimizer_state is not None:
            optimizer.load_state(message.optimizer_state)
        optimizer.load_tensors({n: t.clone() for n, t in known.items() if n != of_parameter(n)})
        self._exchange = StageExchange(
            assignment,
            program,
            place.transport,
            fleet=place.settings.fleet,
            clock=place.clock,
            timeouts=place.timeouts,
            throttle=place.throttle,
        )
        self._executor = executor_of(
            assignment,
            stage,
            optimizer,
            self._exchange,
            throttle=place.throttle,
            clock=place.clock,
            on_fault=self._report_fault,
            on_snapshot=self._keep,
            replica_step=lambda: snapshots.replica_step,
        )
        self._replicator = Replicator(
            self._replica_before, snapshots, stop_seconds=place.timeouts.stop
        )
        self._rehearse(program)
        snapshots.fixed = stage.fixed_state()
        snapshots.forget_after(message.step)
        if assignment.term > 0:
            snapshots.add(message.step, self._executor.state())
        known.clear()
        memory.release_freed()
        with ExitStack() as stack:
            stack.enter_context(self._replicator)
            stack.enter_context(self._executor)
            self._moved_before = place.transport.statistics()
            self._stack = stack.pop_all()

    def wait_state(self, message: StateRequest) -> bytes:
        """The state of the stage after the rounds asked for, as safetensors."""
        return self._executor.wait_state(
            message.rounds, message.part, timeout_seconds=self._place.timeouts.work
        )

    def wait_rounds(self, rounds: int) -> None:
        """Return once so many rounds are finished. ``close`` then sends what others need of it."""
        self._executor.wait_rounds(rounds, timeout_seconds=self._place.timeouts.work)
        self._executor.finish_sending()

    def state(self) -> State:
        """A copy of what training changed so far. Only while no round is under way."""
        return self._executor.state()

    def replica(self, step: int) -> bytes:
        """The state after ``step`` steps for who keeps a copy of it, as safetensors, once the stage
        has come so far.
        """
        found = encode_state(self._snapshots.own(step, timeout_seconds=self._place.timeouts.work))
        with self._copying:
            self._copy_bytes_out += len(found)
        return found

    def pulse(self) -> Pulse:
        """What the stage does now."""
        return self._executor.pulse()

    def statistics(self) -> StageStatistics:
        """Where the stage's time went, what it moved and what it used."""
        moved, before = self._place.transport.statistics(), self._moved_before
        executor = self._executor
        return StageStatistics(
            compute_seconds=executor.seconds["compute"],
            wait_seconds=executor.seconds["wait"],
            idle_seconds=executor.seconds["idle"],
            send_seconds=self._exchange.send_seconds,
            coding_seconds=self._exchange.coding_seconds,
            snapshot_seconds=executor.snapshot_seconds,
            bytes_in=moved.bytes_received - before.bytes_received,
            bytes_out=moved.bytes_sent - before.bytes_sent,
            rounds=executor.rounds,
            peak_memory_bytes=memory.peak_bytes(),
            clock_seconds=self._place.clock.now(),
            events=tuple(executor.events),
            copy_bytes_out=self._copy_bytes_out,
        )

    def close(self) -> None:
        """End the run's threads and subscriptions."""
        self._stack.close()

    def _keep(self, step: int, state: State, replicate: bool) -> None:
        """The stage has a new state. Runs on its thread."""
        self._snapshots.add(step, state)
        if replicate:
            self._replicator.replicate(step)

    def _replica_before(self, step: int) -> State:
        """The state of the stage before this one; the last one's is kept by the first."""
        assignment = self.assignment
        device = assignment.devices[assignment.stage - 1]
        message = Replicate(assignment.run, assignment.term, step)
        return self._asked(device, "replicate", message, Priority.BACKGROUND)

    def _asked(
        self, device: str, verb: str, message: Fetch | Replicate, priority: Priority
    ) -> dict[str, torch.Tensor]:
        """What another device keeps."""
        place = self._place
        answer = place.transport.request(
            control_key(place.settings.fleet, device, verb),
            encode_message(message),
            device=device,
            timeout_seconds=place.timeouts.work,
            priority=priority,
        )
        return received_state(answer, device)

    def _known(self, message: Deploy) -> dict[str, torch.Tensor]:
        """The state that does not come along: kept here, or fetched from others."""
        run, step = message.assignment.run, message.step
        found = dict(self._snapshots.take(step, message.own))
        for device, names in message.elsewhere.items():
            found.update(self._asked(device, "fetch", Fetch(run, step, names), Priority.DATA))
        return found

    def _load(self, message: Deploy, known: State) -> tuple[Program, StageProgram]:
        place = self._place
        captured = decode(
            message.graph,
            message.tensors,
            examine=self._examine,
            known={name: tensor for name, tensor in known.items() if name == of_parameter(name)},
        )
        self._check_memory(captured.program)
        torch.set_num_threads(place.n_threads)
        memory.release_freed()
        memory.reset_peak()
        kind = StageProgram if is_flushed(message.assignment.schedule) else VersionedStage
        stage = kind(
            captured.program,
            captured.state,
            device=place.torch_device,
            seed=message.assignment.seed,
            take_over=not known,
        )
        return captured.program, stage

    def _examine(self, program: Program) -> None:
        self._place.run_task("check", encode_message(program))

    def _check_memory(self, program: Program) -> None:
        assignment, limit = self.assignment, self._place.settings.memory_limit_bytes
        if limit is None:
            return
        held = in_flight(
            assignment.schedule,
            assignment.stage,
            assignment.n_stages,
            assignment.max_microbatches,
            assignment.extra_in_flight,
        )
        older = older_versions(
            assignment.schedule,
            assignment.n_stages - 1 - assignment.stage,
            assignment.max_microbatches,
            assignment.extra_in_flight,
            aggregates=assignment.weight_aggregation is not None,
        )
        weigh = Weigh(program, assignment.microbatch_size, held, assignment.optimizer, older)
        needed = int.from_bytes(self._place.run_task("weigh", encode_message(weigh)), "big")
        if needed > limit:
            raise PlanError(
                f"{assignment.peer(assignment.stage)} needs {format_bytes(needed)} "
                f"(limit: {format_bytes(limit)}). Lower batch_size or add a device."
            )
        self._snapshots.room_bytes = limit - needed

    def _rehearse(self, program: Program) -> None:
        """Learn how to pace an emulated device; a real one goes as fast as it can."""
        if self._place.settings.speed is None:
            return
        known = self._place.units.recall(
            program, self.assignment.microbatch_size, self.assignment.optimizer.name
        )
        if known is not None:
            known = known.stretched(self._place.slowdown())
        self._executor.rehearse(known)

    def _report_fault(self, error: BaseException) -> None:
        """Tell the coordinator. Runs on the stage's thread, which ends after it."""
        place = self._place
        report_fault(
            error,
            self.assignment,
            place.transport,
            fleet=place.settings.fleet,
            timeout_seconds=place.timeouts.request,
        )
