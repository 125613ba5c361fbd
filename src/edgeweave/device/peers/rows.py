"""The data of one device: samples by number, as the named tensors a program takes.

They come from files on the device, of which each takes its share (``SourceData``), or were sent
once (``SentData``). They never leave it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec
import safetensors
import safetensors.torch
import torch

from edgeweave.core.errors import ConfigError, WireError
from edgeweave.data import DataPair, Split, deal, load_source
from edgeweave.program import flatten_inputs

__all__ = ["Data", "Rows", "SentData", "SourceData", "load_rows"]

_INPUT, _TARGET = "input:0", "target:0"


class SourceData(msgspec.Struct, frozen=True, tag="source"):
    """Files on the device: share ``part`` of ``n_parts`` of a data source's training samples.

    With ``n_parts`` of 1 the device has files of its own, and takes them whole.
    """

    source: str
    path: str | None = None
    normalise: bool = False
    split: Split = Split()
    part: int = 0
    n_parts: int = 1


class SentData(msgspec.Struct, frozen=True, tag="sent"):
    """Samples that come with the request: named tensors as safetensors."""

    tensors: bytes


Data = SourceData | SentData


class Rows(Protocol):
    """Samples by number."""

    class_names: tuple[str, ...]
    """By number, where the files name them."""

    def __len__(self) -> int: ...

    def take(self, indices: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """The named tensors of a batch."""


class _ArrayRows:
    """A share of an array data set."""

    def __init__(self, data: DataPair, indices: torch.Tensor) -> None:
        self.class_names = data.class_names
        self._dataset = data.train
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def take(self, indices: torch.Tensor) -> Mapping[str, torch.Tensor]:
        inputs, targets = self._dataset.batch(self._indices[indices])
        return flatten_inputs(inputs, targets)


class TensorRows:
    """Named tensors, whose first dimension counts the samples."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = dict(tensors)
        sizes = {len(tensor) if tensor.ndim else 0 for tensor in tensors.values()}
        if len(sizes) != 1 or min(sizes) < 1:
            raise ConfigError(
                "data are tensors of one length, of a sample or more (got lengths "
                f"{sorted(sizes)}). Correct the shard."
            )
        self._length = sizes.pop()
        self.class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self._length

    def take(self, indices: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return {name: tensor[indices] for name, tensor in self._tensors.items()}


def load_rows(data: Data) -> Rows:
    """Read what the device is to train on; ``ConfigError`` if it is not there."""
    if isinstance(data, SentData):
        try:
            return TensorRows(safetensors.torch.load(data.tensors))
        except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise WireError(f"the samples are not safetensors ({error}).") from error
    path = None if data.path is None else Path(data.path).expanduser()
    pair = load_source(data.source, path=path, normalise=data.normalise)
    dataset = pair.train
    whole = torch.arange(len(dataset))
    if data.n_parts == 1:
        return _ArrayRows(pair, whole)
    _, targets = dataset.batch(whole)
    labels = targets if targets.ndim == 1 and not targets.is_floating_point() else whole * 0
    parts = deal(labels.numpy(), data.n_parts, data.split)
    return _ArrayRows(pair, torch.from_numpy(parts[data.part]))
