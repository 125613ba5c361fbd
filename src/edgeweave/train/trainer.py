"""``PipelineTrainer``: train one model across the devices of a fleet.

Knows data sets, epochs, checkpoints; leaves computing to ``PipelineRun`` and cutting to ``plan``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.utils.data import Dataset

from edgeweave.codec import Codec, none
from edgeweave.core.errors import ConfigError, EdgeweaveError
from edgeweave.data.batches import example, n_batches
from edgeweave.device import Optimizer, StageStatistics
from edgeweave.fleet import Fleet
from edgeweave.plan import (
    SCHEDULE_NAMES,
    Costs,
    Plan,
    TriedSize,
    check_weight_aggregation,
    is_flushed,
)
from edgeweave.program import Captured, LossFunction, Program, capture
from edgeweave.train.compression import Compression
from edgeweave.train.deployment import check_clipping, check_place
from edgeweave.train.failures.elastic import Adopted, ElasticRun
from edgeweave.train.failures.newcomers import Newcomers
from edgeweave.train.fitting import Fit, Store
from edgeweave.train.journal import noted
from edgeweave.train.learning_rate import LearningRate, LRSchedule
from edgeweave.train.measuring.experience import Experience
from edgeweave.train.measuring.measurements import Measure
from edgeweave.train.plan_watch import replanned
from edgeweave.train.planning import Planning, Wishes
from edgeweave.train.progress import TrainingProgress
from edgeweave.train.report import DeviceReport, Evaluation, Report, device_reports
from edgeweave.train.run import PipelineRun, RunSettings
from edgeweave.train.training import Data, Training, evaluated
from edgeweave.train.weights import Weights

__all__ = ["PipelineTrainer"]

_log = logging.getLogger(__name__)

_EXAMPLE_SAMPLES = 2
"""The batch is symbolic: one capture serves microbatches of every size."""
_EXACT = none()


class PipelineTrainer:
    """Trains ``model`` over the devices of ``fleet``, cut by what each of them measured.

    ``loss_fn(output, target)`` and every metric return the mean over the batch, a scalar tensor;
    they are captured with the model and computed on the device of the last stage. The step's
    gradient is the mean over its samples, the last, smaller batch of an epoch included. Splitting
    changes no number on CPU: losses are bit-equal to one device doing the same microbatches
    (tied weights: to float summation order, see docs/explanation-architecture.md).

    Each batch is cut into ``n_microbatches``: more of them keep the devices busier, fewer make each
    more efficient. ``None`` takes as many as ``plan`` has, else those with the shortest predicted
    step that fit the devices' memory (``tried``); a resumed run takes those it began with. Losses
    depend on how many there are: BatchNorm takes statistics of a microbatch (of at least 16
    samples then, if that fits), dropout draws for each, sums are rounded. A choice depends on what
    was measured; pass the number for runs that must be equal.

    ``codec`` makes activations and gradients smaller on their way between devices: ``"auto"`` where
    a link is too slow for the values as they are, in as many bits as it has time for, a codec of
    ``edgeweave.codec`` on every link. What is learnt then differs a little from what one device
    learns (docs/reference-benchmarks.md, ``convergence``); evaluation is exact. Codecs of ``plan``
    are used in any case, and stay as they are, ``uniform`` unless ``codec`` is another; ``"auto"``
    adds none to it.

    ``measure="probe"`` predicts what units take from two seconds of probing, so that no device has
    to run the model before there is a plan; ``plan`` skips measuring. While training, a device or a
    link that leaves what was measured is noticed, and the run moves to another plan where that is
    worth it (``Report.replans``). ``experience`` notes what profiles and steady runs take on real
    devices, for later predictions.

    A run goes on without devices that vanish, from the last step whose state is still whole, and
    ends with the same numbers (``Report.recoveries``). For that, states are copied from device to
    device and here, every so many steps as the plan says, behind all that training sends, and
    devices keep two of their own and two of a neighbour's; ``recover=False`` spares the memory.
    One that comes back, or comes anew, is taken in where that is worth it.

    Raises ``CaptureError`` for a model that cannot be captured, ``PlanError`` if nothing fits, or
    no longer; ``DeviceLost`` if a device vanishes and nobody is left or ``recover`` is off.

    >>> trainer = PipelineTrainer(model, loss_fn, optimizer=ew.Optimizer("SGD", lr=0.1),
    ...                           fleet=fleet)  # doctest: +SKIP
    >>> report = trainer.fit(train_set, batch_size=128, epochs=2)  # doctest: +SKIP
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
        clip_grad_norm: float | None = None,
        schedule: Literal["1f1b", "gpipe", "async-1f1b"] = "1f1b",
        weight_aggregation: int | None = None,
        n_microbatches: int | None = None,
        seed: int = 0,
        measure: Measure = "profile",
        codec: Codec | Literal["auto"] = _EXACT,
        plan: Plan | None = None,
        recover: bool = True,
        experience: Experience | None = None,
    ) -> None:
        if schedule not in SCHEDULE_NAMES:
            raise ConfigError(
                f"unknown schedule {schedule!r} (known: {', '.join(SCHEDULE_NAMES)}). Choose one."
            )
        if measure not in get_args(Measure):
            raise ConfigError(
                f"unknown measure {measure!r} (known: {', '.join(get_args(Measure))}). Choose one."
            )
        if clip_grad_norm is not None and clip_grad_norm <= 0:
            raise ConfigError(f"clip_grad_norm is positive (got {clip_grad_norm}).")
        planned = schedule if plan is None else plan.schedule
        check_clipping(planned, clip_grad_norm)
        check_weight_aggregation(weight_aggregation, planned)
        self._model = model
        self._loss_fn = loss_fn
        self._optimizer = optimizer
        self._fleet = fleet
        self._metrics = dict(metrics or {})
        self._lr_schedule = lr_schedule
        self._clip_grad_norm = clip_grad_norm
        self._weight_aggregation = weight_aggregation
        self._seed = seed
        self._compression = Compression.of(codec)
        self._recover = recover
        wishes = Wishes(schedule, weight_aggregation, n_microbatches, measure, self._compression)
        self._planning = Planning(fleet, optimizer, wishes, plan=plan, experience=experience)
        self._captured: Captured | None = None
        self._weights = Weights({})

    @property
    def plan(self) -> Plan | None:
        """The plan in use, once there is one. Setting it makes the next run use another."""
        return self._planning.plan

    @plan.setter
    def plan(self, plan: Plan | None) -> None:
        self._planning.plan = plan

    @property
    def costs(self) -> Costs | None:
        """What the devices measured, or what was predicted of them, if they were asked."""
        return self._planning.costs

    @property
    def measured(self) -> tuple[Program, int] | None:
        """What ``costs`` are about: the captured program, and the samples of a microbatch."""
        size = self._planning.measured_size
        return None if self._captured is None or size is None else (self._captured.program, size)

    @property
    def tried(self) -> tuple[TriedSize, ...]:
        """The microbatches that were planned, largest first; none if their number was given."""
        return self._planning.tried

    def prepare(
        self, dataset: Dataset[Any], *, batch_size: int, resume: str | Path | None = None
    ) -> Plan:
        """Capture the model, measure the devices and plan, without training anything.

        ``resume`` is the directory of checkpoints that ``fit`` will continue from: microbatches
        that are chosen are those of its run.
        """
        size = self._planning.wanted_size(batch_size, resume)
        return self._planning.prepare(self._capture(dataset), batch_size, size)

    def fit(
        self,
        train_set: Dataset[Any],
        *,
        batch_size: int,
        epochs: int,
        validate: Dataset[Any] | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_every: int | None = None,
        resume: bool = False,
        progress: bool = True,
    ) -> Report:
        """Train for ``epochs`` epochs of ``train_set`` and return what happened.

        ``validate`` is evaluated after every epoch. ``checkpoint`` names a directory: one is
        written there every ``checkpoint_every`` steps and after every epoch; with ``resume`` the
        run continues from the newest in it, exactly as if it had never stopped. Samples are
        shuffled anew each epoch, from the seed.
        """
        if batch_size < 1 or epochs < 1 or n_batches(train_set, 1) < 1:
            raise ConfigError(
                "training needs at least one sample, batch_size >= 1 and epochs >= 1 "
                f"(got {n_batches(train_set, 1)}, {batch_size}, {epochs})."
            )
        if resume and checkpoint is None:
            raise ConfigError("resume needs a checkpoint directory. Pass checkpoint=.")
        plan = self.prepare(train_set, batch_size=batch_size, resume=checkpoint if resume else None)
        captured, planning = self._capture(train_set), self._planning
        self._weights.optimizer, self._weights.step = {}, 0
        store = None if checkpoint is None else Store(Path(checkpoint), checkpoint_every)
        fit = Fit(
            weights=self._weights,
            rate=LearningRate(self._optimizer, self._lr_schedule),
            store=store,
            settings=self._settings(train_set, batch_size, plan),
        )
        fit.rate.check(validated=validate is not None)
        adopted = None
        if resume:
            fit.resume()
            adopted = fit.adopted(self._fleet, captured.program.trained)
        data = Data(
            train_set,
            validate,
            batch_size,
            self._planning.microbatch_size(batch_size),
            epochs,
            self._seed,
            self._fleet.timeouts.stop,
        )
        with (
            noted(fit.journal) as on_term,
            self._elastic(plan, batch_size, adopted, on_term) as elastic,
            Newcomers(
                self._fleet,
                {*self._fleet.devices, *plan.devices},
                lambda device: planning.met(captured, device, elastic.plan, batch_size),
            ) as newcomers,
            TrainingProgress(data.n_steps, done=fit.history.step, shown=progress) as bar,
        ):
            started, n_before = self._fleet.clock.now(), len(self._fleet.chaos_log)
            first_plan = elastic.plan  # the present one knows none of those that came back
            training = Training(
                elastic,
                fit,
                data,
                watches=lambda plan, costs: planning.watches(plan, costs, batch_size),
                replan=lambda watch, left: replanned(first_plan, watch.costs, left),
                newcomers=newcomers,
                bar=bar,
                costs=planning.costs,
            )
            training.run(self._weights.fetch)
            planning.teach(captured, elastic.plan, batch_size, training.timings)
            devices = self._device_reports(training.statistics, elastic.plan, started)
            return replace(
                fit.history.report(elastic.plan, devices),
                chaos=self._fleet.chaos_log[n_before:],
                replans=training.decisions,
                codec_changes=training.codec_changes,
                recoveries=tuple(training.recoveries),
                service=elastic.service(),
            )

    def evaluate(self, dataset: Dataset[Any], *, batch_size: int) -> Evaluation:
        """Mean loss and metrics over ``dataset`` with the present weights, in evaluation mode."""
        captured = self._capture(dataset)
        plan = self.plan or self.prepare(dataset, batch_size=batch_size)
        check_place(plan, self._fleet, captured.program)
        self._weights.optimizer = {}
        size, stop_seconds = self._planning.microbatch_size(batch_size), self._fleet.timeouts.stop
        with PipelineRun(
            self._fleet,
            captured.program,
            self._weights.state,
            plan,
            self._run_settings(batch_size),
        ) as run:
            return evaluated(run, dataset, 0, size, stop_seconds)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The trained weights and buffers under the names of the user's model.

        What training never touched (unused parameters) has the model's own values.
        """
        aliases = self._captured.program.aliases if self._captured else {}
        return {
            name: self._weights.state.get(aliases.get(name, name), tensor).detach().clone()
            for name, tensor in self._model.state_dict().items()
        }

    def _capture(self, dataset: Dataset[Any]) -> Captured:
        """The model's training step, captured once, and the weights that are trained."""
        if self._captured is None:
            inputs, target = example(dataset, _EXAMPLE_SAMPLES)
            captured = capture(self._model, self._loss_fn, inputs, target, metrics=self._metrics)
            self._weights = Weights({n: t.detach().clone() for n, t in captured.state.items()})
            self._captured = captured
        return self._captured

    def _elastic(
        self,
        plan: Plan,
        batch_size: int,
        adopted: Adopted | None,
        on_term: Callable[[str, int], None],
    ) -> ElasticRun:
        assert self._captured is not None
        if self._weight_aggregation is not None:
            plan = replace(plan, weight_aggregation=self._weight_aggregation)
        compression = self._compression or (Compression.of("auto") if plan.codecs else None)
        costs = self._planning.costs
        return ElasticRun(
            self._fleet,
            self._captured.program,
            self._weights,
            plan if compression is None else compression.given(plan),
            self._run_settings(batch_size, compression),
            replicates=self._recover,
            link_seconds=lambda source, target: (
                0.0 if costs is None else 1 / costs.link(source, target).bytes_per_second
            ),
            adopted=adopted,
            on_term=on_term,
        )

    def _run_settings(self, batch_size: int, compression: Compression | None = None) -> RunSettings:
        return RunSettings(
            optimizer=self._optimizer,
            microbatch_size=self._planning.microbatch_size(batch_size),
            seed=self._seed,
            clip_grad_norm=self._clip_grad_norm,
            codec=None if compression is None else compression.codec,
        )

    def _settings(self, train_set: Dataset[Any], batch_size: int, plan: Plan) -> dict[str, str]:
        """What must be the same for a resumed run to be the same run."""
        return {
            "seed": str(self._seed),
            "batch_size": str(batch_size),
            "microbatch_size": str(self._planning.microbatch_size(batch_size)),
            "samples": str(n_batches(train_set, 1)),
            "optimizer": repr(self._optimizer),
            "lr_schedule": repr(self._lr_schedule),
            "clip_grad_norm": str(self._clip_grad_norm),
            **self._stale_settings(plan),
        }

    def _stale_settings(self, plan: Plan) -> dict[str, str]:
        """What decides which weights a gradient is of, where that is not always the newest."""
        if is_flushed(plan.schedule):
            return {}
        every = self._weight_aggregation or plan.weight_aggregation
        return {"schedule": plan.schedule, "weight_aggregation": str(every)}

    def _device_reports(
        self, statistics: Mapping[str, StageStatistics], plan: Plan, started_seconds: float
    ) -> tuple[DeviceReport, ...]:
        offsets = {device: self._clock_offset(device) for device in plan.devices}
        return device_reports(
            statistics, plan, clock_offsets=offsets, started_seconds=started_seconds
        )

    def _clock_offset(self, device: str) -> float:
        """Of a device that may be gone now that all is done: then its events are not in line."""
        try:
            return self._fleet.clock_offset(device)
        except EdgeweaveError as error:
            _log.warning(
                "the clock of %s is not known, nor when its events were: %s", device, error
            )
            return 0.0
