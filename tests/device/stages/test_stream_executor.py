"""A stage without flush, driven by frames: what it waits for, tells and refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from queue import Queue

import pytest
import torch

from edgeweave.core.clock import SystemClock
from edgeweave.core.errors import WireError
from edgeweave.core.timeouts import Timeouts
from edgeweave.device import Optimizer
from edgeweave.device.optimizer import StageOptimizer
from edgeweave.device.stages.exchange import StageExchange
from edgeweave.device.stages.executor import Executor
from edgeweave.device.stages.stream_executor import StreamExecutor, executor_of
from edgeweave.device.throttle import Throttle
from edgeweave.net import Frame, MemoryFabric, Transport, frame_key, frame_pattern
from edgeweave.program import StageProgram, VersionedStage
from tests.device.stages.examples import (
    LONG,
    assignment,
    begin,
    captured_mlp,
    frame,
    handed_on,
    mlp_stages,
)


class Middle:
    """Stage 1 of 3; the test plays the coordinator and both neighbours."""

    def __init__(self, fabric: MemoryFabric, stack: ExitStack) -> None:
        clock, throttle = SystemClock(), Throttle(None, SystemClock())
        told = assignment(1, schedule="async-1f1b", max_microbatches=1)
        program = mlp_stages()[1]
        self.stage = VersionedStage(program, captured_mlp().state)
        self.sent: Queue[Frame] = Queue()
        self.faults: Queue[BaseException] = Queue()
        self.others: dict[int, Transport] = {}
        for number, name in ((-1, "coordinator-1"), (0, "pi-a"), (2, "pi-c")):
            other = self.others[number] = fabric.join(name)
            other.subscribe(
                frame_pattern("default", "run-1", 0, number),
                self.sent.put,
                on_error=self.faults.put,
                expect=lambda header: None,
                limit_bytes=1 << 20,
            )
        transport = fabric.join("pi-b")
        exchange = StageExchange(
            told,
            program,
            transport,
            fleet="default",
            clock=clock,
            timeouts=Timeouts(frame=LONG, send=1.0),
            throttle=throttle,
        )
        optimizer = StageOptimizer(Optimizer("SGD", lr=0.1), self.stage.parameters)
        made = executor_of(
            told,
            self.stage,
            optimizer,
            exchange,
            throttle=throttle,
            clock=clock,
            on_fault=self.faults.put,
            on_snapshot=lambda _step, _state, _replicate: None,
        )
        self.executor = stack.enter_context(made)

    def begin(self, number: int, *, train: float = 1.0, n_microbatches: int = 1) -> None:
        told = begin(n_microbatches, step=number, train=train)
        header = frame("begin", number=number, **dict(told.header.scalars))
        self._send(-1, header)

    def activation(self, number: int, version: float | None) -> None:
        scalars = {"samples": 4.0} | ({} if version is None else {"version": version})
        self._send(0, frame("activation", 0, number=number, tensors=handed_on(0), **scalars))

    def gradient(self, number: int, version: float) -> None:
        tensors = {name: torch.full_like(t, 0.1) for name, t in handed_on(1).items()}
        scalars = {"samples": 4.0, "version": version}
        self._send(2, frame("gradient", 2, number=number, tensors=tensors, **scalars))

    def next_sent(self) -> tuple[str, int, float]:
        """Kind, round and version of the next frame but pings."""
        while True:
            header = self.sent.get(timeout=LONG).header
            if header.kind != "ping":
                return header.kind, header.step, header.scalars["version"]

    def _send(self, sender: int, sent: Frame) -> None:
        key = frame_key("default", "run-1", 0, 1, sent.header.kind)
        self.others[sender].send(key, sent, device="pi-b")


@contextmanager
def middle() -> Iterator[Middle]:
    with ExitStack() as stack:
        fabric = stack.enter_context(MemoryFabric(timeouts=Timeouts(send=1.0)))
        yield Middle(fabric, stack)


def test_it_begins_the_next_step_before_the_gradient_of_this_one_is_here() -> None:
    with middle() as stage:
        stage.begin(0)
        stage.begin(1)
        stage.activation(0, 0.0)
        stage.activation(1, 0.0)
        assert [stage.next_sent(), stage.next_sent()] == [
            ("activation", 0, 0.0),
            ("activation", 1, 0.0),
        ]
        assert stage.stage.n_in_flight == 2


def test_frames_tell_the_version_of_the_weights_that_they_come_from_or_return_to() -> None:
    with middle() as stage:
        for number in range(3):
            stage.begin(number)
            stage.activation(number, 0.0)
        stage.gradient(0, 0.0)
        kinds = [stage.next_sent() for _ in range(4)]
        # Of the third step, whose forward follows the first update here, and none at stage 0.
        assert kinds == [
            ("activation", 0, 0.0),
            ("activation", 1, 0.0),
            ("gradient", 0, 0.0),
            ("activation", 2, 1.0),
        ]


def test_a_round_that_trains_nothing_ends_what_is_under_way() -> None:
    with middle() as stage:
        stage.begin(0)
        stage.activation(0, 0.0)
        assert stage.next_sent() == ("activation", 0, 0.0)
        stage.gradient(0, 0.0)
        stage.begin(1, train=0.0, n_microbatches=0)
        assert stage.next_sent() == ("gradient", 0, 0.0)
        stage.executor.wait_state(2, "weights", timeout_seconds=LONG)
        assert stage.stage.n_in_flight == 0


@pytest.mark.parametrize("version", [1.0, None])
def test_an_activation_of_other_weights_is_refused(version: float | None) -> None:
    with middle() as stage:
        stage.begin(0)
        stage.activation(0, version)
        fault = stage.faults.get(timeout=LONG)
        assert isinstance(fault, WireError)
        assert "expects version 0 of the weights behind the activation of microbatch 0" in str(
            fault
        )
        assert f"(got {version} from stage 0 on pi-a)" in str(fault)


def test_a_gradient_for_other_weights_is_refused() -> None:
    with middle() as stage:
        stage.begin(0)
        stage.activation(0, 0.0)
        stage.gradient(0, 3.0)
        stage.begin(1, train=0.0, n_microbatches=0)
        fault = stage.faults.get(timeout=LONG)
        assert "behind the gradient of microbatch 0 (round 0) (got 3.0 from stage 2" in str(fault)


def test_a_stage_without_versions_is_flushed() -> None:
    with MemoryFabric(timeouts=Timeouts(send=1.0)) as fabric:
        clock, throttle = SystemClock(), Throttle(None, SystemClock())
        stage = StageProgram(mlp_stages()[1], captured_mlp().state)
        exchange = StageExchange(
            assignment(1),
            mlp_stages()[1],
            fabric.join("pi-b"),
            fleet="default",
            clock=clock,
            timeouts=Timeouts(),
            throttle=throttle,
        )
        made = executor_of(
            assignment(1),
            stage,
            StageOptimizer(Optimizer("SGD", lr=0.1), stage.parameters),
            exchange,
            throttle=throttle,
            clock=clock,
            on_fault=lambda error: None,
            on_snapshot=lambda _step, _state, _replicate: None,
        )
        assert type(made) is Executor
        assert not isinstance(made, StreamExecutor)
