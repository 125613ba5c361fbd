"""Samples kept as two arrays. Knows how a batch is gathered, not where the arrays come from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from edgeweave.core.errors import ConfigError

__all__ = ["ArrayDataset", "Normalisation"]


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Mean and standard deviation of each channel, of inputs that lie in 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(std > 0 for std in self.std):
            raise ConfigError(
                "a normalisation has one mean and one positive std for each channel "
                f"(got mean={self.mean}, std={self.std}). Correct its numbers."
            )


class ArrayDataset(Dataset[tuple[Tensor, Tensor]]):
    """A map-style data set over two tensors, whose first dimension counts the samples.

    The arrays stay in the dtype they came in and are converted when they are read: uint8 is taken
    for pixels and becomes float32 in 0..1, other floats become float32, other integers int64.
    Targets are never scaled. ``batch`` gathers many samples at once, and is what a trainer should
    use where a data set has it; it is not torch's ``__getitems__``, which returns a list.

    >>> data = ArrayDataset(torch.tensor([[0], [255]], dtype=torch.uint8), torch.tensor([3, 4]))
    >>> data[1]
    (tensor([1.]), tensor(4))
    >>> data.batch(torch.tensor([1, 0]))[1]
    tensor([4, 3])
    """

    def __init__(
        self, inputs: Tensor, targets: Tensor, *, normalisation: Normalisation | None = None
    ) -> None:
        if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
            raise ConfigError(
                "every input has one target (got arrays of the shapes "
                f"{tuple(inputs.shape)} and {tuple(targets.shape)}). Make their first sizes equal."
            )
        self._inputs = inputs
        self._targets = targets
        self._shift_and_scale = None
        if normalisation is not None:
            self._shift_and_scale = _per_channel(normalisation, inputs)

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"the data set has {len(self)} samples (asked for number {index})")
        inputs, targets = self.batch(torch.tensor([index % len(self)]))
        return inputs[0], targets[0]

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The samples at ``indices`` (1-d, integer, from 0), stacked: inputs and targets.

        One gather for each array; the results are the caller's to change. ``IndexError`` as for
        any sequence if an index is out of range.
        """
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise IndexError(
                f"the data set has {len(self)} samples (asked for numbers "
                f"{int(indices.min())} to {int(indices.max())})"
            )
        inputs = _as_inputs(self._inputs.index_select(0, indices))
        if self._shift_and_scale is not None:
            shift, scale = self._shift_and_scale
            inputs.sub_(shift).div_(scale)
        return inputs, _widened(self._targets.index_select(0, indices))


def _as_inputs(gathered: Tensor) -> Tensor:
    if gathered.dtype == torch.uint8:
        return gathered.to(torch.float32).div_(255)
    return _widened(gathered)


def _widened(gathered: Tensor) -> Tensor:
    is_number_of_something = not (gathered.is_floating_point() or gathered.dtype == torch.bool)
    return gathered.to(torch.int64 if is_number_of_something else torch.float32)


def _per_channel(normalisation: Normalisation, inputs: Tensor) -> tuple[Tensor, Tensor]:
    n_channels = inputs.shape[1] if inputs.ndim > 1 else 0
    if n_channels != len(normalisation.mean):
        raise ConfigError(
            f"a normalisation fits the channels of the inputs ({len(normalisation.mean)} numbers, "
            f"inputs of the shape {tuple(inputs.shape[1:])}). Give one mean and std per channel."
        )
    shape = (1, n_channels) + (1,) * (inputs.ndim - 2)
    mean, std = torch.tensor(normalisation.mean), torch.tensor(normalisation.std)
    return mean.reshape(shape), std.reshape(shape)
