"""Batches of a map-style data set, in an order that can be resumed, read ahead of their use.

The order of an epoch is a permutation drawn from (seed, epoch), so that a cursor of two numbers
says which samples come next.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset, default_collate

from edgeweave.core.errors import ConfigError
from edgeweave.program import flatten_inputs

__all__ = [
    "Batch",
    "Cursor",
    "epoch_batches",
    "example",
    "n_batches",
    "ordered_batches",
    "prefetched",
]

_log = logging.getLogger(__name__)

_AHEAD = 2
_CHECK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Cursor:
    """The next batch of a run: ``batch`` batches of ``epoch`` are done."""

    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Named tensors of one batch (``input:0``, ..., ``target:0``) and its number of samples."""

    tensors: Mapping[str, torch.Tensor]
    n_samples: int

    def microbatches(self, size: int) -> list[Batch]:
        """Rows in pieces of ``size``; the last may be smaller."""
        starts = range(0, self.n_samples, size)
        return [
            Batch(
                {name: tensor[start : start + size] for name, tensor in self.tensors.items()},
                min(size, self.n_samples - start),
            )
            for start in starts
        ]


def n_batches(dataset: Dataset[Any], batch_size: int) -> int:
    """How many batches an epoch has, the last smaller one included."""
    return -(-_length(dataset) // batch_size)


def epoch_batches(
    dataset: Dataset[Any], batch_size: int, *, seed: int, cursor: Cursor
) -> Iterator[Batch]:
    """The batches of one epoch in their random order, from ``cursor.batch`` on."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + cursor.epoch) % 2**63)
    order = torch.randperm(_length(dataset), generator=generator)
    for start in range(cursor.batch * batch_size, len(order), batch_size):
        yield _read(dataset, order[start : start + batch_size])


def ordered_batches(dataset: Dataset[Any], batch_size: int) -> Iterator[Batch]:
    """All samples once, in the data set's own order."""
    order = torch.arange(_length(dataset))
    for start in range(0, len(order), batch_size):
        yield _read(dataset, order[start : start + batch_size])


@contextmanager
def prefetched(
    batches: Iterator[Batch], *, check: Callable[[], None], stop_seconds: float
) -> Iterator[Iterator[Batch]]:
    """Read batches on a thread, at most two ahead. An error appears where the batch would have.

    ``check`` is called now and then while a batch is waited for, and ends the waiting by raising.
    A data set that does not return is given up ``stop_seconds`` after the end, with a warning.
    """
    ahead: queue.Queue[Batch | BaseException | None] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def read() -> None:
        try:
            for batch in batches:
                ahead.put(batch)
                if stopped.is_set():
                    return
            ahead.put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that asked for the batch
            ahead.put(error)

    def taken() -> Iterator[Batch]:
        while (item := _next(ahead, check)) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    # A daemon, because it runs the user's code, which nobody can make return.
    reader = threading.Thread(target=read, name="edgeweave-batches", daemon=True)
    reader.start()
    try:
        yield taken()
    finally:
        stopped.set()
        while not ahead.empty():
            ahead.get_nowait()  # makes room for the one batch the reader may still put
        reader.join(stop_seconds)
        if reader.is_alive():
            _log.warning("the data set has not returned %.0f s after the end", stop_seconds)


def _next(
    ahead: queue.Queue[Batch | BaseException | None], check: Callable[[], None]
) -> Batch | BaseException | None:
    while True:
        try:
            return ahead.get(timeout=_CHECK_SECONDS)
        except queue.Empty:
            check()


def example(dataset: Dataset[Any], n_samples: int) -> tuple[Any, Any]:
    """The first samples as ``(inputs, target)``, to capture a model with."""
    if _length(dataset) < 1:
        raise ConfigError("a data set has at least one sample (this one has none).")
    return _collated(dataset, torch.arange(min(n_samples, _length(dataset))))


def _read(dataset: Dataset[Any], indices: torch.Tensor) -> Batch:
    inputs, target = _collated(dataset, indices)
    return Batch(flatten_inputs(inputs, target), len(indices))


def _collated(dataset: Dataset[Any], indices: torch.Tensor) -> tuple[Any, Any]:
    take = getattr(dataset, "batch", None)
    if take is not None:
        inputs, target = take(indices)
        return inputs, target
    samples = [dataset[int(index)] for index in indices]
    if not all(isinstance(sample, tuple | list) and len(sample) == 2 for sample in samples):
        raise ConfigError(
            "a sample of the data set is a pair (inputs, target); inputs may be a tensor, a "
            "tuple or a dict. Wrap the data set to return pairs."
        )
    try:
        inputs, target = default_collate(samples)
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        raise _not_alike(str(error)) from error
    for leaf in tree_leaves((inputs, target)):
        if not torch.is_tensor(leaf):
            raise _not_alike(f"they hold a {type(leaf).__name__}")
    return inputs, target


def _not_alike(why: str) -> ConfigError:
    return ConfigError(
        f"samples of the data set are numbers and tensors, each of one shape ({why}). "
        "Transform them in its __getitem__."
    )


def _length(dataset: Dataset[Any]) -> int:
    if not hasattr(dataset, "__len__"):
        raise ConfigError(
            "the data set must be map-style, with __len__ and __getitem__ "
            f"(got {type(dataset).__name__}). Collect an iterable data set into a list first."
        )
    return len(cast(Sized, dataset))
