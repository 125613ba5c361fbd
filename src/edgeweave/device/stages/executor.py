"""Compute one stage of one run: one thread that takes a schedule's actions in order.

    begin(round) -> [ wait input -> forward -> send ] [ wait gradient -> backward -> send ] ...
                 -> reduce (tied gradients, global norm) -> update -> next round

Sending happens beside it (``StageExchange``). Frames are waited for with a deadline; the first
error ends the run here and is handed to ``on_fault``.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Literal, Self

import msgspec
import torch

from edgeweave.core.clock import Clock
from edgeweave.core.errors import EdgeweaveError
from edgeweave.device.activity import Activity
from edgeweave.device.frames.codec import FrameCoding, message_seed
from edgeweave.device.frames.inbox import FrameId
from edgeweave.device.frames.scalars import hyperparameters_in, told_loss
from edgeweave.device.messages import COORDINATOR, Pulse
from edgeweave.device.optimizer import StageOptimizer
from edgeweave.device.stages.comparison import gradient_products
from edgeweave.device.stages.exchange import StageExchange, as_mapping, coding_names
from edgeweave.device.stages.messages import Assignment, TraceEvent
from edgeweave.device.stages.reduction import Reduction
from edgeweave.device.stages.rounds import Rounds
from edgeweave.device.stages.snapshots import State
from edgeweave.device.threads import adopt_torch_threads
from edgeweave.device.throttle import Throttle
from edgeweave.device.timings import StepTimings
from edgeweave.net import Frame
from edgeweave.plan import (
    Action,
    Agenda,
    Backward,
    Forward,
    Reduce,
    StageSeconds,
    actions,
    may_swap,
)
from edgeweave.program import Moment, StageProgram, StageResult, encode_state, is_external

__all__ = ["Executor", "OnSnapshot", "RunEnded"]

OnSnapshot = Callable[[int, State, bool], None]
"""Given the step and the state after it, where the coordinator asks to keep that; and whether to
fetch the other stage's too."""

_MAX_EVENTS = 20_000
_REHEARSALS = 8


class RunEnded(EdgeweaveError):
    """The run was released while a stage waited; not a fault."""


class Executor:
    """Runs one stage until it is released. Owned by ``with``: leaving joins the thread."""

    def __init__(
        self,
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
    ) -> None:
        """``replica_step()`` is that of the newest replica of another stage, if there is one."""
        self._assignment = assignment
        self._stage = stage
        self._optimizer = optimizer
        self._exchange = exchange
        self._throttle = throttle
        self._clock = clock
        self._on_fault = on_fault
        self._on_snapshot = on_snapshot
        self._replica_step = replica_step
        self._thread = threading.Thread(
            target=self._run, name=f"edgeweave-stage-{assignment.stage}"
        )
        self._rounds = Rounds(assignment)
        self._finishes = False
        self._samples: dict[int, int] = {}
        self._codecs: dict[int, FrameCoding] = {}
        self._timings = StepTimings(assignment.stage, assignment.microbatch_size)
        self._activity = Activity(assignment, clock, lambda: exchange.awaited)
        self._forward_senders: list[tuple[str, int]] = []
        if any(is_external(value.name) for value in stage.program.inputs):
            self._forward_senders.append(("input", COORDINATOR))
        self._forward_senders += [("activation", sender) for sender in assignment.senders]
        self._reduction = Reduction(assignment, stage, exchange)
        self.events: deque[TraceEvent] = deque(maxlen=_MAX_EVENTS)
        self.snapshot_seconds = 0.0
        self.seconds: dict[str, float] = {"compute": 0.0, "wait": 0.0, "idle": 0.0}

    @property
    def rounds(self) -> int:
        """Rounds finished so far."""
        return self._rounds.done

    def pulse(self) -> Pulse:
        """What the compute thread does now; it is not asked."""
        return self._activity.pulse(self._rounds.done)

    def rehearse(self, known: StageSeconds | None) -> None:
        """Warm up, and learn how to pace an emulated device.

        ``known`` is what the stage takes on this device, if it has profiled its units; otherwise
        the stage runs a few times at full speed to find out, and updates take their own time.
        """
        stopwatch = self._throttle.stopwatch()
        size = self._assignment.microbatch_size
        samples: dict[str, list[float]] = {"forward": [], "backward": []}
        for _ in range(1 if known else _REHEARSALS + 1):
            for kind, call in zip(samples, self._stage.rehearse(size), strict=True):
                started = stopwatch()
                call()
                samples[kind].append(stopwatch() - started)
        if known is None:
            for kind, seconds in samples.items():
                self._throttle.rehearse((kind, size), seconds[1:])
        else:
            self._throttle.hold(("forward", size), known.forward)
            self._throttle.hold(("backward", size), known.backward)
            self._throttle.hold(("update", 0), known.update)

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
        ended = RunEnded("the run was released")
        self._exchange.inbox.fail(ended)
        self._thread.join()
        if self._finishes:
            self._exchange.__exit__(None, None, None)
        else:
            self._exchange.__exit__(RunEnded, ended, None)

    def finish_sending(self) -> None:
        """At its end the stage still sends what is queued: others have not finished the round."""
        self._finishes = True

    def wait_state(
        self, rounds: int, part: Literal["weights", "optimizer"], *, timeout_seconds: float
    ) -> bytes:
        """A part of the stage's state, as safetensors, once it finished ``rounds`` rounds.

        Raises an error at once if it never will.
        """
        self.wait_rounds(rounds, timeout_seconds=timeout_seconds)
        if part == "weights":
            return encode_state(self._stage.state_dict())
        return self._optimizer.state()

    def wait_rounds(self, rounds: int, *, timeout_seconds: float) -> None:
        """Return once so many rounds are finished; raises at once if they never will be."""
        self._rounds.wait(rounds, timeout_seconds=timeout_seconds)

    def state(self) -> State:
        """A copy of what training changes, the optimizer's part included, in main memory.

        Only on the stage's own thread, or while it computes nothing.
        """
        tensors = {**self._stage.trained_state(), **self._optimizer.tensors()}
        return {n: t.detach().to("cpu", copy=True).contiguous() for n, t in tensors.items()}

    def _run(self) -> None:
        adopt_torch_threads()
        try:
            while True:
                self._round()
        except RunEnded:
            return
        except BaseException as error:  # noqa: BLE001 - a thread's boundary: reported, never lost
            self._exchange.inbox.fail(RunEnded("the stage failed"))
            self._on_fault(error)
        finally:
            self._rounds.end()

    def _round(self) -> None:
        number = self._rounds.done
        begin = self._begin(number)
        step = int(begin.header.scalars["step"])
        n_microbatches = int(begin.header.scalars["microbatches"])
        self._codecs = self._codecs_of(begin.header.scalars)
        if begin.header.scalars["train"]:
            self._train(number, step, n_microbatches, begin)
            return
        if begin.header.scalars.get("compare"):
            self._compare(number, step)
        else:
            for microbatch in range(n_microbatches):
                self._evaluate(number, step, microbatch)
        self._rounds.finish(number)

    def _begin(self, number: int) -> Frame:
        """What the coordinator says of a round, waited for."""
        with self._timed("idle", -1, -1):
            return self._exchange.wait("begin", COORDINATOR, number)

    def _compare(self, number: int, step: int) -> None:
        """Tell the coordinator how the gradient of a microbatch with codecs differs from without.

        The coordinator sends it twice; randomness is the same both times.
        """
        codecs, gradients = self._codecs, []
        with self._stage.undisturbed():
            for microbatch, used in enumerate(({}, codecs)):
                self._codecs = used
                sent = Moment(step, microbatch)
                inputs, samples = self._inputs(number, sent)
                with self._computing("compare", sent, samples):
                    result = self._stage.forward(inputs, Moment(step, 0))
                self._hand_on(number, sent, {"samples": float(samples)}, result)
                returned = self._gradients(number, sent)
                with self._computing("compare", sent, samples):
                    returned = self._stage.backward(0, returned)
                self._hand_back(number, sent, samples, returned)
                gradients.append(self._stage.take_gradients())
        products = msgspec.structs.asdict(gradient_products(*gradients))
        self._exchange.send("compared", COORDINATOR, number, 0, {}, products)

    def _codecs_of(self, scalars: Mapping[str, float]) -> dict[int, FrameCoding]:
        """By stage, how frames to it are coded in this round."""
        codec, found = self._assignment.codec, {}
        for stage in (*self._assignment.senders, *self._assignment.receivers):
            bits, rate = (scalars.get(name) for name in coding_names(stage))
            if bits and codec is not None:
                found[stage] = FrameCoding(replace(codec, bits=int(bits)), bytes_per_second=rate)
        return found

    def _coding(self, stage: int, moment: Moment, *, at_random: bool) -> FrameCoding | None:
        """Activations are rounded to nearest, gradients at random: their errors would add up."""
        coding = self._codecs.get(stage)
        if coding is None or not at_random:
            return coding
        me, run_seed = self._assignment.stage, self._assignment.seed
        seed = message_seed(run_seed, moment.step, moment.microbatch, me, stage)
        return replace(coding, seed=seed)

    def _train(self, number: int, step: int, n_microbatches: int, begin: Frame) -> None:
        assignment = self._assignment
        total = begin.header.scalars["total_samples"]
        order = actions(
            assignment.schedule,
            assignment.stage,
            assignment.n_stages,
            n_microbatches,
            extra_in_flight=assignment.extra_in_flight,
            reduce=self._reduction.is_needed,
        )
        agenda = Agenda(order, may_swap=may_swap(assignment.schedule))
        while choices := agenda.choices():
            action = self._choose(number, step, choices)
            agenda.take(action)
            if isinstance(action, Forward):
                self._forward(number, Moment(step, action.microbatch))
            elif isinstance(action, Backward):
                self._backward(number, Moment(step, action.microbatch), total)
            elif isinstance(action, Reduce):
                self._reduce(number, step)
            else:
                self._update(step, begin.header.scalars)
        self._end_step(number, step, begin.header.scalars)

    def _end_step(self, number: int, step: int, scalars: Mapping[str, float]) -> None:
        """The update of a training round was done."""
        self._timings.end_step(self._exchange.link_rates(number), self._replica_step())
        if scalars.get("snapshot"):
            shown = self._timed("compute", step, -1, shown="snapshot")
            with shown, self._throttle.pace("snapshot"):
                state = self.state()
            event = self.events[-1]
            self.snapshot_seconds += event.stop_seconds - event.start_seconds
            self._on_snapshot(step + 1, state, bool(scalars.get("replicate")))
        self._rounds.finish(number)

    def _choose(self, number: int, step: int, choices: Sequence[Action]) -> Action:
        """The first choice whose frames are here; waits for one if none is."""
        if len(choices) == 1:
            return choices[0]
        with self._timed("wait", step, -1):
            return choices[self._exchange.first_of([self._needs(number, c) for c in choices])]

    def _needs(self, number: int, action: Action) -> list[FrameId]:
        """The frames that an action takes."""
        if isinstance(action, Forward):
            senders = self._forward_senders
            return [FrameId(kind, sender, number, action.microbatch) for kind, sender in senders]
        if isinstance(action, Backward):
            receivers = self._assignment.receivers
            return [FrameId("gradient", stage, number, action.microbatch) for stage in receivers]
        return []

    def _forward(self, number: int, moment: Moment) -> None:
        inputs, samples = self._inputs(number, moment)
        key = self._key(number, moment.microbatch)
        self._samples[key] = samples
        with self._computing("forward", moment, samples):
            result = self._stage.forward(inputs, moment, key=key)
        scalars = {"samples": float(samples)}
        if moment.microbatch == 0:
            scalars |= self._timings.tell()
        self._hand_on(number, moment, scalars, result)

    def _key(self, number: int, microbatch: int) -> int:
        """What tells microbatches in flight apart: all are of one round."""
        return microbatch

    def _evaluate(self, number: int, step: int, microbatch: int) -> None:
        moment = Moment(step, microbatch)
        inputs, samples = self._inputs(number, moment)
        with self._computing("evaluate", moment, samples):
            result = self._stage.evaluate(inputs)
        self._hand_on(number, moment, {"samples": float(samples)}, result)

    def _inputs(self, number: int, moment: Moment) -> tuple[dict[str, torch.Tensor], int]:
        inputs: dict[str, torch.Tensor] = {}
        samples = 0
        for kind, sender in self._forward_senders:
            frame = self._take(kind, sender, number, moment)
            inputs.update(as_mapping(frame))
            self._timings.hear(frame.header.scalars)
            samples = int(frame.header.scalars["samples"])
        return inputs, samples

    def _take(self, kind: str, sender: int, number: int, moment: Moment) -> Frame:
        """A microbatch's frame, waited for."""
        with self._timed("wait", moment.step, moment.microbatch):
            return self._exchange.wait(kind, sender, number, moment.microbatch)

    def _hand_on(
        self, number: int, moment: Moment, scalars: dict[str, float], result: StageResult
    ) -> None:
        """To the stages behind; from the last one the loss and metrics, to the coordinator."""
        assignment, microbatch = self._assignment, moment.microbatch
        for stage in assignment.receivers:
            sent = {n: x for n, x in result.outputs.items() if assignment.target(n) == stage}
            coding = self._coding(stage, moment, at_random=False)
            self._exchange.send("activation", stage, number, microbatch, sent, scalars, coding)
        if result.loss is not None:
            told = {**scalars, **told_loss(result)}
            self._exchange.send("result", COORDINATOR, number, microbatch, {}, told)

    def _backward(self, number: int, moment: Moment, total_samples: float) -> None:
        gradients = self._gradients(number, moment)
        key = self._key(number, moment.microbatch)
        samples = self._samples.pop(key)
        with self._computing("backward", moment, samples):
            returned = self._stage.backward(key, gradients, loss_weight=samples / total_samples)
        self._hand_back(number, moment, samples, returned)

    def _gradients(self, number: int, moment: Moment) -> dict[str, torch.Tensor]:
        """Of the outputs, from the stages behind."""
        gradients: dict[str, torch.Tensor] = {}
        for stage in self._assignment.receivers:
            gradients.update(as_mapping(self._take("gradient", stage, number, moment)))
        return gradients

    def _hand_back(
        self, number: int, moment: Moment, samples: int, returned: Mapping[str, torch.Tensor]
    ) -> None:
        """The gradients of the inputs, to the stages before."""
        assignment = self._assignment
        for stage in assignment.senders:
            sent = {
                name: grad
                for name, grad in returned.items()
                if not is_external(name) and assignment.source(name) == stage
            }
            scalars = {"samples": float(samples), **self._told_back(stage, number, moment)}
            coding = self._coding(stage, moment, at_random=True)
            self._exchange.send("gradient", stage, number, moment.microbatch, sent, scalars, coding)

    def _told_back(self, stage: int, number: int, moment: Moment) -> dict[str, float]:
        """What a gradient tells its receiver beside the samples."""
        return {}

    def _update(self, step: int, scalars: Mapping[str, float]) -> None:
        with self._computing("update", Moment(step, -1), 0):
            self._change_weights(step, hyperparameters_in(scalars))

    def _change_weights(self, step: int, hyperparameters: Mapping[str, float]) -> None:
        self._optimizer.step(hyperparameters)
        self._optimizer.clear_gradients()

    def _reduce(self, number: int, step: int) -> None:
        with self._timed("wait", step, -1):
            self._reduction.run(number)

    @contextmanager
    def _computing(self, kind: str, moment: Moment, samples: int) -> Iterator[None]:
        with (
            self._timed("compute", moment.step, moment.microbatch, shown=kind),
            self._throttle.pace((kind, samples)),
        ):
            yield
        event = self.events[-1]
        self._timings.add(kind, samples, event.stop_seconds - event.start_seconds)

    @contextmanager
    def _timed(
        self, account: str, step: int, microbatch: int, *, shown: str | None = None
    ) -> Iterator[None]:
        started = self._clock.now()
        try:
            with self._activity.of(account, shown or account, microbatch):
                yield
        finally:
            stopped = self._clock.now()
            self.seconds[account] += stopped - started
            self.events.append(TraceEvent(shown or account, step, microbatch, started, stopped))
