"""One interface, two systems: ``burst(n)`` does n training steps and says how long they took.

``OurPipeline`` is a fleet of real agents (no speed, no pacing, one thread each) that runs a plan.
``TorchPipeline`` is ``torch.distributed.pipelining`` over Gloo, in as many processes. Both stay
alive between bursts and wait without computing.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import edgeweave as ew
from benchmarks.children import Child
from benchmarks.real_fleet import real_fleet
from benchmarks.resnet import N_BLOCKS, Images, cross_entropy, resnet18, stage_module
from edgeweave.data.batches import Batch
from edgeweave.plan import Plan, Stage
from edgeweave.program import (
    Captured,
    Program,
    capture,
    cut,
    cut_bytes,
    flatten_inputs,
    without_outputs,
)
from edgeweave.train.run import PipelineRun, RunSettings

__all__ = ["Burst", "OurPipeline", "TorchPipeline", "Work"]


@dataclass(frozen=True, slots=True)
class Work:
    """What both systems are asked to do."""

    first_blocks: tuple[int, ...]
    """The first residual block of each stage; the first stage begins with the stem."""
    schedule: str
    n_microbatches: int
    microbatch_size: int
    n_samples: int
    lr: float
    momentum: float
    seed: int
    extra_in_flight: int = 0
    """Ours only: microbatches a stage may hold beyond what 1F1B needs. The planner's own is 2."""

    @property
    def n_stages(self) -> int:
        return len(self.first_blocks)

    @property
    def batch_size(self) -> int:
        return self.n_microbatches * self.microbatch_size

    def blocks(self, stage: int) -> tuple[int, int]:
        """The first block of a stage, and the one behind its last."""
        ends = (*self.first_blocks[1:], N_BLOCKS)
        return self.first_blocks[stage], ends[stage]


@dataclass(frozen=True, slots=True)
class Burst:
    """Seconds of a step in the steady state, and the loss of every step.

    The time runs from the end of the burst's first step to the end of its last one, as seen by
    whoever has the losses.
    """

    step_seconds: float
    losses: tuple[float, ...]


class OurPipeline:
    """Edgeweave: agents as ``edgeweave join`` starts them, one thread each, and a run on them."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._data = Images(work.n_samples, seed=work.seed)
        self._stack = ExitStack()
        self._steps = 0

    def __enter__(self) -> Self:
        work = self._work
        names = tuple(f"worker-{index}" for index in range(work.n_stages))
        with ExitStack() as stack:
            fleet = stack.enter_context(real_fleet(names))
            captured = self._capture()
            optimizer = ew.Optimizer("SGD", lr=work.lr, momentum=work.momentum)
            settings = RunSettings(optimizer, work.microbatch_size, seed=work.seed)
            plan = _plan(captured.program, names, work)
            self._run = stack.enter_context(
                PipelineRun(fleet, captured.program, captured.state, plan, settings)
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def burst(self, n_steps: int) -> Burst:
        losses: list[float] = []
        ends: list[float] = []
        for _ in range(n_steps):
            images, labels = self._data.step_batch(self._steps, self._work.batch_size)
            batch = Batch(flatten_inputs(images, labels), len(labels))
            losses.append(self._run.train_step(self._steps, batch, {"lr": self._work.lr}).loss)
            ends.append(time.perf_counter())
            self._steps += 1
        return Burst((ends[-1] - ends[0]) / (n_steps - 1), tuple(losses))

    def _capture(self) -> Captured:
        images, labels = self._data.step_batch(0, self._work.microbatch_size)
        return capture(resnet18(self._work.seed), cross_entropy, images, labels)


class TorchPipeline:
    """``torch.distributed.pipelining``: one process and one thread for each stage, over Gloo."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
            settings = {"work": asdict(self._work), "meeting": str(folder / "meeting")}
            self._ranks = [
                stack.enter_context(Child("benchmarks.torch_rank", {**settings, "rank": rank}))
                for rank in range(self._work.n_stages)
            ]
            for rank in self._ranks:
                rank.answer()  # it is ready
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def burst(self, n_steps: int) -> Burst:
        for rank in self._ranks:
            rank.tell({"steps": n_steps})
        last = [rank.answer() for rank in self._ranks][-1]
        return Burst(last["step_seconds"], tuple(last["losses"]))


def _plan(program: Program, devices: Sequence[str], work: Work) -> Plan:
    """The cut of ``work`` as a plan. Nothing was measured, so it predicts nothing."""
    firsts = [0, *(_first_unit(program, work, stage) for stage in range(1, work.n_stages))]
    stops = [*firsts[1:], len(program.unit_numbers)]
    stages = tuple(
        Stage(device, first, stop, forward_seconds=0.0, backward_seconds=0.0, memory_bytes=0)
        for device, first, stop in zip(devices, firsts, stops, strict=True)
    )
    return Plan(stages, work.schedule, work.n_microbatches, work.extra_in_flight, 0.0, 0.0)


def _first_unit(program: Program, work: Work, stage: int) -> int:
    """The unit at which the parameters of a stage begin; where several do, the narrowest cut."""
    model = resnet18(work.seed)
    held = {id(p) for p in stage_module(model, work.blocks(stage)[0], N_BLOCKS).parameters()}
    wanted = {name for name, parameter in model.named_parameters() if id(parameter) in held}
    bare = without_outputs(program)
    crossing = cut_bytes(bare, work.microbatch_size)
    fitting = [
        unit
        for unit in bare.unit_numbers[1:]
        if {spec.name for spec in cut(bare, [unit])[1].trainable} == wanted
    ]
    return min(fitting, key=lambda unit: crossing[unit].forward)
