"""A plan at work: stages deployed, microbatches in, losses out. Knows no epochs and no files.

One round is a training step or an evaluation pass. The coordinator keeps a window of microbatches
under way and learns of each from the last stage's result; the devices' schedules do the rest.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch

from edgeweave.core.errors import (
    DeviceLost,
    DeviceTimeout,
    EdgeweaveError,
    FleetError,
    WireError,
)
from edgeweave.device import (
    COORDINATOR,
    Assignment,
    Deploy,
    Fault,
    FrameId,
    Inbox,
    Optimizer,
    Release,
    StageStatistics,
    StateRequest,
    decode_message,
    tensor_frame,
)
from edgeweave.fleet import Fleet
from edgeweave.net import Frame, FrameHeader, control_key, frame_key, frame_pattern
from edgeweave.net.remote import decode_error
from edgeweave.plan import Plan
from edgeweave.program import (
    Program,
    cut,
    encode,
    encode_state,
    is_external,
    shared_parameters,
    without_outputs,
)
from edgeweave.train.batches import Batch

__all__ = ["PipelineRun", "RoundResult", "RunSettings"]

_log = logging.getLogger(__name__)

_SPARE_WINDOW = 2
_BLAME_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What a run needs beside program, state and plan."""

    optimizer: Optimizer
    microbatch_size: int
    seed: int = 0
    clip_grad_norm: float | None = None


@dataclass(frozen=True, slots=True)
class RoundResult:
    """Means over the samples of one round; seconds from its first input to its last loss."""

    loss: float
    metrics: dict[str, float]
    n_samples: int
    seconds: float


class PipelineRun:
    """Deploys on entering, releases the devices on leaving, whatever happened in between.

    A device that vanishes, fails or stays silent makes the method in progress raise; the run is
    then over.
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
    ) -> None:
        self._fleet = fleet
        self._plan = plan
        self._settings = settings
        self._state = state
        self._optimizer_state = optimizer_state
        self._name = f"run-{secrets.token_hex(4)}"
        self._stages = cut(
            without_outputs(program), [stage.first_unit for stage in plan.stages[1:]]
        )
        self._parameter_order = tuple(spec.name for spec in program.trainable)
        self._inbox = Inbox(capacity=4 * plan.n_microbatches + 8 * len(plan.stages) + 16)
        self._rounds = 0
        self._lost: dict[str, threading.Event] = {d: threading.Event() for d in plan.devices}
        self._any_lost = threading.Event()
        self._news = threading.Event()  # an answer came, or the run failed
        self._stack = ExitStack()

    @property
    def plan(self) -> Plan:
        return self._plan

    def __enter__(self) -> Self:
        fleet, transport = self._fleet, self._fleet.transport
        with ExitStack() as stack:
            stack.callback(self._release)
            fault_key = control_key(fleet.name, transport.name, "fault")
            stack.callback(transport.serve(fault_key, self._on_fault).close)
            stack.callback(fleet.watch(self._on_lost).close)
            results = transport.subscribe(
                frame_pattern(fleet.name, self._name, 0, COORDINATOR),
                self._receive,
                on_error=self._fail,
                expect=self._expect,
                limit_bytes=1,
            )
            stack.callback(results.close)
            self._deploy_all()
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
        """One optimizer step: the gradient is the mean over the batch's samples.

        Returns when the last loss is here; the last backward passes may still be under way, which
        the next step's inputs overlap.
        """
        parts = batch.microbatches(self._settings.microbatch_size)
        scalars = {f"hp:{name}": value for name, value in hyperparameters.items()}
        scalars |= {"train": 1.0, "total_samples": float(batch.n_samples)}
        return self._round(step, parts, len(parts), scalars)

    def evaluate(self, step: int, parts: Iterable[Batch], n_parts: int) -> RoundResult:
        """Mean loss and metrics of ``n_parts`` microbatches, as ``model.eval()`` computes them."""
        return self._round(step, parts, n_parts, {"train": 0.0})

    def fetch_state(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Weights and optimizer state of every device, as safetensors, once all rounds are done."""
        weights = self._ask_all("state", StateRequest(self._name, self._rounds, "weights"))
        optimizers = self._ask_all("state", StateRequest(self._name, self._rounds, "optimizer"))
        return weights, optimizers

    def stages(self) -> tuple[Program, ...]:
        """The programs the devices hold, in the order of the pipeline."""
        return self._stages

    def statistics(self) -> dict[str, StageStatistics]:
        """Where every device's time went so far."""
        answers = self._ask_all("statistics", Release(self._name))
        return {d: decode_message(answer, StageStatistics) for d, answer in answers.items()}

    def _round(
        self, step: int, parts: Iterable[Batch], n_parts: int, scalars: Mapping[str, float]
    ) -> RoundResult:
        started = self._fleet.clock.now()
        number, self._rounds = self._rounds, self._rounds + 1
        begin = {"step": float(step), "microbatches": float(n_parts), **scalars}
        for stage in range(len(self._stages)):
            self._send("begin", stage, number, 0, {}, begin)
        window = len(self._stages) + self._plan.extra_in_flight + _SPARE_WINDOW
        results: list[FrameHeader] = []
        for microbatch, part in enumerate(parts):
            while microbatch - len(results) >= window:
                results.append(self._result(number, len(results)))
            self._send_inputs(number, microbatch, part)
        while len(results) < n_parts:
            results.append(self._result(number, len(results)))
        return _mean(results, self._fleet.clock.now() - started)

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
            0,
            round=number,
            microbatch=microbatch,
            tensors=tensors,
            scalars=scalars,
        )
        try:
            transport.send(frame_key(self._fleet.name, self._name, 0, stage, kind), frame)
        except EdgeweaveError as error:
            raise self._blamed(error) from error

    def _result(self, number: int, microbatch: int) -> FrameHeader:
        last = len(self._stages) - 1
        key = FrameId("result", last, number, microbatch)
        timeout = self._fleet.timeouts.frame
        return self._inbox.wait(key, timeout_seconds=timeout, late=self._late).header

    def _deploy_all(self) -> None:
        fleet = self._fleet
        try:
            fleet.for_each(self._plan.devices, self._deploy, one_at_a_time=fleet.is_local)
        except EdgeweaveError as error:
            raise self._blamed(error) from error

    def _deploy(self, device: str) -> bytes:
        index = self._plan.devices.index(device)
        stage = self._stages[index]
        graph, tensors = encode(stage, self._state)
        assignment = Assignment(
            run=self._name,
            term=0,
            coordinator=self._fleet.transport.name,
            stage=index,
            devices=self._plan.devices,
            schedule=self._plan.schedule,
            extra_in_flight=self._plan.extra_in_flight,
            microbatch_size=self._settings.microbatch_size,
            max_microbatches=self._plan.n_microbatches,
            seed=self._settings.seed,
            optimizer=self._settings.optimizer,
            clip_grad_norm=self._settings.clip_grad_norm,
            parameter_order=self._parameter_order,
            tied=shared_parameters(self._stages),
        )
        return self._fleet.ask(
            device,
            "deploy",
            Deploy(assignment, graph, memoryview(tensors), self._optimizer_part(stage)),
            timeout_seconds=self._fleet.timeouts.work,
        )

    def _optimizer_part(self, stage: Program) -> memoryview | None:
        """The optimizer state of one stage's parameters, keyed ``<parameter>|<entry>``."""
        if self._optimizer_state is None:
            return None
        names = {spec.name for spec in stage.trainable}
        part = {
            key: tensor
            for key, tensor in self._optimizer_state.items()
            if key.rpartition("|")[0] in names
        }
        return memoryview(encode_state(part))

    def check(self) -> None:
        """Raise the error that ended the run, if one did."""
        if self._inbox.error is not None:
            raise self._inbox.error

    def _ask_all(self, verb: str, message: StateRequest | Release) -> dict[str, bytes]:
        """Ask every stage at once. The first fault or loss ends the run, and with it the asking."""
        devices, seconds = self._plan.devices, self._fleet.timeouts.work
        with ThreadPoolExecutor(max_workers=len(devices)) as pool:
            asked = [
                pool.submit(self._fleet.ask, device, verb, message, timeout_seconds=seconds)
                for device in devices
            ]
            for future in asked:
                future.add_done_callback(lambda _future: self._news.set())
            try:
                self._wait_answers(asked)
            except BaseException as error:
                cause = self._blamed(error) if isinstance(error, EdgeweaveError) else error
                self._release()  # or else the other stages answer when their deadline is over
                raise cause from error
        return dict(zip(devices, (future.result() for future in asked), strict=True))

    def _wait_answers(self, asked: Sequence[Future[bytes]]) -> None:
        """Until all are there; raises the first error, of an answer or of the run."""
        while True:
            self._news.clear()
            if self._inbox.error is not None:
                raise self._inbox.error
            answered = [future.result() for future in asked if future.done()]
            if len(answered) == len(asked):
                return
            self._news.wait(self._fleet.timeouts.work)

    def _release(self) -> None:
        """Let the devices go; one that is gone or silent cannot be told, and need not be."""
        for device, lost in self._lost.items():
            if lost.is_set():
                continue
            try:
                self._fleet.ask(
                    device,
                    "release",
                    Release(self._name),
                    timeout_seconds=self._fleet.timeouts.stop,
                )
            except EdgeweaveError as error:
                _log.warning("%s was not released: %s", device, error)

    def _receive(self, frame: Frame) -> None:
        try:
            self._inbox.put(frame)
        except WireError as error:
            self._fail(error)

    def _fail(self, error: EdgeweaveError) -> None:
        self._inbox.fail(error)
        self._news.set()

    def _expect(self, header: FrameHeader) -> None:
        last = len(self._stages) - 1
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

    def _on_lost(self, device: str) -> None:
        if device in self._lost:
            self._lost[device].set()
            self._any_lost.set()
            self._fail(self._lost_error(device))

    def _lost_error(self, device: str) -> DeviceLost:
        stage = self._plan.devices.index(device)
        when = f"in round {self._rounds - 1}" if self._rounds else "before the first round"
        return DeviceLost(
            f"stage {stage} on {device} was lost {when} "
            "(its process or its link is gone). Bring it back or leave it out, and resume from "
            "the last checkpoint.",
            device=device,
            stage=stage,
        )

    def _on_fault(self, payload: bytes) -> bytes:
        fault = decode_message(payload, Fault)
        if fault.run == self._name:
            error = decode_error(fault.error, fault.device)
            self._fail(self._blamed(error))
        return b""

    def _blamed(self, error: EdgeweaveError) -> EdgeweaveError:
        """The cause behind an error: a device that vanished makes others fail a moment before."""
        if isinstance(error, DeviceLost):
            return error
        if type(error) in (FleetError, DeviceTimeout):
            self._any_lost.wait(_BLAME_SECONDS)
        lost = [device for device, event in self._lost.items() if event.is_set()]
        if lost:
            return self._lost_error(lost[0])
        return self._inbox.error or error

    def _late(self, key: FrameId) -> EdgeweaveError:
        device = self._plan.devices[-1]
        seconds = self._fleet.timeouts.frame
        return DeviceTimeout(
            f"no result of microbatch {key.microbatch} (round {key.round}) came from stage "
            f"{key.sender} on {device} in {seconds:.0f} s. A stage is far slower than planned or "
            "stuck; look at `edgeweave status`, or raise Timeouts.frame.",
            device=device,
            stage=key.sender,
        )


def _mean(results: Sequence[FrameHeader], seconds: float) -> RoundResult:
    """Means over samples from results that are means over microbatches."""
    samples = [result.scalars["samples"] for result in results]

    def mean(name: str) -> float:
        weighted = (r.scalars[name] * n for r, n in zip(results, samples, strict=True))
        return sum(weighted) / sum(samples)

    names = [name for name in results[0].scalars if name.startswith("metric:")]
    return RoundResult(
        loss=mean("loss"),
        metrics={name.removeprefix("metric:"): mean(name) for name in names},
        n_samples=int(sum(samples)),
        seconds=seconds,
    )
