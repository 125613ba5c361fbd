"""One call of ``fit``: what it has done, the weights it moves, and the checkpoints it writes.

Knows steps and epochs; leaves data sets, plans and fleets to the trainer.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from edgeweave.core.errors import CheckpointError, ConfigError, DeviceBusy
from edgeweave.data.batches import Batch, Cursor
from edgeweave.device import Halt
from edgeweave.fleet import Fleet
from edgeweave.train import checkpoint as checkpoints
from edgeweave.train.checkpoint import Progress
from edgeweave.train.failures.elastic import Adopted, ElasticRun, halted
from edgeweave.train.failures.holders import Holders
from edgeweave.train.history import History, Mark
from edgeweave.train.journal import Journal
from edgeweave.train.learning_rate import LearningRate
from edgeweave.train.report import EpochRecord, Evaluation
from edgeweave.train.run import RoundResult
from edgeweave.train.weights import StateSource, Weights

__all__ = ["Fit", "Store"]

_log = logging.getLogger(__name__)


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
        self._journal = None if store is None else Journal(store.directory)
        self._marks: dict[int, tuple[Mark, int]] = {}
        self._is_unnoted = False
        """Whether the last step that was to be noted could not be."""
        self._n_calls = 0
        """Of the learning rate's schedule, up to the last step that is done."""

    @property
    def journal(self) -> Journal | None:
        """Where the run leaves what a later process needs to go on with its devices."""
        return self._journal

    def mark(self) -> None:
        """Remember this step, in case it is where the run goes on after a loss."""
        self._marks[self.history.step] = self.history.mark(), self._n_calls
        for step in [step for step in self._marks if step < self._weights.step]:
            del self._marks[step]

    def rewind(self, step: int) -> None:
        """Return to where it stood after ``step`` steps: no further back than the weights here."""
        mark, n_calls = self._marks[step]
        self.history.rewind(step, mark)
        self.rate.rewind(n_calls)
        self._n_calls = n_calls
        self._marks = {each: found for each, found in self._marks.items() if each <= step}

    def train_epoch(
        self,
        run: ElasticRun,
        batches: Iterable[Batch],
        batch_size: int,
        *,
        before_step: Callable[[int, Batch], None],
        on_step: Callable[[RoundResult], None],
        wants_flush: Callable[[], bool],
    ) -> None:
        """Train on what is left of the epoch, with checkpoints on the way.

        Where steps overlap, all under way end before a checkpoint, at the epoch's end, and for what
        ``before_step`` asks of the run. Each step has the learning rate it would have anyway.
        """
        if run.is_streamed:
            self._stream_epoch(
                run,
                batches,
                batch_size,
                before_step=before_step,
                on_step=on_step,
                wants_flush=wants_flush,
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
            self._end_step(run, result, batch_size, len(self.rate.calls))
            on_step(result)

    def _stream_epoch(
        self,
        run: ElasticRun,
        batches: Iterable[Batch],
        batch_size: int,
        *,
        before_step: Callable[[int, Batch], None],
        on_step: Callable[[RoundResult], None],
        wants_flush: Callable[[], bool],
    ) -> None:
        n_calls: deque[int] = deque()

        def end_steps(results: Iterable[RoundResult]) -> None:
            for result in results:
                self._end_step(run, result, batch_size, n_calls.popleft())
                on_step(result)

        saved_at = step = self.history.step
        for batch in batches:
            if self._is_due(saved_at, step) or wants_flush():
                end_steps(run.stream.collect_all())
                run.stream.flush()
            if self._is_due(saved_at, step):
                self._save(run)
                saved_at = step
            before_step(step, batch)
            run.submit(step, batch, self.rate.hyperparameters())
            self.rate.advance("step")
            n_calls.append(len(self.rate.calls))
            step += 1
            end_steps(run.stream.collect_nowait())
        end_steps(run.stream.collect_all())
        run.stream.flush()

    def _end_step(
        self, run: ElasticRun, result: RoundResult, batch_size: int, n_calls: int
    ) -> None:
        self._n_calls = n_calls
        self.history.end_step(result, full=result.n_samples == batch_size)
        run.step_ends(self.history.step, result)
        self.mark()
        self._note(run)

    def end_epoch(self, run: StateSource, validation: Evaluation | None) -> EpochRecord:
        """Close the epoch, and write its checkpoint."""
        self.rate.advance("epoch", None if validation is None else validation.loss)
        self._n_calls = len(self.rate.calls)
        record = self.history.end_epoch(validation)
        self._save(run)
        return record

    def adopted(self, fleet: Fleet, trained: Collection[str]) -> Adopted | None:
        """What devices keep of the run that this one resumes, if it is newer than its checkpoint;
        then stands where that was noted.
        """
        journal = self._journal
        record = None if journal is None else journal.record()
        if journal is None or record is None:
            return None
        noted, here = journal.progress(), self._weights.step
        asked = Halt(record.run, fleet.transport.name)
        held, failed = halted(fleet, fleet.devices, asked)
        for device, error in failed.items():
            if isinstance(error, DeviceBusy):
                raise error
            _log.warning("%s does not say what it keeps of %s: %s", device, record.run, error)
        holders = Holders(held, here)
        step, kept = holders.newest_step(trained, of=noted), holders.newest_step(trained)
        if kept > step:
            _log.warning(
                "the devices keep all of %s after step %d, but where it stood then is not noted in "
                "%s (was its disk full?)",
                record.run,
                kept,
                journal.directory,
            )
        if step == here:
            _log.warning(
                "%s goes on from its checkpoint of step %d: no newer state of it is whole on %s",
                *(record.run, here, ", ".join(sorted(held)) or "any device"),
            )
            return None
        self._check_same(journal.directory, noted[step].settings)
        self._stand(noted[step])
        newest_term = max(record.term, *(each.term for each in held.values()))
        return Adopted(record.run, newest_term + 1, step, holders)

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
        self._stand(progress)
        self._weights.step = self.history.step
        self.mark()

    def _stand(self, progress: Progress) -> None:
        """At the point of a run that was written down."""
        self.rate.rewind(0)
        self.rate.replay(progress.lr_calls)
        self._n_calls = len(progress.lr_calls)
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

    def _save(self, run: StateSource) -> None:
        if self._store is None:
            return
        self._weights.fetch(run, self.history.step)
        checkpoints.save(
            self._store.directory,
            checkpoints.Checkpoint(self._progress(), self._weights.state, self._weights.optimizer),
        )

    def _progress(self) -> Progress:
        history = self.history
        return Progress(
            step=history.step,
            epoch=history.cursor.epoch,
            batch=history.cursor.batch,
            settings=self._settings,
            lr_calls=self.rate.calls[: self._n_calls],
            step_losses=history.step_losses,
            epochs=tuple(history.epochs),
            open_epoch=history.open_epoch(),
        )

    def _note(self, run: ElasticRun) -> None:
        """Write down where the run is whenever devices keep their states."""
        if self._journal is None or not run.has_snapshot(self.history.step):
            return
        step, was_unnoted = self.history.step, self._is_unnoted
        try:
            self._journal.note(self._progress())
        except CheckpointError as error:
            self._is_unnoted = True
            if not was_unnoted:
                _log.warning(
                    "from step %d on it is not noted where the run is, so that --resume would go "
                    "back to a checkpoint: %s",
                    step,
                    error,
                )
            return
        self._is_unnoted = False
        if was_unnoted:
            _log.warning("from step %d on it is noted again where the run is", step)
