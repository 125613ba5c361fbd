"""A tensor in datagrams that may be lost one by one: what each carries, and what is left of it.

Elements are dealt out like cards, so that a lost datagram costs a few neurons of every sample::

    elements     0 1 2 3 4 5 6 7 8 9         datagram 0   0 3 6 9
    datagrams    0 1 2 0 1 2 0 1 2 0         datagram 1   1 4 7       lost: 1 4 7 are zero
                                             datagram 2   2 5 8

Their number has no factor in common with the elements of a sample, so that not the same neurons are
lost of all samples. Rescaling what arrived by one over the share that arrives on the link in the
long run makes every element right on average, whatever the other elements do (an estimator of
Horvitz and Thompson): ``E[mask / share * x] = x``. Nothing is known of networks here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

__all__ = ["PAYLOAD_BYTES", "dealt", "kept", "n_datagrams", "put_together"]

PAYLOAD_BYTES = 1024
"""What one datagram carries of a tensor: with its header it stays below 1200 bytes."""


def n_datagrams(shape: Sequence[int], item_bytes: float) -> int:
    """How many datagrams a tensor takes, of so many bytes an element, coded ones of less than one.

    >>> n_datagrams((64, 32), 4)  # 8 would take the same neurons of all samples
    9
    """
    n_elements = math.prod(shape)
    count = max(1, math.ceil(n_elements * item_bytes / PAYLOAD_BYTES))
    per_sample = n_elements // shape[0] if shape and shape[0] else 1
    while count > 1 and math.gcd(count, per_sample) > 1:
        count += 1
    return count


def dealt(tensor: torch.Tensor, count: int) -> list[torch.Tensor]:
    """What each datagram carries, as views of a contiguous tensor."""
    flat = tensor.reshape(-1)
    return [flat[first::count] for first in range(count)]


def put_together(
    shape: Sequence[int], dtype: torch.dtype, parts: Sequence[torch.Tensor | None]
) -> torch.Tensor:
    """The tensor of what ``dealt`` gave, zero where a datagram (None) is lost."""
    flat = torch.zeros(math.prod(shape), dtype=dtype)
    for first, part in enumerate(parts):
        if part is not None:
            flat[first :: len(parts)] = part
    return flat.reshape(tuple(shape))


def kept(shape: Sequence[int], arrived: torch.Tensor) -> torch.Tensor:
    """Which elements arrived, given which datagrams did: a mask of that shape.

    >>> kept((2, 3), torch.tensor([True, False])).tolist()
    [[True, False, True], [False, True, False]]
    """
    places = torch.arange(math.prod(shape)) % len(arrived)
    return arrived[places].reshape(tuple(shape))
