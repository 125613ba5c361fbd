"""What a run has done so far, and where it stands: the part of a report that resuming restores."""

from __future__ import annotations

from dataclasses import dataclass

from edgeweave.data.batches import Cursor
from edgeweave.plan import Plan
from edgeweave.train.report import DeviceReport, EpochRecord, Evaluation, OpenEpoch, Report
from edgeweave.train.run import RoundResult

__all__ = ["History", "Mark"]


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a history stood, to return there."""

    cursor: Cursor
    n_samples: int
    n_full_steps: int
    n_epochs: int
    open_epoch: OpenEpoch


class History:
    """Grows with every step and epoch. Times are of this process only; losses of the whole run."""

    def __init__(self) -> None:
        self.cursor = Cursor()
        self.step = 0
        self.step_losses: list[float] = []
        self.epochs: list[EpochRecord] = []
        self.step_seconds: list[float] = []
        self.seconds = 0.0
        self.n_samples = 0
        self._open = OpenEpoch()

    def end_step(self, result: RoundResult, *, full: bool) -> None:
        """A step is done; ``full`` if its batch was of full size, which makes its time telling."""
        self.step += 1
        self.cursor = Cursor(self.cursor.epoch, self.cursor.batch + 1)
        self.step_losses.append(result.loss)
        self.seconds += result.seconds
        self.n_samples += result.n_samples
        if full:
            self.step_seconds.append(result.seconds)
        self._open = self._open.plus(result.n_samples, result.loss, result.metrics, result.seconds)

    def end_epoch(self, validation: Evaluation | None) -> EpochRecord:
        """An epoch is done."""
        record = self._open.closed(self.cursor.epoch, self.step, validation)
        self.epochs.append(record)
        self.cursor = Cursor(self.cursor.epoch + 1, 0)
        self._open = OpenEpoch()
        return record

    def report(self, plan: Plan, devices: tuple[DeviceReport, ...]) -> Report:
        """All of it, with the plan it was done by and what each device did."""
        return Report(
            plan=plan,
            epochs=tuple(self.epochs),
            step_losses=tuple(self.step_losses),
            n_samples=self.n_samples,
            seconds=self.seconds,
            step_seconds=tuple(self.step_seconds),
            devices=devices,
        )

    def mark(self) -> Mark:
        """Where it stands."""
        return Mark(
            self.cursor, self.n_samples, len(self.step_seconds), len(self.epochs), self._open
        )

    def rewind(self, step: int, mark: Mark) -> None:
        """Return to where it stood after ``step`` steps. The time that was spent stays spent."""
        self.step = step
        self.cursor = mark.cursor
        self.n_samples = mark.n_samples
        del self.step_losses[step:]
        del self.step_seconds[mark.n_full_steps :]
        del self.epochs[mark.n_epochs :]
        self._open = mark.open_epoch

    def open_epoch(self) -> OpenEpoch:
        """The sums of the epoch in progress."""
        return self._open

    def restore(
        self,
        cursor: Cursor,
        step_losses: list[float],
        epochs: tuple[EpochRecord, ...],
        open_epoch: OpenEpoch,
    ) -> None:
        """Stand where a checkpoint was written."""
        self.cursor = cursor
        self.step = len(step_losses)
        self.step_losses = list(step_losses)
        self.epochs = list(epochs)
        self._open = open_epoch
