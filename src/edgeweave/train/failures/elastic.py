"""A run that outlives its devices: term after term, each with a plan for those who are there.

    term 0 -- a device is lost --> halt the others -> who holds what -> newest whole state -> plan
           -- a plan is better --> finish the step --> everyone holds its own ------------> plan
                                            -> each device fetches what it lacks -> next term

Numbers are those of a run in which nothing happened: states, the optimizer's part included, are
exact copies, randomness is drawn from (seed, step, microbatch), and splits change no number.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from edgeweave.core.errors import DeviceBusy, DeviceLost, DeviceTimeout, EdgeweaveError, FleetError
from edgeweave.data.batches import Batch
from edgeweave.device import (
    Halt,
    Holdings,
    Release,
    RunStatus,
    ServiceLevel,
    StageStatistics,
    decode_message,
    encode_message,
)
from edgeweave.fleet import Fleet
from edgeweave.net import control_key
from edgeweave.plan import Plan
from edgeweave.program import Program
from edgeweave.train.failures.copies import Copies
from edgeweave.train.failures.holders import Holders, Term
from edgeweave.train.failures.service import Recovery, Service
from edgeweave.train.run import PipelineRun, RoundResult, RunSettings
from edgeweave.train.step_stream import StepStream
from edgeweave.train.weights import Weights

__all__ = ["Adopted", "ElasticRun", "Replan", "halted"]

_log = logging.getLogger(__name__)

_REMEMBERED_SNAPSHOTS = 16
_LOOK_AGAIN_SECONDS = 0.2

Replan = Callable[[tuple[str, ...]], Plan]
"""The plan for the devices that are left; ``PlanError`` if there is none."""


@dataclass(frozen=True, slots=True)
class Adopted:
    """A run whose coordinator vanished: its name, its next term, and who keeps what of it."""

    run: str
    term: int
    step: int
    holders: Holders


class ElasticRun:
    """Trains by one ``PipelineRun`` after another. Releases all devices on leaving.

    ``weights`` are the coordinator's copy of the state, which is brought up to date now and then.
    Without ``replicates`` no state is copied anywhere, and the first loss ends the run.
    """

    def __init__(
        self,
        fleet: Fleet,
        program: Program,
        weights: Weights,
        plan: Plan,
        settings: RunSettings,
        *,
        replicates: bool = True,
        link_seconds: Callable[[str, str], float] = lambda _source, _target: 0.0,
        adopted: Adopted | None = None,
        on_term: Callable[[str, int], None] = lambda _run, _term: None,
    ) -> None:
        """``on_term(run, number)`` is called before a term is deployed."""
        self._fleet = fleet
        self._program = program
        self._weights = weights
        self._settings = settings
        self._replicates = replicates
        self._link_seconds = link_seconds
        self._on_term = on_term
        self._done = weights.step if adopted is None else adopted.step
        self._snapshot_steps = deque([self._done], maxlen=_REMEMBERED_SNAPSHOTS)
        self._service = Service(replicates=replicates)
        begin = adopted or Adopted(
            f"run-{secrets.token_hex(4)}", 0, weights.step, Holders({}, weights.step)
        )
        self._name, self._number = begin.run, begin.term
        self._members = set(begin.holders.devices)
        self._hired = set(self._members)
        """All that ever were members: one that was silent may be there at the end."""
        self._waited_after: int | None = None
        """How many steps were done when nobody was left, and those that were lost got some time."""
        self._run = self._term(plan, begin.step, begin.holders)
        self._stack = ExitStack()
        self._copies = Copies(fleet, weights)
        self._copy_soon = adopted is not None

    @property
    def run(self) -> PipelineRun:
        """The present term."""
        return self._run

    @property
    def plan(self) -> Plan:
        return self._run.plan

    @property
    def is_streamed(self) -> bool:
        """Whether steps overlap: then they are submitted, and collected from ``stream``."""
        return self._run.stream is not None

    @property
    def stream(self) -> StepStream[RoundResult]:
        """The steps under way, where they overlap. Another one after a move."""
        assert self._run.stream is not None, "where steps overlap"
        return self._run.stream

    def has_snapshot(self, step: int) -> bool:
        """Whether devices were told to keep their states after that step, not long ago."""
        return step in self._snapshot_steps

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._copies.close)
            stack.callback(self._release, self._hired)
            stack.callback(self._leave_term)
            asked = control_key(self._fleet.name, self._fleet.transport.name, "run")
            stack.callback(self._fleet.transport.serve(asked, self._status).close)
            self._begin(self._run)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def train_step(
        self, step: int, batch: Batch, hyperparameters: Mapping[str, float]
    ) -> RoundResult:
        """One step, as ``PipelineRun`` does it, with copies of the state after it where due."""
        self._copies.take(self._done)
        snapshot, replicate = self._copies_due(step + 1)
        result = self._run.train_step(
            step, batch, hyperparameters, snapshot=snapshot, replicate=replicate
        )
        self._begin_copies_due(step + 1)
        self._done = step + 1
        return result

    def submit(self, step: int, batch: Batch, hyperparameters: Mapping[str, float]) -> None:
        """The same without waiting for its losses, where steps overlap."""
        self._copies.take(self._done)
        snapshot, replicate = self._copies_due(step + 1)
        self._run.submit(step, batch, hyperparameters, snapshot=snapshot, replicate=replicate)
        self._begin_copies_due(step + 1)

    def step_ends(self, done: int, result: RoundResult) -> None:
        """The results of ``done`` steps are all collected; that of the last one."""
        self._done = done
        told = result.replica_steps
        self._service.step_ended(done, self.plan.devices, told, here=self._weights.step)

    def service(self) -> ServiceLevel:
        """How the run stood failures so far."""
        return self._service.level()

    def evaluate(self, step: int, parts: Iterable[Batch], n_parts: int) -> RoundResult:
        return self._run.evaluate(step, parts, n_parts)

    def check(self) -> None:
        """Raise the error that ended the term, if one did."""
        self._run.check()

    def fetch_state(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        return self._run.fetch_state()

    def statistics(self) -> dict[str, StageStatistics]:
        return self._run.statistics()

    def recover(self, step: int, error: DeviceLost, replan: Replan) -> Recovery:
        """Go on without what was lost in step number ``step``; says from where.

        Raises ``error`` itself if the run is not to be recovered or nobody is left, ``PlanError``
        if those who are left cannot hold the model.
        """
        if not self._replicates:
            raise error
        noticed = self._fleet.clock.now()
        silent_seconds = noticed - self._run.last_heard_seconds
        lost = {error.device, *self._run.lost}
        busy: set[str] = set()
        self._leave_term()
        self._copies.take(self._done)
        self._copies.forget()
        while True:
            holders = self._survivors(lost, busy)
            if not holders.devices:
                raise error
            done = [each for each in holders.steps if each <= step]
            resumed = holders.newest_step(self._program.trained, of=done)
            plan = replan(tuple(holders.devices))
            try:
                self._begin(self._term(plan, resumed, holders))
            except (FleetError, DeviceTimeout) as failure:
                if isinstance(failure, DeviceLost | DeviceTimeout):
                    lost.add(failure.device)
                elif isinstance(failure, DeviceBusy):
                    busy.add(failure.device)
                elif not self._run.lost:
                    raise
                lost |= self._run.lost
                _log.warning("recovery begins anew: %s", failure)
                continue
            break
        self._copy_soon = True
        self._done = resumed
        self._snapshot_steps.append(resumed)
        recovery = Recovery(
            step,
            tuple(sorted({error.device, *lost})),
            tuple(sorted(holders.devices)),
            plan,
            resumed,
            silent_seconds,
            self._fleet.clock.now() - noticed,
        )
        self._service.recovered(recovery)
        _log.warning("%s", recovery.line())
        return recovery

    def move(self, step: int, plan: Plan) -> bool:
        """Go on with another plan after ``step`` steps; only units that change hands travel.

        False if it could not be deployed: then the old one goes on. A device that does not finish
        the step counts as lost, and ``DeviceLost`` is raised: ``recover`` leads on.
        """
        old, me = self.plan, self._fleet.transport.name
        self._run.finish_rounds()
        holders = self._all_halted(Halt(self._name, me, self._run.rounds, step))
        self._leave_term()
        self._copies.forget()
        try:
            self._begin(self._term(plan, step, holders))
        except EdgeweaveError as error:
            if self._run.lost:
                raise
            _log.warning("the plan stays, because another cannot be deployed: %s", error)
            self._leave_term()
            holders = self._all_halted(Halt(self._name, me))  # some had begun anew
            self._begin(self._term(old, step, holders))
            return False
        self._copy_soon = True
        return True

    def _copies_due(self, done: int) -> tuple[bool, bool]:
        """Whether devices keep their states after ``done`` steps, and replicas of others'."""
        chain = self._is_due(self.plan.replication.chain_every, done)
        if not chain and not self._is_due(self.plan.replication.whole_every, done):
            return False, False
        self._snapshot_steps.append(done)
        return True, chain and len(self.plan.stages) > 1

    def _begin_copies_due(self, done: int) -> None:
        if self._is_due(self.plan.replication.whole_every, done):
            self._copies.begin(self._name, self._run.number, done, self.plan.devices)
        self._copy_soon = False

    def _is_due(self, every: int, done: int) -> bool:
        return self._replicates and (self._copy_soon or done % every == 0)

    def _status(self, _payload: bytes) -> bytes:
        done = self._done
        return encode_message(
            RunStatus(
                run=self._name,
                term=self._run.number,
                step=done,
                devices=self.plan.devices,
                devices_age_steps=max(done - self._snapshot_steps[-1], 0),
                here_age_steps=done - self._weights.step,
                recoveries=tuple(recovery.line() for recovery in self._service.recoveries),
                service=self.service(),
            )
        )

    def _term(self, plan: Plan, step: int, holders: Holders) -> PipelineRun:
        number, self._number = self._number, self._number + 1
        return PipelineRun(
            self._fleet,
            self._program,
            self._weights.state,
            plan,
            self._settings,
            optimizer_state=self._weights.optimizer or None,
            term=Term(self._name, number, step, holders, self._link_seconds),
        )

    def _begin(self, run: PipelineRun) -> None:
        """Deploy a term, and let those go that have no part in it."""
        self._run = run
        self._service.term_begins()
        self._members |= set(run.plan.devices)
        self._hired |= self._members
        self._on_term(self._name, run.number)
        run.__enter__()
        idle = self._members - set(run.plan.devices)
        self._release(idle, before=self._number)
        self._members -= idle

    def _leave_term(self) -> None:
        self._run.__exit__(None, None, None)

    def _survivors(self, lost: set[str], busy: set[str]) -> Holders:
        """Those that are there and answer, halted, with what they keep; not spare devices that work
        for another run. If these are none, those that stood still or were away get some time, once
        before the run has made another step.
        """
        self._members -= busy
        there = set(self._fleet.present()) & {*self._fleet.devices, *self._members} - lost - busy
        halt = Halt(self._name, self._fleet.transport.name)
        held, failed = halted(self._fleet, there, halt)
        for device, error in failed.items():
            _log.warning("%s does not answer, and counts as lost: %s", device, error)
        lost |= self._members - held.keys()
        if not held and self._waited_after != self._done:
            self._waited_after = self._done
            held = self._late_survivors(halt, busy)
            lost.difference_update(held)
            self._members.update(held)
        self._members &= held.keys()
        return Holders(held, self._weights.step)

    def _late_survivors(self, halt: Halt, busy: set[str]) -> dict[str, Holdings]:
        """The first devices to answer of all that ever had a part, and what they keep."""
        clock = self._fleet.clock
        deadline = clock.now() + self._fleet.timeouts.connect
        while True:
            known = {*self._fleet.devices, *self._hired} - busy
            held, _ = halted(self._fleet, known & set(self._fleet.present()), halt)
            if held or clock.now() >= deadline:
                return held
            clock.sleep(_LOOK_AGAIN_SECONDS)

    def _all_halted(self, asked: Halt) -> Holders:
        """What all members keep. One that fails to say so is blamed for it, and counts as lost."""
        held, failed = halted(self._fleet, self._members, asked)
        for device, error in failed.items():
            cause = self._run.blamed(error)
            if cause is not error:
                raise cause from error
            raise DeviceLost(
                f"{device} did not stop for another plan, and counts as lost ({error}). Bring it "
                "back or leave it out, and resume from the last checkpoint.",
                device=device,
            ) from error
        return Holders(held, self._weights.step)

    def _release(self, devices: Iterable[str], *, before: int | None = None) -> None:
        """Let devices go, for all or for earlier terms; one that is gone or silent cannot be told,
        and need not be.
        """
        there = set(self._fleet.present()) & set(devices)
        for device in sorted(there):
            seconds = self._fleet.timeouts.stop
            try:
                self._fleet.ask(
                    device, "release", Release(self._name, before), timeout_seconds=seconds
                )
            except EdgeweaveError as error:
                _log.warning("%s was not released: %s", device, error)


def halted(
    fleet: Fleet, devices: Iterable[str], asked: Halt
) -> tuple[dict[str, Holdings], dict[str, EdgeweaveError]]:
    """What devices keep of a run for which they stop computing, asked at once; and who fails."""
    seconds = fleet.timeouts.stop if asked.rounds is None else fleet.timeouts.work
    held: dict[str, Holdings] = {}
    failed: dict[str, EdgeweaveError] = {}

    def ask(device: str) -> None:
        try:
            answer = fleet.ask(device, "halt", asked, timeout_seconds=seconds)
            held[device] = decode_message(answer, Holdings)
        except EdgeweaveError as error:
            failed[device] = error

    names = sorted(devices)
    with ThreadPoolExecutor(max_workers=max(len(names), 1)) as pool:
        list(pool.map(ask, names))
    return {device: held[device] for device in names if device in held}, failed
