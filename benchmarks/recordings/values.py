"""What others recorded: seconds of pieces of work on devices, and operators as rows of features."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeweave.predict.features import FAMILIES, FEATURES, Floats, alignment

__all__ = ["WORK", "Recorded", "convolution", "matmul", "merged", "moving", "operator"]

WORK = [1 + FEATURES.index(n) for n in ("macs", "input_bytes", "output_bytes", "weight_bytes")]
"""Columns of rows from which work is counted."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """``seconds[device, piece]``, NaN where a device did not run a piece.

    A piece is the rows of its operators. Devices of one family are one chip, or nearly: none of
    them teaches about another.
    """

    name: str
    pieces: tuple[Floats, ...]
    devices: tuple[str, ...]
    families: tuple[str, ...]
    seconds: Floats

    def __post_init__(self) -> None:
        shape = (len(self.devices), len(self.pieces))
        if self.seconds.shape != shape or len(self.families) != len(self.devices):
            raise ValueError(
                f"{self.name} has seconds for {len(self.devices)} devices of as many families and "
                f"{len(self.pieces)} pieces (got {self.seconds.shape} and "
                f"{len(self.families)} families). Give each device a row and each piece a column."
            )

    @classmethod
    def of(
        cls,
        name: str,
        rows: Mapping[str, Floats],
        seconds: Mapping[str, Mapping[str, float]],
        families: Mapping[str, str],
        *,
        least_devices: int,
        least_pieces: int,
    ) -> Recorded:
        """From seconds by device and piece. Left out are pieces that too few devices ran, then
        devices that ran too few of the rest.
        """
        ran = [set(found) & set(rows) for found in seconds.values()]
        pieces = [piece for piece in rows if sum(piece in each for each in ran) >= least_devices]
        devices = [d for d, found in seconds.items() if len(found.keys() & pieces) >= least_pieces]
        table = [[seconds[d].get(piece, math.nan) for piece in pieces] for d in devices]
        return cls(
            name,
            tuple(rows[piece] for piece in pieces),
            tuple(devices),
            tuple(families[device] for device in devices),
            np.array(table).reshape(len(devices), len(pieces)),
        )


def operator(family: str, **counts: float) -> list[float]:
    """A row of ``edgeweave.predict.unit_features``; features that are not given are 0.

    Only inference was recorded: no gradient flows, and what ran before is not known.
    """
    traffic = sum(counts.get(name, 0) for name in ("input_bytes", "output_bytes", "weight_bytes"))
    for side in ("in", "out"):
        if f"channels_{side}" in counts:
            counts[f"aligned_{side}"] = alignment(int(counts[f"channels_{side}"]))
    counts["macs_per_byte"] = counts.get("macs", 0) / max(traffic, 1)
    unknown = counts.keys() - set(FEATURES)
    if unknown:
        raise ValueError(f"no such features: {', '.join(sorted(unknown))}")
    logs = [math.log1p(counts.get(name, 0)) for name in FEATURES]
    return [float(FAMILIES.index(family)), *logs]


def convolution(
    images: Sequence[int],
    outputs: Sequence[int],
    *,
    kernel: int,
    groups: int = 1,
    itemsize: float = 4,
) -> list[float]:
    """A two-dimensional one, from ``(batch, channels, height, width)`` to the same of outputs."""
    batch, channels_in, *area = images
    _, channels_out, *positions = outputs
    weights = channels_out * channels_in // groups * kernel
    return operator(
        "depthwise" if groups == channels_in > 1 else "conv",
        macs=math.prod(outputs) * kernel * channels_in / groups,
        input_bytes=itemsize * math.prod(images),
        output_bytes=itemsize * math.prod(outputs),
        weight_bytes=itemsize * weights,
        kernel=kernel,
        stride=_stride(area, positions),
        groups=groups,
        channels_in=channels_in,
        channels_out=channels_out,
        positions=math.prod(positions),
        batch=batch,
        steps=1,
    )


def matmul(
    rows: int, inner: int, columns: int, *, layout: float = 1, itemsize: float = 4
) -> list[float]:
    """``[rows, inner] @ [inner, columns]``, the second the weights. ``layout`` stands as stride:
    1 where both are read along their rows, other numbers for other orders.
    """
    return operator(
        "matmul",
        macs=rows * inner * columns,
        input_bytes=itemsize * rows * inner,
        output_bytes=itemsize * rows * columns,
        weight_bytes=itemsize * inner * columns,
        kernel=1,
        stride=layout,
        groups=1,
        channels_in=inner,
        channels_out=columns,
        positions=1,
        batch=rows,
        steps=1,
    )


def moving(
    family: str,
    inputs: Sequence[Sequence[int]],
    output: Sequence[int],
    *,
    kernel: int = 1,
    itemsize: float = 4,
) -> list[float]:
    """An operator that multiplies no matrices: a pool, an addition, an activation."""
    batch, channels, *positions = output
    area = inputs[0][2:] if inputs else ()
    return operator(
        family,
        input_bytes=itemsize * sum(map(math.prod, inputs)),
        output_bytes=itemsize * math.prod(output),
        kernel=kernel,
        stride=_stride(area, positions) if family == "pool" else 1,
        groups=1,
        channels_in=inputs[0][1] if inputs else 1,
        channels_out=channels,
        positions=math.prod(positions),
        batch=batch,
        steps=1,
    )


def _stride(area: Sequence[int], positions: Sequence[int]) -> int:
    """Of the dimensions together, as the sizes before and behind imply it."""
    return math.prod(
        max(round(before / after), 1) for before, after in zip(area, positions, strict=False)
    )


def merged(rows: Iterable[Sequence[float]]) -> Floats:
    """Equal operators of a piece as one row that has the work of all."""
    unique, counts = np.unique(np.array(list(rows)), axis=0, return_counts=True)
    unique[:, WORK] = np.log1p(np.expm1(unique[:, WORK]) * counts[:, None])
    return np.asarray(unique, dtype=np.float64)
