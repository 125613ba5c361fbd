"""The agent: one process per device, the same for a real board and an emulated one.

It announces itself, answers requests, and works for at most one run at a time. A run ends here
when it is released, when its stage fails, or when its coordinator vanishes; the agent stays.

    idle --profile--> profiling --> idle
    idle --deploy---> running ----> idle   (release, fault, coordinator gone)
"""

from __future__ import annotations

import logging
import os
import platform
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil
import torch

from edgeweave.core.clock import Clock, SystemClock
from edgeweave.core.errors import (
    DeviceBusy,
    DeviceError,
    DeviceFailed,
    EdgeweaveError,
    FleetError,
    PlanError,
    WireError,
)
from edgeweave.core.timeouts import Timeouts
from edgeweave.core.units import format_bytes
from edgeweave.device import memory
from edgeweave.device.exchange import StageExchange
from edgeweave.device.executor import Executor
from edgeweave.device.messages import (
    Assignment,
    Deploy,
    Fault,
    Greeting,
    LinkProbe,
    LinkTimings,
    Profile,
    Release,
    StageStatistics,
    StateRequest,
    UnitTimings,
    Weigh,
    decode_message,
    encode_message,
)
from edgeweave.device.optimizer import StageOptimizer
from edgeweave.device.pacing import UnitMemory
from edgeweave.device.settings import AgentSettings
from edgeweave.device.tasks import tasks
from edgeweave.device.throttle import Throttle
from edgeweave.net import Transport, TransportStatistics, control_key, hello_of
from edgeweave.net.remote import encode_error
from edgeweave.plan import in_flight
from edgeweave.program import (
    Program,
    StageProgram,
    decode,
    decode_program,
)

__all__ = ["Agent"]

_log = logging.getLogger(__name__)

_LINK_SAMPLES = 3
_REMEMBERED_RELEASES = 64
_LARGEST_PROBE_BYTES = 16 << 20


@dataclass(slots=True)
class _Running:
    assignment: Assignment
    executor: Executor
    exchange: StageExchange
    moved_before: TransportStatistics
    stack: ExitStack


class Agent:
    """Serves one device on a transport, between ``with`` and its end."""

    def __init__(
        self,
        settings: AgentSettings,
        transport: Transport,
        *,
        clock: Clock | None = None,
        timeouts: Timeouts | None = None,
        run_task: Callable[[str, bytes], bytes] | None = None,
    ) -> None:
        self._settings = settings
        own_tasks = tasks(settings)
        self._run_task = run_task or (lambda name, data: own_tasks[name](data))
        self._transport = transport
        self._clock = clock or SystemClock()
        self._timeouts = timeouts or Timeouts()
        self._throttle = Throttle(settings.speed, self._clock)
        self._device = settings.torch_device()
        self._threads, self._threads_reason = settings.choose_threads()
        self._units = UnitMemory()
        self._busy = threading.Lock()
        self._busy_with: str | None = None
        self._running: _Running | None = None
        self._ending = threading.Lock()
        self._released: deque[str] = deque(maxlen=_REMEMBERED_RELEASES)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        torch.set_num_threads(self._threads)
        verbs: dict[str, Callable[[bytes], bytes]] = {
            "hello": self._hello,
            "echo": lambda payload: b"",
            "measure": self._measure,
            "profile": self._profile,
            "deploy": self._deploy,
            "state": self._state,
            "statistics": self._statistics,
            "release": self._release,
        }
        for verb, handler in verbs.items():
            key = control_key(self._settings.fleet, self._settings.name, verb)
            self._stack.callback(self._transport.serve(key, handler).close)
        alive = control_key(self._settings.fleet, self._settings.name, "alive")
        self._stack.callback(self._transport.announce(alive).close)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        self._end_run("the agent stops")

    def greeting(self) -> Greeting:
        """The facts of this device, now."""
        running = self._running
        return Greeting(
            hello=hello_of(self._settings.name),
            machine=f"{platform.system()} {platform.machine()}",
            cores=os.cpu_count() or 1,
            threads=self._threads_reason,
            device=str(self._device),
            speed=self._settings.speed,
            memory_bytes=psutil.virtual_memory().total,
            memory_limit_bytes=self._settings.memory_limit_bytes,
            run=running.assignment.run if running else self._busy_with,
            clock_seconds=self._clock.now(),
        )

    def _hello(self, _payload: bytes) -> bytes:
        return encode_message(self.greeting())

    def _measure(self, payload: bytes) -> bytes:
        message = decode_message(payload, LinkProbe)
        if not 0 < message.size_bytes <= _LARGEST_PROBE_BYTES:
            raise WireError(
                f"a link is probed with 1 to {_LARGEST_PROBE_BYTES} bytes "
                f"(asked for {message.size_bytes})."
            )
        key = control_key(self._settings.fleet, message.target, "echo")

        def seconds(size_bytes: int) -> float:
            started = self._clock.now()
            self._transport.request(
                key,
                bytes(size_bytes),
                device=message.target,
                timeout_seconds=self._timeouts.request,
            )
            return self._clock.now() - started

        seconds(1)  # opens the way
        small = min(seconds(1) for _ in range(_LINK_SAMPLES))
        large = min(seconds(message.size_bytes) for _ in range(_LINK_SAMPLES))
        rate = message.size_bytes / max(large - small, 1e-6)
        return encode_message(LinkTimings(latency_seconds=small / 2, bytes_per_second=rate))

    def _profile(self, payload: bytes) -> bytes:
        with self._working("profiling"):
            answer = self._run_task("profile", payload)
            if self._settings.speed is not None:
                message = decode_message(payload, Profile)
                program = decode_program(message.graph, examine=lambda _checked: None)
                timings = decode_message(answer, UnitTimings)
                self._units.learn(program, message.microbatch_size, timings)
            return answer

    def _deploy(self, payload: bytes) -> bytes:
        message = decode_message(payload, Deploy)
        assignment = message.assignment
        self._take(assignment.run)
        try:
            self._running = self._start(message)
        except BaseException:
            self._free()
            raise
        self._check_wanted(assignment)
        _log.info(
            "run %s: stage %d of %d is ready",
            assignment.run,
            assignment.stage,
            assignment.n_stages,
        )
        return b""

    def _check_wanted(self, assignment: Assignment) -> None:
        """End a run that was released, or whose coordinator vanished, while it was deployed."""
        if assignment.run in self._released:
            self._end_run("it was released before it was ready")
            raise FleetError(f"run {assignment.run} was released before it was ready.")
        alive = control_key(self._settings.fleet, assignment.coordinator, "alive")
        if not self._transport.alive(alive, timeout_seconds=self._timeouts.request):
            self._end_run(f"its coordinator {assignment.coordinator} is not there")
            raise FleetError(
                f"{self._settings.name} works for coordinators that it sees "
                f"({assignment.coordinator} is not there). Announce it before deploying."
            )

    def _start(self, message: Deploy) -> _Running:
        assignment = message.assignment
        captured = decode(message.graph, message.tensors, examine=self._examine)
        self._check_memory(assignment, captured.program)
        torch.set_num_threads(self._threads)
        memory.release_freed()
        memory.reset_peak()
        stage = StageProgram(
            captured.program,
            captured.state,
            device=self._device,
            seed=assignment.seed,
            take_over=True,
        )
        optimizer = StageOptimizer(assignment.optimizer, stage.parameters)
        if message.optimizer_state is not None:
            optimizer.load_state(message.optimizer_state)
        exchange = StageExchange(
            assignment,
            captured.program,
            self._transport,
            fleet=self._settings.fleet,
            clock=self._clock,
            timeouts=self._timeouts,
        )
        executor = Executor(
            assignment,
            stage,
            optimizer,
            exchange,
            throttle=self._throttle,
            clock=self._clock,
            on_fault=lambda error: self._report_fault(assignment, error),
        )
        if self._settings.speed is not None:
            executor.rehearse(self._units.recall(captured.program, assignment.microbatch_size))
        memory.release_freed()
        with ExitStack() as stack:
            stack.enter_context(executor)
            watched = control_key(self._settings.fleet, assignment.coordinator, "alive")
            watch = self._transport.watch(
                watched, lambda _key, alive: self._coordinator_seen(assignment, alive=alive)
            )
            stack.callback(watch.close)
            moved = self._transport.statistics()
            return _Running(assignment, executor, exchange, moved, stack.pop_all())

    def _examine(self, program: Program) -> None:
        self._run_task("check", encode_message(program))

    def _check_memory(self, assignment: Assignment, program: Program) -> None:
        limit = self._settings.memory_limit_bytes
        if limit is None:
            return
        held = in_flight(
            assignment.schedule,
            assignment.stage,
            assignment.n_stages,
            assignment.max_microbatches,
            assignment.extra_in_flight,
        )
        weigh = Weigh(program, assignment.microbatch_size, held, assignment.optimizer)
        needed = int.from_bytes(self._run_task("weigh", encode_message(weigh)), "big")
        if needed > limit:
            raise PlanError(
                f"{assignment.peer(assignment.stage)} needs {format_bytes(needed)} "
                f"(limit: {format_bytes(limit)}). Lower batch_size or add a device."
            )

    def _state(self, payload: bytes) -> bytes:
        message = decode_message(payload, StateRequest)
        running = self._require(message.run)
        return running.executor.wait_state(
            message.rounds, message.part, timeout_seconds=self._timeouts.work
        )

    def _statistics(self, payload: bytes) -> bytes:
        message = decode_message(payload, Release)
        running = self._require(message.run)
        moved = self._transport.statistics()
        executor = running.executor
        return encode_message(
            StageStatistics(
                compute_seconds=executor.seconds["compute"],
                wait_seconds=executor.seconds["wait"],
                idle_seconds=executor.seconds["idle"],
                send_seconds=running.exchange.send_seconds,
                bytes_in=moved.bytes_received - running.moved_before.bytes_received,
                bytes_out=moved.bytes_sent - running.moved_before.bytes_sent,
                rounds=executor.rounds,
                peak_memory_bytes=memory.peak_bytes(),
                clock_seconds=self._clock.now(),
                events=tuple(executor.events),
            )
        )

    def _release(self, payload: bytes) -> bytes:
        message = decode_message(payload, Release)
        self._released.append(message.run)
        running = self._running
        if running is not None and running.assignment.run == message.run:
            self._end_run("it was released")
        return b""

    def _require(self, run: str) -> _Running:
        running = self._running
        if running is None or running.assignment.run != run:
            raise FleetError(
                f"{self._settings.name} does not work for run {run} "
                f"(it works for {running.assignment.run if running else 'none'})."
            )
        return running

    @contextmanager
    def _working(self, what: str) -> Iterator[None]:
        self._take(what)
        try:
            yield
        finally:
            self._free()

    def _take(self, what: str) -> None:
        if not self._busy.acquire(blocking=False):
            raise DeviceBusy(
                f"{self._settings.name} already works for {self._busy_with}. "
                "Wait until it is done, or use another device.",
                device=self._settings.name,
            )
        self._busy_with = what

    def _free(self) -> None:
        self._busy_with = None
        self._busy.release()

    def _coordinator_seen(self, assignment: Assignment, *, alive: bool) -> None:
        running = self._running
        if not alive and running is not None and running.assignment == assignment:
            self._end_run(f"its coordinator {assignment.coordinator} vanished")

    def _report_fault(self, assignment: Assignment, error: BaseException) -> None:
        """Tell the coordinator. Runs on the stage's thread, which ends after it."""
        _log.error("run %s: stage %d failed: %s", assignment.run, assignment.stage, error)
        described = encode_error(_located(error, assignment))
        fault = Fault(assignment.run, self._settings.name, assignment.stage, described)
        key = control_key(self._settings.fleet, assignment.coordinator, "fault")
        try:
            self._transport.request(
                key,
                encode_message(fault),
                device=assignment.coordinator,
                timeout_seconds=self._timeouts.request,
            )
        except EdgeweaveError as unreported:
            _log.error("the coordinator could not be told: %s", unreported)

    def _end_run(self, why: str) -> None:
        with self._ending:
            running, self._running = self._running, None
        if running is None:
            return
        try:
            running.stack.close()
        finally:
            self._free()
        _log.info("run %s: ended, because %s", running.assignment.run, why)
        del running
        memory.release_freed()


def _located(error: BaseException, assignment: Assignment) -> EdgeweaveError:
    """The error with the stage and the device in its message, whatever raised it."""
    me = assignment.peer(assignment.stage)
    if isinstance(error, DeviceError) or (isinstance(error, EdgeweaveError) and me in str(error)):
        return error
    if isinstance(error, EdgeweaveError):
        return type(error)(f"{me}: {error}")
    return DeviceFailed(
        f"{me} failed: {type(error).__name__}: {error}",
        device=assignment.device,
        stage=assignment.stage,
        remote_traceback="".join(traceback.format_exception(error)),
    )
