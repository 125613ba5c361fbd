"""A tensor in datagrams that may be lost one by one: what each carries, and what is left of it.

Elements are dealt out like cards, so that a lost datagram costs a few neurons of every sample::

    elements     0 1 2 3 4 5 6 7 8 9         datagram 0   0 3 6 9
    datagrams    0 1 2 0 1 2 0 1 2 0         datagram 1   1 4 7       lost: 1 4 7 are zero
                                             datagram 2   2 5 8

Datagrams are the rows of a matrix; the last of some end with a zero that is no element.

Their number has no factor in common with the elements of a sample, so that not the same neurons are
lost of all samples. Rescaling what arrived by one over the share that arrives on the link in the
long run makes every element right on average, whatever the other elements do (an estimator of
Horvitz and Thompson): ``E[mask / share * x] = x``. Nothing is known of networks here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

__all__ = ["PAYLOAD_BYTES", "dealt", "kept", "n_datagrams", "put_together", "row_length"]

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


def dealt(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """What each datagram carries, as rows, in order.

    >>> dealt(torch.arange(1, 6), 2).tolist()
    [[1, 3, 5], [2, 4, 0]]
    """
    flat = tensor.reshape(-1)
    width = row_length(len(flat), count)
    missing = count * width - len(flat)
    if missing:
        flat = torch.cat((flat, flat.new_zeros(missing)))
    return flat.reshape(width, count).T.contiguous()


def row_length(n_elements: int, count: int) -> int:
    """How many elements of so many each of ``count`` datagrams carries, zeros at the end included.

    >>> row_length(5, 2)
    3
    """
    return -(-n_elements // count)


def put_together(
    shape: Sequence[int], dtype: torch.dtype, count: int, numbers: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """The tensor of what ``dealt`` gave, zero where one of ``count`` datagrams is lost: those that
    are here are ``rows``, and ``numbers`` says which they are.
    """
    n_elements = math.prod(shape)
    matrix = torch.zeros((count, row_length(n_elements, count)), dtype=dtype)
    matrix[numbers.long()] = rows
    return matrix.T.reshape(-1)[:n_elements].reshape(tuple(shape))


def kept(shape: Sequence[int], arrived: torch.Tensor) -> torch.Tensor:
    """Which elements arrived, given which datagrams did: a mask of that shape.

    >>> kept((2, 3), torch.tensor([True, False])).tolist()
    [[True, False, True], [False, True, False]]
    """
    places = torch.arange(math.prod(shape)) % len(arrived)
    return arrived[places].reshape(tuple(shape))
