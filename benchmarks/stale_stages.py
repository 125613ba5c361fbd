"""A pipeline in one process, in the order of a schedule: ``1f1b``, or ``async-1f1b`` and its means.

Stages take turns; each does what its ``Stream`` says as soon as its neighbours' values are there.
Which weights a forward sees is the order's business alone, so this learns what a fleet learns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.coded_stages import Batch
from edgeweave.device.stages.aggregation import Aggregation
from edgeweave.plan import Backward, Due, Forward, Learn, Stream
from edgeweave.program import Moment, Program, VersionedStage, flatten_inputs

__all__ = ["Order", "StalePipeline"]

_Tensors = dict[str, torch.Tensor]
_Place = tuple[int, int, int]
"""A stage, a step and a microbatch."""
_MOST = 1000
"""Microbatches of a step."""


@dataclass(frozen=True, slots=True)
class Order:
    """How steps follow each other."""

    is_flushed: bool = False
    extra_in_flight: int = 0
    aggregation: int | None = None


@dataclass(slots=True)
class _Worker:
    """A stage with its optimizer, if it has anything to train."""

    index: int
    stage: VersionedStage
    optimizer: torch.optim.Optimizer | None
    aggregation: Aggregation
    stream: Stream


class StalePipeline:
    """Stages that own a copy of ``state``. ``make_optimizer`` is called for each of them."""

    def __init__(
        self,
        programs: Sequence[Program],
        state: Mapping[str, torch.Tensor],
        make_optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
        order: Order,
        *,
        seed: int,
    ) -> None:
        self._order, self._n = order, len(programs)
        self._workers: list[_Worker] = []
        for index, program in enumerate(programs):
            stage = VersionedStage(program, state, seed=seed)
            trained = list(stage.parameters.values())
            means = Aggregation(order.aggregation, index, self._n)
            optimizer = make_optimizer(trained) if trained else None
            self._workers.append(_Worker(index, stage, optimizer, means, self._new_stream(index)))
        self._steps: dict[int, Sequence[Batch]] = {}
        self._losses: dict[int, float] = {}
        self._values: dict[_Place, _Tensors] = {}
        self._gradients: dict[_Place, _Tensors] = {}

    def train(self, steps: Iterable[Sequence[Batch]], rates: Sequence[float]) -> list[float]:
        """One optimizer step for each sequence of microbatches; the mean loss of each.

        ``rates`` are the learning rates, one a step. Ends with a flush.
        """
        left, first = iter(steps), 0
        while first < len(rates):
            stop = first + 1 if self._order.is_flushed else len(rates)
            self._stream(left, first, stop, rates)
            first = stop
        return [self._losses.pop(step) for step in range(len(rates))]

    def evaluate(self, batch: Batch) -> dict[str, float]:
        """Loss and metrics with the newest weights."""
        arriving = flatten_inputs(*batch)
        for worker in self._workers:
            result = worker.stage.evaluate(arriving)
            arriving |= result.outputs
        assert result.loss is not None
        return {"loss": float(result.loss)} | {k: float(v) for k, v in result.metrics.items()}

    def state_dict(self) -> _Tensors:
        """Of all stages."""
        return {n: t for worker in self._workers for n, t in worker.stage.state_dict().items()}

    def _new_stream(self, index: int) -> Stream:
        return Stream(index, self._n, extra_in_flight=self._order.extra_in_flight)

    def _stream(
        self, left: Iterator[Sequence[Batch]], first: int, stop: int, rates: Sequence[float]
    ) -> None:
        """Steps ``first`` to ``stop - 1``, from one flush to the next."""
        for worker in self._workers:
            worker.stream = self._new_stream(worker.index)
            worker.aggregation.begin(worker.stage)
        busy = True
        while busy:
            busy = False
            for worker in self._workers:
                choices = worker.stream.choices()
                if not choices:
                    continue
                due, step = choices[0], first + choices[0].step
                if isinstance(due.action, Learn):
                    self._learn(worker, step, stop, left)
                    busy = True
                elif self._do(worker, due, step, rates[min(step, stop - 1)]):
                    worker.stream.take(due)
                    busy = True

    def _learn(
        self, worker: _Worker, step: int, stop: int, left: Iterator[Sequence[Batch]]
    ) -> None:
        if step == stop:
            worker.stream.end()
            return
        if step not in self._steps:
            self._steps[step], self._losses[step] = next(left), 0.0
        worker.stream.begin_step(len(self._steps[step]))

    def _do(self, worker: _Worker, due: Due, step: int, rate: float) -> bool:
        """Do a stage's next action, if what it needs is there."""
        if isinstance(due.action, Forward):
            return self._forward(worker, step, due.action.microbatch)
        if isinstance(due.action, Backward):
            return self._backward(worker, step, due.action.microbatch)
        self._update(worker, step, rate)
        return True

    def _forward(self, worker: _Worker, step: int, microbatch: int) -> bool:
        place = worker.index, step, microbatch
        if worker.index and place not in self._values:
            return False
        parts = self._steps[step]
        arriving = self._values.pop(place, {}) | flatten_inputs(*parts[microbatch])
        result = worker.stage.forward(
            arriving, Moment(step, microbatch), key=step * _MOST + microbatch
        )
        if result.loss is None:
            self._values[worker.index + 1, step, microbatch] = dict(result.outputs)
        else:
            self._losses[step] += float(result.loss) / len(parts)
        return True

    def _backward(self, worker: _Worker, step: int, microbatch: int) -> bool:
        place = worker.index, step, microbatch
        if worker.index < self._n - 1 and place not in self._gradients:
            return False
        returned = worker.stage.backward(
            step * _MOST + microbatch,
            self._gradients.pop(place, {}),
            loss_weight=1 / len(self._steps[step]),
        )
        if worker.index:
            self._gradients[worker.index - 1, step, microbatch] = returned
        return True

    def _update(self, worker: _Worker, step: int, rate: float) -> None:
        worker.stage.leave_version(keep=worker.aggregation.keeps)
        if worker.optimizer is not None:
            for group in worker.optimizer.param_groups:
                group["lr"] = rate
            worker.optimizer.step()
            worker.optimizer.zero_grad()
        worker.aggregation.after_update(step, worker.stage)
        if worker.index == 0:  # the last to update
            del self._steps[step]
