"""One call of ``fit`` at work: epochs, watching, and going on where a device is lost.

Leaves the state of the run to ``Fit``, the devices to ``ElasticRun``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from edgeweave.core.errors import ConfigError, DeviceLost
from edgeweave.data.batches import Batch, epoch_batches, n_batches, ordered_batches, prefetched
from edgeweave.device import StageStatistics
from edgeweave.plan import Costs, Decision, Plan, taken_over
from edgeweave.train.codec_watch import CodecChange, CodecWatch
from edgeweave.train.failures.elastic import ElasticRun
from edgeweave.train.failures.newcomers import Newcomer, Newcomers
from edgeweave.train.failures.service import Recovery
from edgeweave.train.fitting import Fit
from edgeweave.train.measuring.lessons import RunTimings
from edgeweave.train.plan_watch import PlanWatch
from edgeweave.train.progress import TrainingProgress
from edgeweave.train.report import Evaluation
from edgeweave.train.run import PipelineRun, RoundResult

__all__ = ["Data", "Training", "Watches", "evaluated"]


@dataclass(frozen=True, slots=True)
class Data:
    """What is learnt from, and in which pieces."""

    train_set: Dataset[Any]
    validate: Dataset[Any] | None
    batch_size: int
    microbatch_size: int
    epochs: int
    seed: int
    stop_seconds: float
    """How long a data set may take to return once nobody wants its samples."""

    @property
    def n_steps(self) -> int:
        return self.epochs * n_batches(self.train_set, self.batch_size)


@dataclass(frozen=True, slots=True)
class Watches:
    """Who listens while a plan is at work."""

    plan: PlanWatch
    codecs: CodecWatch


class Training:
    """Trains to the end of the last epoch. ``watches`` makes new ones for every plan."""

    def __init__(
        self,
        elastic: ElasticRun,
        fit: Fit,
        data: Data,
        *,
        watches: Callable[[Plan, Costs | None], Watches],
        replan: Callable[[PlanWatch, tuple[str, ...]], Plan],
        newcomers: Newcomers,
        bar: TrainingProgress,
        costs: Costs | None,
    ) -> None:
        self._elastic = elastic
        self._fit = fit
        self._data = data
        self._new_watches = watches
        self._replan = replan
        self._newcomers = newcomers
        self._bar = bar
        self._first_plan = elastic.plan
        self._next: Callable[[], object] | None = None
        """A change of plan, before the next step."""
        self._watches: list[Watches] = [watches(elastic.plan, costs)]
        self.timings = RunTimings()
        """Of the plan in use."""
        self.recoveries: list[Recovery] = []
        self.statistics: Mapping[str, StageStatistics] = {}
        """Of the devices that were there at the end."""

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """Whether to change the plan, as often as that was asked."""
        watched = dict.fromkeys(watches.plan for watches in self._watches)
        return tuple(each for watch in watched for each in watch.decisions)

    @property
    def codec_changes(self) -> tuple[CodecChange, ...]:
        return tuple(each for watches in self._watches for each in watches.codecs.changes)

    def run(self, fetch: Callable[[ElasticRun, int], None]) -> None:
        """Train, and ``fetch`` the weights at the end."""
        self._fit.mark()
        while True:
            try:
                self._train()
                fetch(self._elastic, self._fit.history.step)
                self.statistics = self._elastic.statistics()
            except DeviceLost as error:
                self._recover(error)
            else:
                return

    def _train(self) -> None:
        fit, data = self._fit, self._data
        while fit.history.cursor.epoch < data.epochs:
            batches = epoch_batches(
                data.train_set, data.batch_size, seed=data.seed, cursor=fit.history.cursor
            )
            check, stop_seconds = self._elastic.check, data.stop_seconds
            with prefetched(batches, check=check, stop_seconds=stop_seconds) as ahead:
                fit.train_epoch(
                    self._elastic,
                    ahead,
                    data.batch_size,
                    before_step=self._before_step,
                    on_step=self._on_step,
                    wants_flush=lambda: self._next is not None,
                )
            validation = None
            if data.validate is not None:
                validation = evaluated(
                    self._elastic.run,
                    data.validate,
                    fit.history.step,
                    data.microbatch_size,
                    stop_seconds,
                )
            self._bar.epoch(fit.end_epoch(self._elastic, validation))

    def _recover(self, error: DeviceLost) -> None:
        watch, fit = self._watches[-1].plan, self._fit
        recovery = self._elastic.recover(
            fit.history.step, error, lambda left: self._replan(watch, left)
        )
        self._next = None
        self.recoveries.append(recovery)
        fit.rewind(recovery.resumed_step)
        self._bar.rewind(recovery.resumed_step)
        costs = watch.costs
        known = set() if costs is None else {each.device for each in costs.devices}
        costs = costs.only(known & set(recovery.left)) if costs and known else None
        self._watches.append(self._new_watches(self._elastic.plan, costs))
        self.timings = RunTimings()

    def _before_step(self, step: int, batch: Batch) -> None:
        change, self._next = self._next, None
        if change is not None:
            change()
        self._watches[-1].codecs.before(self._elastic.run, step, batch)

    def _on_step(self, result: RoundResult) -> None:
        self._bar.step(result)
        self.timings.step(result.timings)
        watches, n_done = self._watches[-1], self._fit.history.step
        steps_left = self._data.n_steps - n_done
        decision = watches.plan.step(n_done - 1, result, steps_left=steps_left)
        watches.codecs.after(self._elastic.run, n_done - 1, result, watches.plan.devices)
        if decision is not None:
            self._next = lambda: self._move(decision)
        for newcomer in self._newcomers.ready():
            self._welcome(newcomer, n_done, steps_left)

    def _welcome(self, newcomer: Newcomer, step: int, steps_left: int) -> None:
        """Take a device in if that is worth it; without costs, if the plan had it at first."""
        watch = self._watches[-1].plan
        if newcomer.costs is not None:
            decision = watch.join(step - 1, newcomer, steps_left=steps_left)
            if decision is not None:
                self._next = lambda: self._move(decision)
            return
        there = {newcomer.device, *self._elastic.plan.devices}
        plan = taken_over(self._first_plan, there)
        if watch.costs is None and plan.devices != self._elastic.plan.devices:
            self._next = lambda: self._elastic.move(self._fit.history.step, plan)

    def _move(self, decision: Decision) -> None:
        watch = self._watches[-1].plan
        if not self._elastic.move(self._fit.history.step, decision.new):
            return
        watch.take_up(decision)
        renewed = self._new_watches(self._elastic.plan, watch.costs)
        self._watches.append(Watches(watch, renewed.codecs))
        self.timings = RunTimings()


def evaluated(
    run: PipelineRun, dataset: Dataset[Any], step: int, microbatch_size: int, stop_seconds: float
) -> Evaluation:
    """Mean loss and metrics over a data set, with what the devices hold now."""
    if n_batches(dataset, 1) < 1:
        raise ConfigError("evaluation needs at least one sample (the data set has none).")
    parts = ordered_batches(dataset, microbatch_size)
    with prefetched(parts, check=run.check, stop_seconds=stop_seconds) as ahead:
        result = run.evaluate(step, ahead, n_batches(dataset, microbatch_size))
    return Evaluation(result.loss, result.metrics, result.n_samples)
