"""How fast codecs are on this device, by a megabyte of random values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import torch

from edgeweave.codec import Codec, decode, encode
from edgeweave.device.probes.messages import CodingSeconds

__all__ = ["coding_seconds"]

_N_VALUES = 1 << 18
_REPETITIONS = 3


def coding_seconds(
    codec: Codec, widths: Sequence[int], stopwatch: Callable[[], float]
) -> CodingSeconds:
    """What the slowest of the widths takes: encoded at random, as gradients are, and decoded."""
    values = torch.randn(_N_VALUES, generator=torch.Generator().manual_seed(0))
    taken = [_seconds(values, replace(codec, bits=bits), stopwatch) for bits in widths]
    encoding, decoding = (max(each) / values.nbytes for each in zip(*taken, strict=True))
    return CodingSeconds(encoding, decoding)


def _seconds(
    values: torch.Tensor, codec: Codec, stopwatch: Callable[[], float]
) -> tuple[float, float]:
    """Of encoding and of decoding, after one of each to warm up."""
    taken = []
    into = torch.empty_like(values)
    for seed in range(_REPETITIONS + 1):
        started = stopwatch()
        data = encode(values, codec, seed=seed)
        encoded = stopwatch()
        decode(data, into=into)
        taken.append((encoded - started, stopwatch() - encoded))
    return median(each[0] for each in taken[1:]), median(each[1] for each in taken[1:])
