"""Batches: an order that two numbers tell, read ahead of its use, on a thread that always ends."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset, TensorDataset

from edgeweave.core.errors import ConfigError
from edgeweave.data.batches import (
    Batch,
    Cursor,
    epoch_batches,
    example,
    n_batches,
    ordered_batches,
    prefetched,
)
from tests.fleet.worlds import DEADLINE_SECONDS

DATA = TensorDataset(torch.arange(10.0).reshape(10, 1), torch.arange(10))


def targets(batches: Any) -> list[list[int]]:
    return [batch.tensors["target:0"].tolist() for batch in batches]


def nothing() -> None:
    """A run that goes well."""


def ahead_of(
    batches: Iterator[Batch], check: Callable[[], None] = nothing, stop_seconds: float = 5.0
) -> AbstractContextManager[Iterator[Batch]]:
    return prefetched(batches, check=check, stop_seconds=stop_seconds)


def epoch(seed: int, number: int, *, batch_size: int = 4, done: int = 0) -> list[list[int]]:
    cursor = Cursor(number, done)
    return targets(epoch_batches(DATA, batch_size, seed=seed, cursor=cursor))


def test_an_epoch_visits_every_sample_once_and_ends_with_what_is_left() -> None:
    found = epoch(1, 0)
    assert [len(batch) for batch in found] == [4, 4, 2]
    assert sorted(itertools.chain(*found)) == list(range(10))


def test_inputs_stay_with_their_targets() -> None:
    for batch in epoch_batches(DATA, 4, seed=1, cursor=Cursor()):
        assert batch.tensors["input:0"].flatten().tolist() == batch.tensors["target:0"].tolist()
        assert batch.n_samples == len(batch.tensors["target:0"])


def test_the_order_is_the_seeds_and_the_epochs_alone() -> None:
    assert epoch(1, 0) == epoch(1, 0)
    assert epoch(1, 0) != epoch(1, 1)
    assert epoch(1, 0) != epoch(2, 0)


def test_reading_does_not_touch_the_global_random_numbers() -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    epoch(1, 0)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_a_cursor_continues_where_it_points(done: int) -> None:
    assert epoch(1, 3, done=done) == epoch(1, 3)[done:]


def test_evaluation_reads_in_the_data_sets_own_order() -> None:
    assert targets(ordered_batches(DATA, 4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize(("size", "expected"), [(1, 10), (3, 4), (5, 2), (10, 1), (99, 1)])
def test_the_last_smaller_batch_counts(size: int, expected: int) -> None:
    assert n_batches(DATA, size) == expected


def test_microbatches_are_rows_in_their_order() -> None:
    batch = Batch({"input:0": torch.arange(7)}, 7)
    parts = batch.microbatches(3)
    assert [part.n_samples for part in parts] == [3, 3, 1]
    assert [part.tensors["input:0"].tolist() for part in parts] == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_list_of_pairs_is_a_data_set() -> None:
    pairs = [(torch.tensor([float(i)]), i) for i in range(3)]
    assert targets(ordered_batches(pairs, 2)) == [[0, 1], [2]]  # type: ignore[arg-type]


def test_inputs_may_be_dictionaries_and_tuples() -> None:
    samples = [({"a": torch.ones(2), "b": torch.zeros(1)}, torch.tensor(i)) for i in range(3)]
    inputs, target = example(samples, 2)  # type: ignore[arg-type]
    assert {name: tuple(t.shape) for name, t in inputs.items()} == {"a": (2, 2), "b": (2, 1)}
    assert target.tolist() == [0, 1]


def test_a_data_set_that_reads_batches_at_once_is_asked_for_them() -> None:
    class AtOnce:
        def __init__(self) -> None:
            self.asked: list[list[int]] = []

        def __len__(self) -> int:
            return 5

        def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            self.asked.append(indices.tolist())
            return indices.float(), indices

    data = AtOnce()
    assert targets(ordered_batches(data, 3)) == [[0, 1, 2], [3, 4]]  # type: ignore[arg-type]
    assert data.asked == [[0, 1, 2], [3, 4]]


def test_samples_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        example([torch.ones(2), torch.ones(2)], 2)  # type: ignore[arg-type]
    assert str(refused.value) == (
        "a sample of the data set is a pair (inputs, target); inputs may be a tensor, a tuple or "
        "a dict. Wrap the data set to return pairs."
    )


def test_a_data_set_without_a_length_is_refused() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(ConfigError) as refused:
        n_batches(Stream(), 2)
    assert str(refused.value) == (
        "the data set must be map-style, with __len__ and __getitem__ (got Stream). "
        "Collect an iterable data set into a list first."
    )


@pytest.mark.parametrize("bad", ["text", None, object()])
def test_samples_that_cannot_be_put_together_are_refused(bad: object) -> None:
    samples = [(torch.ones(1), bad) for _ in range(2)]
    with pytest.raises(ConfigError, match=r"^samples of the data set"):
        list(ordered_batches(samples, 2))  # type: ignore[arg-type]


def test_samples_of_different_shapes_are_refused() -> None:
    samples = [(torch.ones(n + 1), torch.tensor(0)) for n in range(2)]
    with pytest.raises(ConfigError, match=r"^samples of the data set"):
        list(ordered_batches(samples, 2))  # type: ignore[arg-type]


def test_reading_ahead_keeps_the_order() -> None:
    with ahead_of(ordered_batches(DATA, 2)) as ahead:
        assert targets(ahead) == targets(ordered_batches(DATA, 2))


def test_only_so_much_is_read_ahead() -> None:
    read: list[int] = []
    enough = threading.Event()

    def batches() -> Any:
        for number in itertools.count():
            read.append(number)
            if number == 3:
                enough.set()
            yield Batch({}, number)

    with ahead_of(batches()) as ahead:
        assert next(ahead).n_samples == 0
        assert enough.wait(DEADLINE_SECONDS)
        assert len(read) == 4  # one taken, two waiting, one that finds no room
    assert threading.active_count() == 1 or "edgeweave-batches" not in {
        thread.name for thread in threading.enumerate()
    }


def test_an_error_of_the_data_set_appears_where_its_batch_would_have() -> None:
    def batches() -> Any:
        yield Batch({}, 1)
        raise OSError("the disk is gone")

    with ahead_of(batches()) as ahead:
        assert next(ahead).n_samples == 1
        with pytest.raises(OSError, match="the disk is gone"):
            next(ahead)


def test_leaving_early_ends_the_reader() -> None:
    def fail_after(ahead: Iterator[Batch]) -> None:
        next(ahead)
        raise KeyError("the run failed")

    with pytest.raises(KeyError), ahead_of(ordered_batches(DATA, 1)) as ahead:
        fail_after(ahead)
    assert "edgeweave-batches" not in {thread.name for thread in threading.enumerate()}


def test_a_run_that_failed_ends_the_wait_for_a_data_set_that_does_not_return() -> None:
    released = threading.Event()

    def batches() -> Iterator[Batch]:
        assert released.wait(DEADLINE_SECONDS)
        yield Batch({}, 1)

    def failed() -> None:
        raise KeyError("the run failed")

    with ahead_of(batches(), failed) as ahead:
        with pytest.raises(KeyError, match="the run failed"):
            next(ahead)
        released.set()


def test_a_data_set_that_never_returns_is_given_up_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    released = threading.Event()

    def batches() -> Iterator[Batch]:
        assert released.wait(DEADLINE_SECONDS)
        yield Batch({}, 1)

    with caplog.at_level(logging.WARNING), ahead_of(batches(), stop_seconds=0.01):
        pass
    assert caplog.messages == ["the data set has not returned 0 s after the end"]
    released.set()
