"""The history of a run: what a step adds, what an epoch closes, what resuming restores."""

from __future__ import annotations

import pytest

from edgeweave.data.batches import Cursor
from edgeweave.train.history import History
from edgeweave.train.report import EpochRecord, Evaluation, OpenEpoch
from edgeweave.train.run import RoundResult


def step(loss: float, n_samples: int, seconds: float = 0.5) -> RoundResult:
    return RoundResult(loss, {"accuracy": loss / 10}, n_samples, seconds)


def two_epochs() -> History:
    history = History()
    history.end_step(step(4.0, 8), full=True)
    history.end_step(step(1.0, 4), full=False)
    history.end_epoch(Evaluation(0.5, {"accuracy": 0.9}, 20))
    history.end_step(step(2.0, 8, 0.25), full=True)
    return history


def test_an_epoch_is_the_mean_over_its_samples() -> None:
    history = two_epochs()
    assert history.epochs == [
        EpochRecord(
            epoch=0,
            step=2,
            loss=3.0,
            metrics={"accuracy": pytest.approx(0.3)},
            samples_per_second=12.0,
            validation=Evaluation(0.5, {"accuracy": 0.9}, 20),
        )
    ]


def test_the_cursor_counts_batches_and_begins_anew_with_each_epoch() -> None:
    history = two_epochs()
    assert history.cursor == Cursor(1, 1)
    assert history.step == 3
    assert history.step_losses == [4.0, 1.0, 2.0]


def test_only_full_steps_tell_how_long_a_step_takes() -> None:
    history = two_epochs()
    assert history.step_seconds == [0.5, 0.25]
    assert history.seconds == 1.25
    assert history.n_samples == 20


def test_a_restored_history_goes_on_as_if_nothing_had_happened() -> None:
    before, after = two_epochs(), History()
    after.restore(before.cursor, before.step_losses, tuple(before.epochs), before.open_epoch())
    for history in (before, after):
        history.end_step(step(8.0, 8), full=True)
        history.end_epoch(None)
    assert after.epochs == before.epochs
    assert after.step_losses == before.step_losses
    assert (after.cursor, after.step) == (Cursor(2, 0), 4)


def test_times_are_of_this_process_alone() -> None:
    history = History()
    history.restore(Cursor(1, 0), [1.0, 2.0], (), OpenEpoch())
    assert (history.seconds, history.n_samples, history.step_seconds) == (0.0, 0, [])


def test_restoring_copies_what_it_is_given() -> None:
    losses = [1.0]
    history = History()
    history.restore(Cursor(0, 1), losses, (), OpenEpoch())
    history.end_step(step(2.0, 1), full=True)
    assert losses == [1.0]


def test_an_epoch_without_a_step_closes_without_dividing_by_zero() -> None:
    record = History().end_epoch(None)
    assert (record.loss, record.samples_per_second, record.metrics) == (0.0, 0.0, {})


def numbers_of(history: History) -> tuple[object, ...]:
    """All but the time that was spent."""
    return (
        history.step,
        history.cursor,
        history.step_losses,
        history.step_seconds,
        history.n_samples,
        history.epochs,
        history.open_epoch(),
    )


@pytest.mark.parametrize("back_to", range(8))
@pytest.mark.parametrize("done", range(8))
def test_a_history_that_went_back_is_the_one_it_was(back_to: int, done: int) -> None:
    """Steps and ends of epochs in turn; what was measured since stays spent."""

    def act(history: History, number: int) -> None:
        if number % 3 == 2:
            history.end_epoch(None)
        else:
            history.end_step(step(float(number), 4 + number), full=number % 2 == 0)

    history, seconds = History(), 0.0
    marks = []
    for number in range(done + 1):
        marks.append((history.step, history.mark()))
        act(history, number)
    seconds = history.seconds
    if back_to > done:
        return
    history.rewind(*marks[back_to])
    expected = History()
    for number in range(back_to):
        act(expected, number)
    assert numbers_of(history) == numbers_of(expected)
    assert history.seconds == seconds
    for number in range(back_to, 9):
        act(history, number)
        act(expected, number)
    assert history.step_losses == expected.step_losses
    assert [(e.epoch, e.step, e.loss) for e in history.epochs] == [
        (e.epoch, e.step, e.loss) for e in expected.epochs
    ]
