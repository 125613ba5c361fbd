"""``SuperNeuronTrainer``: train one model in slices, over links that lose and devices that vanish.

Knows data sets and epochs; leaves computing to ``SliceRun`` and cutting to ``slice_planning``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.utils.data import Dataset

from edgeweave.codec import Codec, none
from edgeweave.core.errors import ConfigError
from edgeweave.core.evaluation import Evaluation
from edgeweave.data.batches import (
    Batch,
    epoch_batches,
    example,
    n_batches,
    ordered_batches,
    prefetched,
)
from edgeweave.device import Optimizer
from edgeweave.fleet import Fleet
from edgeweave.plan import Delivery, DeliveryTrial, SliceExplanation, SlicePlan, StepSeen
from edgeweave.program import Captured, LossFunction, Mode, capture, encode_state
from edgeweave.train.fitting import Fit, Store
from edgeweave.train.learning_rate import LearningRate, LRSchedule
from edgeweave.train.measuring.measurements import Measure
from edgeweave.train.progress import TrainingProgress
from edgeweave.train.slices.deployment import SliceSettings
from edgeweave.train.slices.planning import Groups, SlicePlanner
from edgeweave.train.slices.report import SuperNeuronReport, slice_report
from edgeweave.train.slices.run import SliceRun
from edgeweave.train.weights import Weights

__all__ = ["SuperNeuronTrainer"]

_EXAMPLE_SAMPLES = 2
_EXACT = none()


class SuperNeuronTrainer:
    """Trains ``model`` in slices on the devices of ``fleet``: EdgePipe's super neurons.

    Groups of devices have consecutive layers, and each device some neurons of every layer of its
    group. What a link loses counts as zero, and what arrives is scaled up so that sums are right on
    average, forward and backward; nobody waits for what is sent again. A device that vanishes is a
    mask until it returns; if it stays away, a device of the fleet without a slice gets its slice.
    What is learnt is therefore close to what one device learns, and not equal, and a step is one
    batch, without a flush (as ``async-1f1b`` with one microbatch).

    ``groups``: ``"auto"`` by what devices and links were measured to take and to lose, for all
    devices, at least two in a group; ``"edgepipe"`` by the paper's formulas; or pairs of numbers of
    layers and devices, ``[(3, 2), (3, 2)]``. ``mode``: ``"exchange"`` is your model;
    ``"grouped"`` lets slices of a group see only themselves, which is cheaper and another model.

    ``delivery``: ``"tolerant"`` lets messages be lost, ``"reliable"`` waits for what is sent again,
    ``"auto"`` tries both for some steps, now and then, and takes what teaches more in a second
    (``report.choices``). Evaluation is always reliable. ``codec`` makes values and gradients
    smaller on their way, as ``edgeweave.codec.uniform(8)``.

    Raises ``CaptureError`` for layers that cannot be sliced, ``DeviceLost`` when no device of a
    group is left.

    >>> trainer = SuperNeuronTrainer(model, loss_fn, optimizer=ew.Optimizer("SGD", lr=0.1),
    ...                              fleet=fleet)  # doctest: +SKIP
    >>> report = trainer.fit(train_set, batch_size=64, epochs=2)  # doctest: +SKIP
    >>> model.load_state_dict(trainer.state_dict())  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        *,
        optimizer: Optimizer,
        fleet: Fleet,
        metrics: Mapping[str, LossFunction] | None = None,
        lr_schedule: LRSchedule | None = None,
        groups: Groups = "auto",
        mode: Mode = "exchange",
        delivery: Delivery | Literal["auto"] = "auto",
        measure: Measure = "profile",
        codec: Codec = _EXACT,
        seed: int = 0,
        plan: SlicePlan | None = None,
    ) -> None:
        for what, value, known in (
            ("mode", mode, get_args(Mode)),
            ("delivery", delivery, (*get_args(Delivery), "auto")),
        ):
            if value not in known:
                raise ConfigError(
                    f"unknown {what} {value!r} (known: {', '.join(known)}). Choose one."
                )
        self._model = model
        self._loss_fn = loss_fn
        self._optimizer = optimizer
        self._fleet = fleet
        self._metrics = dict(metrics or {})
        self._lr_schedule = lr_schedule
        self._groups = groups
        self._mode: Mode = mode
        self._delivery = delivery
        self._measure = measure
        self._codec = None if codec.name == "none" else codec
        self._seed = seed
        self._plan = plan
        self._captured: Captured | None = None
        self._weights = Weights({})

    @property
    def plan(self) -> SlicePlan | None:
        """The plan in use, once there is one."""
        return self._plan

    def prepare(self, dataset: Dataset[Any], *, batch_size: int) -> SlicePlan:
        """Capture the model, measure devices and links, and plan, without training anything."""
        captured = self._capture(dataset)
        if self._plan is None:
            self._plan = self._planner(batch_size).plan(captured)
        return self._plan

    def explain(self, dataset: Dataset[Any], *, batch_size: int) -> SliceExplanation:
        """The plan that ``prepare`` makes with what it is predicted to take, to send and to lose:
        devices measure the model for that, whatever ``groups`` are.

        Not for a trainer that was given its plan, or has one: ``ConfigError``.
        """
        if self._plan is not None:
            raise ConfigError(
                "a plan is explained when it is made (this trainer has one). Ask a new trainer."
            )
        found = self._planner(batch_size).explain(self._capture(dataset))
        self._plan = found.plan
        return found

    def _planner(self, batch_size: int) -> SlicePlanner:
        return SlicePlanner(
            self._fleet,
            self._optimizer,
            batch_size,
            groups=self._groups,
            mode=self._mode,
            reliable=self._delivery == "reliable",
            measure=self._measure,
            seed=self._seed,
        )

    def fit(
        self,
        train_set: Dataset[Any],
        *,
        batch_size: int,
        epochs: int = 1,
        validate: Dataset[Any] | None = None,
        checkpoint: str | Path | None = None,
        resume: bool = False,
        progress: bool = True,
    ) -> SuperNeuronReport:
        """Train for ``epochs`` epochs of ``train_set`` and return what happened.

        ``validate`` is evaluated after every epoch. ``checkpoint`` names a directory: one is
        written there after every epoch; with ``resume`` the run continues from the newest in it,
        with whatever groups and devices there are now. Samples are shuffled anew each epoch, from
        the seed.
        """
        if batch_size < 1 or epochs < 1 or n_batches(train_set, 1) < 1:
            raise ConfigError(
                "training needs at least one sample, batch_size >= 1 and epochs >= 1 "
                f"(got {n_batches(train_set, 1)}, {batch_size}, {epochs})."
            )
        plan = self.prepare(train_set, batch_size=batch_size)
        self._weights.optimizer, self._weights.step = {}, 0
        fit = Fit(
            weights=self._weights,
            rate=LearningRate(self._optimizer, self._lr_schedule),
            store=None if checkpoint is None else Store(Path(checkpoint), None),
            settings=self._settings(train_set, batch_size),
        )
        fit.rate.check(validated=validate is not None)
        if resume:
            fit.resume()
        n_steps = epochs * n_batches(train_set, batch_size)
        n_before = len(self._fleet.chaos_log)
        with ExitStack() as stack:
            run = stack.enter_context(self._run(plan, batch_size))
            done = fit.history.step
            bar = stack.enter_context(TrainingProgress(n_steps, done=done, shown=progress))
            work = _Training(run, fit, bar, batch_size, self._delivery)
            while fit.history.cursor.epoch < epochs:
                self._epoch(work, run, train_set, batch_size)
                found = None if validate is None else self._evaluated(run, validate, batch_size)
                bar.epoch(fit.end_epoch(_Whole(run), found))
            self._weights.state, _ = run.fetch_state()
            self._plan = run.plan
            return slice_report(
                fit.history,
                run.plan,
                run.statistics(),
                run.absences,
                run.moves,
                work.trial.choices,
                self._fleet.chaos_log[n_before:],
            )

    def _epoch(
        self, work: _Training, run: SliceRun, train_set: Dataset[Any], batch_size: int
    ) -> None:
        """What is left of the present one."""
        cursor, stop_seconds = work.fit.history.cursor, self._fleet.timeouts.stop
        batches = epoch_batches(train_set, batch_size, seed=self._seed, cursor=cursor)
        with prefetched(batches, check=run.check, stop_seconds=stop_seconds) as ahead:
            work.train(ahead)

    def evaluate(self, dataset: Dataset[Any], *, batch_size: int) -> Evaluation:
        """Mean loss and metrics over ``dataset`` with the present weights, in evaluation mode."""
        plan = self.prepare(dataset, batch_size=batch_size)
        with self._run(plan, batch_size) as run:
            return self._evaluated(run, dataset, batch_size)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The trained weights and buffers under the names of the user's model."""
        aliases = self._captured.program.aliases if self._captured else {}
        return {
            name: self._weights.state.get(aliases.get(name, name), tensor).detach().clone()
            for name, tensor in self._model.state_dict().items()
        }

    def _run(self, plan: SlicePlan, batch_size: int) -> SliceRun:
        assert self._captured is not None
        settings = SliceSettings(self._optimizer, batch_size, self._seed, codec=self._codec)
        weights = self._weights
        return SliceRun(
            self._fleet,
            self._captured.program,
            weights.state,
            plan,
            settings,
            optimizer_state=weights.optimizer,
        )

    def _settings(self, train_set: Dataset[Any], batch_size: int) -> dict[str, str]:
        """What must be the same for a resumed run to be the same run, but for losses."""
        return {
            "seed": str(self._seed),
            "batch_size": str(batch_size),
            "samples": str(n_batches(train_set, 1)),
            "optimizer": repr(self._optimizer),
            "lr_schedule": repr(self._lr_schedule),
            "super_neurons": self._mode,
        }

    def _evaluated(self, run: SliceRun, dataset: Dataset[Any], batch_size: int) -> Evaluation:
        if n_batches(dataset, 1) < 1:
            raise ConfigError("evaluation needs at least one sample (the data set has none).")
        parts = ordered_batches(dataset, batch_size)
        stop_seconds = self._fleet.timeouts.stop
        with prefetched(parts, check=run.check, stop_seconds=stop_seconds) as ahead:
            result = run.evaluate(ahead)
        return Evaluation(result.loss, result.metrics, result.n_samples)

    def _capture(self, dataset: Dataset[Any]) -> Captured:
        """The model's training step, captured once, and the weights that are trained."""
        if self._captured is None:
            inputs, target = example(dataset, _EXAMPLE_SAMPLES)
            captured = capture(self._model, self._loss_fn, inputs, target, metrics=self._metrics)
            self._weights = Weights({n: t.detach().clone() for n, t in captured.state.items()})
            self._captured = captured
        return self._captured


class _Whole:
    """A run in slices as checkpoints want it: one state."""

    def __init__(self, run: SliceRun) -> None:
        self._run = run

    def fetch_state(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        state, entries = self._run.fetch_state()
        return {"slices": encode_state(state)}, {"slices": encode_state(entries)}


class _Training:
    """The steps of one call: submitted as the window lets, collected in order."""

    def __init__(
        self,
        run: SliceRun,
        fit: Fit,
        bar: TrainingProgress,
        batch_size: int,
        delivery: Delivery | Literal["auto"],
    ) -> None:
        self.fit = fit
        self.trial = DeliveryTrial(settling=2 * run.window)
        self._run = run
        self._bar = bar
        self._batch_size = batch_size
        self._delivery = delivery
        self._step = fit.history.step

    def train(self, batches: Iterator[Batch]) -> None:
        """All of them, to the last result."""
        for batch in batches:
            while self._run.n_under_way >= self._run.window:
                self._collect()
            self._submit(batch)
        while self._run.n_under_way:
            self._collect()

    def _submit(self, batch: Batch) -> None:
        is_auto, rate = self._delivery == "auto", self.fit.rate
        number = self.trial.done + self._run.n_under_way
        way = self.trial.delivery_of(number) if is_auto else self._delivery
        self._run.submit(
            self._step,
            batch,
            rate.hyperparameters(),
            reliable=way == "reliable",
            square=is_auto,
        )
        rate.advance("step")
        self._step += 1

    def _collect(self) -> None:
        result = self._run.collect()
        self.fit.history.end_step(result, full=result.n_samples == self._batch_size)
        self._bar.step(result)
        if self._delivery == "auto":
            self.trial = self.trial.stepped(StepSeen(result.seconds, self._run.squared_gradient))
