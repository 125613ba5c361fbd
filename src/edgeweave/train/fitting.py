"""One call of ``fit``: what it has done, the weights it moves, and the checkpoints it writes.

Knows steps and epochs; leaves data sets, plans and fleets to the trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from edgeweave.core.errors import CheckpointError, ConfigError, WireError
from edgeweave.train import checkpoint as checkpoints
from edgeweave.train.batches import Batch, Cursor
from edgeweave.train.history import History
from edgeweave.train.learning_rate import LearningRate
from edgeweave.train.report import EpochRecord, Evaluation
from edgeweave.train.run import PipelineRun, RoundResult
from edgeweave.train.step_stream import StepStream

__all__ = ["Fit", "Store", "Weights"]


@dataclass(slots=True)
class Weights:
    """The coordinator's copy of what the devices hold, as of the last ``fetch``."""

    state: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor] = field(default_factory=dict)

    def fetch(self, run: PipelineRun) -> None:
        """Take weights, buffers and optimizer state over from the devices."""
        weights, optimizers = run.fetch_state()
        for device, data in weights.items():
            self.state.update(_tensors(data, device))
        self.optimizer = {}
        for device, data in optimizers.items():
            self.optimizer.update(_tensors(data, device))


@dataclass(frozen=True, slots=True)
class Store:
    """Where checkpoints go, and every how many steps beside the end of every epoch."""

    directory: Path
    every_steps: int | None


class Fit:
    """The state of training between the first and the last step of one call."""

    def __init__(
        self,
        *,
        weights: Weights,
        rate: LearningRate,
        store: Store | None,
        settings: dict[str, str],
    ) -> None:
        self.history = History()
        self.rate = rate
        self._weights = weights
        self._store = store
        self._settings = settings

    def train_epoch(
        self,
        run: PipelineRun,
        batches: Iterable[Batch],
        batch_size: int,
        *,
        before_step: Callable[[int, Batch], None],
        on_step: Callable[[RoundResult], None],
    ) -> None:
        """Train on what is left of the epoch, with checkpoints on the way.

        Where steps overlap, all under way end before a checkpoint, at the epoch's end, and for what
        ``before_step`` asks of the run. Each step has the learning rate it would have anyway.
        """
        if run.stream is not None:
            self._stream_epoch(
                run, run.stream, batches, batch_size, before_step=before_step, on_step=on_step
            )
            return
        saved_at = self.history.step
        for batch in batches:
            if self._is_due(saved_at, self.history.step):
                self._save(run)
                saved_at = self.history.step
            before_step(self.history.step, batch)
            result = run.train_step(self.history.step, batch, self.rate.hyperparameters())
            self.rate.advance("step")
            self.history.end_step(result, full=batch.n_samples == batch_size)
            on_step(result)

    def _stream_epoch(
        self,
        run: PipelineRun,
        stream: StepStream[RoundResult],
        batches: Iterable[Batch],
        batch_size: int,
        *,
        before_step: Callable[[int, Batch], None],
        on_step: Callable[[RoundResult], None],
    ) -> None:
        def end_steps(results: Iterable[RoundResult]) -> None:
            for result in results:
                self.history.end_step(result, full=result.n_samples == batch_size)
                on_step(result)

        saved_at = step = self.history.step
        for batch in batches:
            if self._is_due(saved_at, step):
                end_steps(stream.collect_all())
                self._save(run)
                saved_at = step
            before_step(step, batch)
            run.submit(step, batch, self.rate.hyperparameters())
            self.rate.advance("step")
            step += 1
            end_steps(stream.collect_nowait())
        end_steps(stream.collect_all())
        stream.flush()

    def end_epoch(self, run: PipelineRun, validation: Evaluation | None) -> EpochRecord:
        """Close the epoch, and write its checkpoint."""
        self.rate.advance("epoch", None if validation is None else validation.loss)
        record = self.history.end_epoch(validation)
        self._save(run)
        return record

    def resume(self) -> None:
        """Stand where the newest checkpoint was written."""
        if self._store is None:
            raise ConfigError("resume needs a checkpoint directory. Pass checkpoint=.")
        directory = self._store.directory
        loaded = checkpoints.load(checkpoints.latest(directory))
        progress = loaded.progress
        self._check_same(directory, progress.settings)
        known = {name: tensor.shape for name, tensor in self._weights.state.items()}
        found = {name: tensor.shape for name, tensor in loaded.state.items()}
        if known != found:
            names = sorted(n for n in known.keys() | found if known.get(n) != found.get(n))
            raise CheckpointError(
                f"the checkpoint in {directory} is of another model ({', '.join(names[:3])} "
                "differ). Pass the model it was made with."
            )
        self._weights.state = loaded.state
        self._weights.optimizer = loaded.optimizer
        self.rate.replay(progress.lr_calls)
        self.history.restore(
            Cursor(progress.epoch, progress.batch),
            progress.step_losses,
            progress.epochs,
            progress.open_epoch,
        )

    def _check_same(self, directory: Path, theirs: dict[str, str]) -> None:
        differing = [
            f"{name} now {self._settings.get(name)}, then {theirs.get(name)}"
            for name in sorted(self._settings.keys() | theirs)
            if self._settings.get(name) != theirs.get(name)
        ]
        if differing:
            raise CheckpointError(
                f"a run resumes with the settings it began with ({directory}: "
                f"{'; '.join(differing)}). Pass the same ones."
            )

    def _is_due(self, saved_at: int, step: int) -> bool:
        """Whether the last of ``step`` steps asks for a checkpoint. The epoch's has one anyway."""
        store = self._store
        every = None if store is None else store.every_steps
        return every is not None and step > saved_at and step % every == 0

    def _save(self, run: PipelineRun) -> None:
        if self._store is None:
            return
        self._weights.fetch(run)
        history = self.history
        progress = checkpoints.Progress(
            step=history.step,
            epoch=history.cursor.epoch,
            batch=history.cursor.batch,
            settings=self._settings,
            lr_calls=self.rate.calls,
            step_losses=history.step_losses,
            epochs=tuple(history.epochs),
            open_epoch=history.open_epoch(),
        )
        checkpoints.save(
            self._store.directory,
            checkpoints.Checkpoint(progress, self._weights.state, self._weights.optimizer),
        )


def _tensors(data: bytes, device: str) -> dict[str, torch.Tensor]:
    """What a device sent as safetensors."""
    try:
        return dict(safetensors.torch.load(data))
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise WireError(f"the state that {device} sent is not safetensors ({error}).") from error
