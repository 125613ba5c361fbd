"""A progress bar for people; silent where nobody watches."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from edgeweave.train.report import EpochRecord
from edgeweave.train.run import RoundResult

__all__ = ["TrainingProgress"]


class TrainingProgress:
    """One bar over all steps, with the running loss, and one line per epoch."""

    def __init__(
        self, n_steps: int, *, done: int, shown: bool, console: Console | None = None
    ) -> None:
        self._console = console or Console(stderr=True)
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not shown,
        )
        self._shown = shown
        self._task = self._bar.add_task("train", total=n_steps, completed=done, status="")

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.__exit__(kind, error, traceback)

    def step(self, result: RoundResult) -> None:
        """A step is done."""
        status = f"loss {result.loss:.4f}  {result.n_samples / result.seconds:.0f} samples/s"
        self._bar.update(self._task, advance=1, status=status)

    def rewind(self, step: int) -> None:
        """Steps after ``step`` are done again."""
        self._bar.update(self._task, completed=step)

    def epoch(self, record: EpochRecord) -> None:
        """An epoch is done."""
        if not self._shown:
            return
        parts = [f"epoch {record.epoch + 1}", f"loss {record.loss:.4f}"]
        parts += [f"{name} {value:.4f}" for name, value in record.metrics.items()]
        if record.validation is not None:
            parts.append(f"validation loss {record.validation.loss:.4f}")
            metrics = record.validation.metrics.items()
            parts += [f"validation {name} {value:.4f}" for name, value in metrics]
        parts.append(f"{record.samples_per_second:.0f} samples/s")
        self._console.print("  ".join(parts), highlight=False, soft_wrap=True)
