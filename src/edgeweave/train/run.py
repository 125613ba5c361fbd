"""A plan at work: stages deployed, microbatches in, losses out. Knows no epochs and no files.

It serves one term of a run; ``ElasticRun`` begins another where devices are lost or plans change.

One round is a training step or an evaluation pass. The coordinator keeps a window of microbatches
under way and learns of each from the last stage's result; the devices' schedules do the rest.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

import torch

from edgeweave.core.errors import (
    DeviceTimeout,
    EdgeweaveError,
    WireError,
)
from edgeweave.data.batches import Batch
from edgeweave.device import (
    COORDINATOR,
    Agreement,
    FrameId,
    Inbox,
    Release,
    StageStatistics,
    StageTiming,
    StateRequest,
    coding_names,
    decode_message,
    metrics_in,
    tensor_frame,
    told_hyperparameters,
    told_products,
    told_rates,
    told_replicas,
    told_timings,
)
from edgeweave.fleet import Fleet
from edgeweave.net import Frame, FrameHeader, control_key, frame_key, frame_pattern
from edgeweave.plan import LinkCodec, Plan, is_flushed, window
from edgeweave.program import (
    Program,
    is_external,
)
from edgeweave.train.crew import Crew
from edgeweave.train.deployment import Deployment, RunSettings
from edgeweave.train.failures.device_watch import device_watch
from edgeweave.train.failures.holders import Origin, Term
from edgeweave.train.step_stream import Pipe, StepStream

__all__ = ["PipelineRun", "RoundResult", "RunSettings"]

_POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class RoundResult:
    """Means over the samples of one round; seconds from its first input to its last loss.

    ``timings``: what the devices took for a microbatch in the training step before this one;
    ``link_bytes_per_second``: of the links, by source and target, that frames told of in it;
    ``replica_steps``: after which step the newest replica is that a device keeps of another stage.
    """

    loss: float
    metrics: dict[str, float]
    n_samples: int
    seconds: float
    timings: Mapping[str, StageTiming] = field(default_factory=dict)
    link_bytes_per_second: Mapping[tuple[str, str], float] = field(default_factory=dict)
    replica_steps: Mapping[str, int] = field(default_factory=dict)


class PipelineRun:
    """Deploys on entering, releases the devices on leaving, whatever happened in between.

    A device that vanishes, fails or stays silent makes the method in progress raise; the run is
    then over. As a ``term`` of a longer run it leaves the releasing to others.
    """

    def __init__(
        self,
        fleet: Fleet,
        program: Program,
        state: Mapping[str, torch.Tensor],
        plan: Plan,
        settings: RunSettings,
        *,
        optimizer_state: Mapping[str, torch.Tensor] | None = None,
        term: Term | None = None,
    ) -> None:
        self._fleet = fleet
        self._plan = plan
        self._settings = settings
        self._term = term
        self._name = f"run-{secrets.token_hex(4)}" if term is None else term.run
        self._number = 0 if term is None else term.number
        self._deployment = Deployment.of(program, plan, settings, state, optimizer_state)
        self._stages = self._deployment.stages
        self._window = window(len(plan.stages), plan.extra_in_flight)
        most = max(plan.n_microbatches, self._window)
        self._inbox = Inbox(capacity=4 * most + 8 * len(plan.stages) + 16)
        self._crew = Crew(
            fleet, plan, self._name, self._number, self._inbox, goes_on=term is not None
        )
        self._vigil = device_watch(fleet, plan, self._crew)
        self._stack = ExitStack()
        self._stream = None if is_flushed(plan.schedule) else self._new_stream()
        self.codecs: Sequence[LinkCodec] = plan.codecs
        """Of the next training steps; evaluation is exact."""
        self.link_rates: Mapping[tuple[str, str], float] = {}
        """Bytes per second that links are believed to carry, by source and target."""
        self.last_heard_seconds = fleet.clock.now()
        """When the last result came, or when the term began."""

    @property
    def number(self) -> int:
        """Of the term."""
        return self._number

    @property
    def lost(self) -> frozenset[str]:
        """Devices of the plan that vanished."""
        return self._crew.lost

    @property
    def rounds(self) -> int:
        """Rounds begun so far."""
        return self._crew.rounds

    @property
    def plan(self) -> Plan:
        return self._plan

    def __enter__(self) -> Self:
        fleet, transport = self._fleet, self._fleet.transport
        with ExitStack() as stack:
            if self._term is None:
                stack.callback(self._crew.release)
            fault_key = control_key(fleet.name, transport.name, "fault")
            stack.callback(transport.serve(fault_key, self._crew.on_fault).close)
            stack.callback(fleet.watch(self._crew.on_lost).close)
            results = transport.subscribe(
                frame_pattern(fleet.name, self._name, self._number, COORDINATOR),
                self._receive,
                on_error=self._crew.fail,
                expect=self._expect,
                limit_bytes=1,
            )
            stack.callback(results.close)
            self._crew.for_each(self._deploy)
            stack.enter_context(self._vigil)
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
        self,
        step: int,
        batch: Batch,
        hyperparameters: Mapping[str, float],
        *,
        snapshot: bool = False,
        replicate: bool = False,
    ) -> RoundResult:
        """One optimizer step: the gradient is the mean over the batch's samples.

        Returns when the last loss is here; the last backward passes may still be under way, which
        the next step's inputs overlap. With ``snapshot`` each stage keeps a copy of its state
        after the step, with ``replicate`` one of the stage before it too.
        """
        if self._stream is not None:
            self.submit(step, batch, hyperparameters, snapshot=snapshot, replicate=replicate)
            return self._stream.collect_all()[-1]
        self._fleet.step_begins(step)
        parts = batch.microbatches(self._settings.microbatch_size)
        scalars = _told(batch, hyperparameters, snapshot, replicate)
        return self._round(step, parts, len(parts), scalars, self.codecs)

    @property
    def stream(self) -> StepStream[RoundResult] | None:
        """Where steps overlap: the steps under way, to be collected; ``submit`` adds one."""
        return self._stream

    def submit(
        self,
        step: int,
        batch: Batch,
        hyperparameters: Mapping[str, float],
        *,
        snapshot: bool = False,
        replicate: bool = False,
    ) -> None:
        """One optimizer step, without waiting for its losses: see ``StepStream.submit``."""
        assert self._stream is not None, "a schedule that is flushed has one step under way"
        self._fleet.step_begins(step)
        parts = batch.microbatches(self._settings.microbatch_size)
        self._stream.submit(step, parts, _told(batch, hyperparameters, snapshot, replicate))

    def compare(self, step: int, batch: Batch) -> Agreement:
        """The gradient of one microbatch with the present codecs, against the exact one.

        Changes nothing. The microbatch goes through the pipeline twice, with nothing beside it.
        """
        (part,) = batch.microbatches(self._settings.microbatch_size)[:1]
        self._round(step, (part, part), 2, {"train": 0.0, "compare": 1.0}, self.codecs)
        number, n_stages = self._crew.rounds - 1, len(self._stages)
        told = [
            told_products(self._heard("compared", stage, number, 0).scalars)
            for stage in range(n_stages)
        ]
        return Agreement.of(told)

    def evaluate(self, step: int, parts: Iterable[Batch], n_parts: int) -> RoundResult:
        """Mean loss and metrics of ``n_parts`` microbatches, as ``model.eval()`` computes them."""
        return self._round(step, parts, n_parts, {"train": 0.0})

    def check(self) -> None:
        """Raise the error that ended the run, if one did."""
        self._crew.check()

    def blamed(self, error: EdgeweaveError) -> EdgeweaveError:
        """The cause behind an error, if the run knows a better one."""
        return self._crew.blamed(error)

    def finish_rounds(self) -> None:
        """Return once every stage has finished all rounds; raises what ends the run meanwhile."""
        deadline = self._fleet.clock.now() + self._fleet.timeouts.work
        waiting = list(self._plan.devices)
        while waiting:
            self._crew.check()
            waiting = [device for device in waiting if self._finished(device) < self._crew.rounds]
            if waiting and self._fleet.clock.now() > deadline:
                raise DeviceTimeout(
                    f"{waiting[0]} has not finished round {self._crew.rounds - 1} after "
                    f"{self._fleet.timeouts.work:.0f} s. Look at it, or raise Timeouts.work.",
                    device=waiting[0],
                    stage=self._plan.devices.index(waiting[0]),
                )
            if waiting:
                self._fleet.clock.sleep(_POLL_SECONDS)

    def _finished(self, device: str) -> int:
        """How many rounds a device has finished, as far as it answers."""
        try:
            return self._fleet.pulse(device).rounds
        except EdgeweaveError as error:
            raise self._crew.blamed(error) from error

    def fetch_state(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Weights and optimizer state of every device, as safetensors, once all rounds are done.

        Steps that overlap end first.
        """
        if self._stream is not None:
            self._stream.flush()
        rounds = self._crew.rounds
        weights = self._crew.ask_all("state", StateRequest(self._name, rounds, "weights"))
        optimizers = self._crew.ask_all("state", StateRequest(self._name, rounds, "optimizer"))
        return weights, optimizers

    def stages(self) -> tuple[Program, ...]:
        """The programs the devices hold, in the order of the pipeline."""
        return tuple(self._stages)

    def statistics(self) -> dict[str, StageStatistics]:
        """Where every device's time went so far."""
        answers = self._crew.ask_all("statistics", Release(self._name))
        return {d: decode_message(answer, StageStatistics) for d, answer in answers.items()}

    def _round(
        self,
        step: int,
        parts: Iterable[Batch],
        n_parts: int,
        scalars: Mapping[str, float],
        codecs: Sequence[LinkCodec] = (),
    ) -> RoundResult:
        if self._stream is not None:
            self._stream.settle()
            self._stream.ended()
        started = self._fleet.clock.now()
        number = self._announce(step, n_parts, scalars, codecs)
        results: list[FrameHeader] = []
        for microbatch, part in enumerate(parts):
            while microbatch - len(results) >= self._window:
                results.append(self._result(number, len(results)))
            self._send_inputs(number, microbatch, part)
        while len(results) < n_parts:
            results.append(self._result(number, len(results)))
        return self._summed(results, self._fleet.clock.now() - started)

    def _announce(
        self,
        step: int,
        n_parts: int,
        scalars: Mapping[str, float],
        codecs: Sequence[LinkCodec],
    ) -> int:
        """Begin a round at every stage; its number."""
        number, self._crew.rounds = self._crew.rounds, self._crew.rounds + 1
        self._vigil.round_begins(_kind_of(scalars))
        begin = {"step": float(step), "microbatches": float(n_parts), **scalars}
        devices = self._plan.devices
        for stage, device in enumerate(devices):
            told: dict[str, float] = {}
            for codec in codecs:
                if codec.source == device:
                    bits_name, rate_name = coding_names(devices.index(codec.target))
                    told[bits_name] = codec.bits
                    if codec.ends in self.link_rates:
                        told[rate_name] = self.link_rates[codec.ends]
            self._send("begin", stage, number, 0, {}, {**begin, **told})
        return number

    def _summed(self, results: Sequence[FrameHeader], seconds: float) -> RoundResult:
        self._vigil.round_ends(seconds)
        devices = self._plan.devices
        timed = told_timings(results[0].scalars, len(self._stages))
        timings = {devices[stage]: timing for stage, timing in timed.items()}
        rates = {
            (devices[source], devices[target]): rate
            for (source, target), rate in told_rates(results[0].scalars, len(self._stages)).items()
        }
        kept = told_replicas(results[0].scalars, len(self._stages))
        replicas = {devices[stage]: step for stage, step in kept.items()}
        return replace(
            _mean(results, seconds),
            timings=timings,
            link_bytes_per_second=rates,
            replica_steps=replicas,
        )

    def _new_stream(self) -> StepStream[RoundResult]:
        pipe = Pipe(
            self._window,
            lambda step, n_parts, told: self._announce(step, n_parts, told, self.codecs),
            self._send_inputs,
            self._result,
            self._fleet.clock.now,
        )
        return StepStream(pipe, self._summed, weight_aggregation=self._plan.weight_aggregation)

    def _send_inputs(self, number: int, microbatch: int, part: Batch) -> None:
        scalars = {"samples": float(part.n_samples)}
        for index, stage in enumerate(self._stages):
            used = {
                value.name: part.tensors[value.name].contiguous()
                for value in stage.inputs
                if is_external(value.name)
            }
            if used:
                self._send("input", index, number, microbatch, used, scalars)

    def _send(
        self,
        kind: str,
        stage: int,
        number: int,
        microbatch: int,
        tensors: Mapping[str, torch.Tensor],
        scalars: Mapping[str, float],
    ) -> None:
        transport = self._fleet.transport
        frame = tensor_frame(
            kind,
            transport.name,
            COORDINATOR,
            self._number,
            round=number,
            microbatch=microbatch,
            tensors=tensors,
            scalars=scalars,
        )
        try:
            key = frame_key(self._fleet.name, self._name, self._number, stage, kind)
            transport.send(key, frame, device=self._plan.devices[stage])
        except EdgeweaveError as error:
            raise self._crew.blamed(error) from error

    def _result(self, number: int, microbatch: int) -> FrameHeader:
        return self._heard("result", len(self._stages) - 1, number, microbatch)

    def _heard(self, kind: str, stage: int, number: int, microbatch: int) -> FrameHeader:
        key = FrameId(kind, stage, number, microbatch)
        timeout = self._fleet.timeouts.frame
        place = "first" if microbatch == 0 else "next"
        what = f"the {_missing(kind)} of microbatch {microbatch}"
        with self._vigil.waiting(f"{place} {kind}", what):
            header = self._inbox.wait(key, timeout_seconds=timeout, late=self._late).header
        self.last_heard_seconds = self._fleet.clock.now()
        return header

    def _deploy(self, device: str) -> bytes:
        stage = self._stages[self._plan.devices.index(device)]
        message = self._deployment.message(
            device,
            run=self._name,
            term=self._number,
            coordinator=self._fleet.transport.name,
            origin=Origin() if self._term is None else self._term.origin(stage, device),
        )
        seconds = self._fleet.timeouts.work
        return self._fleet.ask(device, "deploy", message, timeout_seconds=seconds)

    def _receive(self, frame: Frame) -> None:
        try:
            self._inbox.put(frame)
        except WireError as error:
            self._crew.fail(error)

    def _expect(self, header: FrameHeader) -> None:
        last = len(self._stages) - 1
        if header.kind == "compared" and 0 <= header.stage <= last and not header.tensors:
            return
        if header.kind != "result" or header.stage != last or header.tensors:
            raise WireError(
                f"the coordinator expects results of stage {last} "
                f"(got {header.kind!r} from stage {header.stage} on {header.device})."
            )
        samples = header.scalars.get("samples", 0.0)
        if "loss" not in header.scalars or not 1 <= samples <= self._settings.microbatch_size:
            raise WireError(
                f"a result holds a loss and 1 to {self._settings.microbatch_size} samples "
                f"(got {dict(header.scalars)} from {header.device})."
            )
        told_timings(header.scalars, len(self._stages))
        told_rates(header.scalars, len(self._stages))
        told_replicas(header.scalars, len(self._stages))

    def _late(self, key: FrameId) -> EdgeweaveError:
        device = self._plan.devices[key.sender]
        seconds = self._fleet.timeouts.frame
        return DeviceTimeout(
            f"no {_missing(key.kind)} of microbatch {key.microbatch} (round {key.round}) came "
            f"from stage {key.sender} on {device} in {seconds:.0f} s. A stage is far slower than "
            "planned or stuck; look at `edgeweave status`, or raise Timeouts.frame.",
            device=device,
            stage=key.sender,
        )


def _missing(kind: str) -> str:
    return "comparison of gradients" if kind == "compared" else "result"


def _kind_of(scalars: Mapping[str, float]) -> str:
    """What kind of round ``begin`` announces: the waits in each are of their own length."""
    return "train" if scalars["train"] else "compare" if scalars.get("compare") else "evaluate"


def _told(
    batch: Batch, hyperparameters: Mapping[str, float], snapshot: bool, replicate: bool
) -> dict[str, float]:
    """What devices are told of a training step."""
    told = told_hyperparameters(hyperparameters)
    told |= {"train": 1.0, "total_samples": float(batch.n_samples)}
    return told | {"snapshot": float(snapshot), "replicate": float(replicate)}


def _mean(results: Sequence[FrameHeader], seconds: float) -> RoundResult:
    """Means over samples from results that are means over microbatches."""
    samples = [result.scalars["samples"] for result in results]

    def mean(values: Iterable[float]) -> float:
        weighted = (value * n for value, n in zip(values, samples, strict=True))
        return sum(weighted) / sum(samples)

    metrics = [metrics_in(result.scalars) for result in results]
    return RoundResult(
        loss=mean(result.scalars["loss"] for result in results),
        metrics={name: mean(each[name] for each in metrics) for name in metrics[0]},
        n_samples=int(sum(samples)),
        seconds=seconds,
    )
