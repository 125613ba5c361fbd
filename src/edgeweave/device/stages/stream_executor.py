"""Compute one stage of a run that is not flushed between steps: ``async-1f1b``.

    begin(0) -> F0.0 F0.1 B0.0 ... learn(begin 1) -> F1.0 ... B0.3 update 0 -> F1.1 ...
    any other round (evaluation, comparison, flush) lets everything under way end first

The order is ``plan.Stream``'s. Frames of training tell the version of the weights behind them: an
activation that of the stage that computed it, a gradient that of the stage it returns to. Both are
known beforehand, so stages that have lost step with each other are found out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgeweave.core.clock import Clock
from edgeweave.core.errors import WireError
from edgeweave.device.frames.codec import FrameCoding
from edgeweave.device.frames.inbox import FrameId
from edgeweave.device.messages import COORDINATOR
from edgeweave.device.optimizer import StageOptimizer
from edgeweave.device.stages.aggregation import Aggregation
from edgeweave.device.stages.exchange import StageExchange
from edgeweave.device.stages.executor import Executor, OnSnapshot
from edgeweave.device.stages.messages import Assignment
from edgeweave.device.throttle import Throttle
from edgeweave.net import Frame
from edgeweave.plan import Backward, Due, Forward, Learn, Stream
from edgeweave.program import Moment, StageProgram, StageResult, VersionedStage

__all__ = ["StreamExecutor", "executor_of"]


def executor_of(
    assignment: Assignment,
    stage: StageProgram,
    optimizer: StageOptimizer,
    exchange: StageExchange,
    *,
    throttle: Throttle,
    clock: Clock,
    on_fault: Callable[[BaseException], None],
    on_snapshot: OnSnapshot,
    replica_step: Callable[[], int | None] = lambda: None,
) -> Executor:
    """The executor for the kind of stage: one whose versions are kept is not flushed."""
    if isinstance(stage, VersionedStage):
        return StreamExecutor(
            assignment,
            stage,
            optimizer,
            exchange,
            throttle=throttle,
            clock=clock,
            on_fault=on_fault,
            on_snapshot=on_snapshot,
            replica_step=replica_step,
        )
    return Executor(
        assignment,
        stage,
        optimizer,
        exchange,
        throttle=throttle,
        clock=clock,
        on_fault=on_fault,
        on_snapshot=on_snapshot,
        replica_step=replica_step,
    )


@dataclass(frozen=True, slots=True)
class _Step:
    """What the coordinator said of a step."""

    step: int
    scalars: Mapping[str, float]
    codecs: dict[int, FrameCoding]


class StreamExecutor(Executor):
    """An ``Executor`` that begins a step's forwards while the step before is under way."""

    def __init__(
        self,
        assignment: Assignment,
        stage: VersionedStage,
        optimizer: StageOptimizer,
        exchange: StageExchange,
        *,
        throttle: Throttle,
        clock: Clock,
        on_fault: Callable[[BaseException], None],
        on_snapshot: OnSnapshot,
        replica_step: Callable[[], int | None] = lambda: None,
    ) -> None:
        super().__init__(
            assignment,
            stage,
            optimizer,
            exchange,
            throttle=throttle,
            clock=clock,
            on_fault=on_fault,
            on_snapshot=on_snapshot,
            replica_step=replica_step,
        )
        self._versioned = stage
        every, index = assignment.weight_aggregation, assignment.stage
        self._aggregation = Aggregation(every, index, assignment.n_stages)
        self._begun: Frame | None = None
        self._stream = self._new_stream()
        self._first_round = 0
        self._steps: list[_Step] = []
        self._versions = [0]
        """The number of the weights' version after so many updates of the stream."""

    def _new_stream(self) -> Stream:
        assignment = self._assignment
        extra = assignment.extra_in_flight
        return Stream(assignment.stage, assignment.n_stages, extra_in_flight=extra)

    def _begin(self, number: int) -> Frame:
        """A round that ended a stream was heard of already."""
        begun, self._begun = self._begun, None
        return super()._begin(number) if begun is None else begun

    def _train(self, number: int, step: int, n_microbatches: int, begin: Frame) -> None:
        """This step and all that follow, until a round that trains nothing begins."""
        self._first_round, self._steps = number, []
        self._versions = self._versions[-1:]
        self._stream = stream = self._new_stream()
        self._aggregation.begin(self._versioned)
        self._begin_step(begin)
        while choices := stream.choices():
            due = self._choose_due(choices)
            stream.take(due)
            self._do(due)

    def _begin_step(self, begin: Frame) -> None:
        scalars = begin.header.scalars
        self._steps.append(_Step(int(scalars["step"]), scalars, self._codecs_of(scalars)))
        self._stream.begin_step(int(scalars["microbatches"]))

    def _choose_due(self, choices: Sequence[Due]) -> Due:
        """The first whose frames are here; waits for one if none is."""
        if len(choices) == 1:
            return choices[0]
        with self._timed("wait", self._steps[choices[-1].step].step, -1):
            return choices[self._exchange.first_of([self._frames_of(due) for due in choices])]

    def _frames_of(self, due: Due) -> list[FrameId]:
        number = self._first_round + due.step
        if isinstance(due.action, Learn):
            return [FrameId("begin", COORDINATOR, number, 0)]
        return self._needs(number, due.action)

    def _do(self, due: Due) -> None:
        number, action = self._first_round + due.step, due.action
        if isinstance(action, Learn):
            begin = super()._begin(number)
            if begin.header.scalars["train"]:
                self._begin_step(begin)
            else:
                self._begun = begin
                self._stream.end()
            return
        told = self._steps[due.step]
        self._codecs = told.codecs
        if isinstance(action, Forward):
            self._forward(number, Moment(told.step, action.microbatch))
        elif isinstance(action, Backward):
            total = told.scalars["total_samples"]
            self._backward(number, Moment(told.step, action.microbatch), total)
        else:
            self._update(told.step, told.scalars)
            self._end_step(number, told.step, told.scalars)

    def _change_weights(self, step: int, hyperparameters: Mapping[str, float]) -> None:
        self._versioned.leave_version(keep=self._aggregation.keeps)
        super()._change_weights(step, hyperparameters)
        made = self._aggregation.after_update(step, self._versioned)
        self._versions.append(self._versions[-1] + made)

    def _key(self, number: int, microbatch: int) -> int:
        return number * self._assignment.max_microbatches + microbatch

    def _hand_on(
        self, number: int, moment: Moment, scalars: dict[str, float], result: StageResult
    ) -> None:
        version = self._version_behind(self._assignment.stage, number, moment.microbatch)
        told = {} if version is None else {"version": float(version)}
        super()._hand_on(number, moment, {**scalars, **told}, result)

    def _told_back(self, stage: int, number: int, moment: Moment) -> dict[str, float]:
        version = self._version_behind(stage, number, moment.microbatch)
        return {} if version is None else {"version": float(version)}

    def _take(self, kind: str, sender: int, number: int, moment: Moment) -> Frame:
        frame = super()._take(kind, sender, number, moment)
        if kind == "input":
            return frame
        holder = self._assignment.stage if kind == "gradient" else sender
        expected = self._version_behind(holder, number, moment.microbatch)
        told = frame.header.scalars.get("version")
        if told != expected:
            me, peer = self._assignment.peer(self._assignment.stage), self._assignment.peer(sender)
            raise WireError(
                f"{me} expects version {expected} of the weights behind the {kind} of microbatch "
                f"{moment.microbatch} (round {number}) (got {told} from {peer}). One of them has "
                "missed an update: resume from the last checkpoint."
            )
        return frame

    def _version_behind(self, stage: int, number: int, microbatch: int) -> int | None:
        """The version that a stage's forward of a microbatch uses; None if it trains nothing."""
        step = number - self._first_round
        if not 0 <= step < len(self._steps):
            return None
        return self._versions[self._stream.updates_seen(step, microbatch, stage)]
