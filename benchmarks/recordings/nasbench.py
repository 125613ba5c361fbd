"""HELP: networks of NAS-Bench-201 on server cards, processors, phones and boards.

A network is a cell of six edges, repeated five times at each of three sizes (16 channels at 32 x
32, 32 at 16 x 16, 64 at 8 x 8), with a residual block between sizes and a stem and a head (Dong and
Yang, ICLR 2020). An edge is a convolution with its activation and normalisation, a pool, a sum, or
nothing. Left out: look-up tables and models of hardware (eyeriss, fpga, and raspi4 and pixel3,
which are those of HW-NAS-Bench), and FBNet and OFA, whose input sizes and widths are not stated.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.data import DATA
from benchmarks.recordings.values import Recorded, convolution, matmul, merged, moving
from edgeweave.predict.features import Floats

__all__ = ["network", "read"]

_N_CELLS = 5
_SIZES: Final = ((16, 32), (32, 16), (64, 8))
"""Channels, and height and width."""
_ESTIMATES: Final = ("eyeriss", "fpga", "raspi4", "pixel3")
_ONE_CHIP: Final = {
    "1080ti": "gp102",
    "titanx": "gp102",
    "titanxp": "gp102",
    "2080ti": "tu102",
    "titan_rtx": "tu102",
    "silver_4114": "skylake",
    "silver_4210r": "cascade lake",
    "gold_6226": "cascade lake",
    "gold_6240": "cascade lake",
}


def read(folder: Path = DATA / "latency_help", *, n_networks: int = 100, seed: int = 0) -> Recorded:
    """As many networks, drawn from the 15,625."""
    with np.load(folder / "nasbench201.npz") as found:
        names = [str(name) for name in found["devices"]]
        operators = [str(name) for name in found["op_names"]]
        n_all = len(found["arch_ops"])
        drawn = np.random.default_rng(seed).choice(n_all, n_networks, replace=False)
        cells, milliseconds = found["arch_ops"][drawn], found["latency_ms"][:, drawn]
    kept = [index for index, name in enumerate(names) if name not in _ESTIMATES]
    chips = [re.sub(r"_(1|32|256)$", "", names[index]) for index in kept]
    return Recorded(
        "nasbench",
        tuple(network([operators[edge] for edge in cell]) for cell in cells),
        tuple(names[index] for index in kept),
        tuple(_ONE_CHIP.get(chip, chip) for chip in chips),
        milliseconds[kept].astype(np.float64) / 1e3,
    )


def network(cell: list[str]) -> Floats:
    """All operators of the network of a cell, by the names of what its six edges do."""
    rows = [convolution((1, 3, 32, 32), (1, 16, 32, 32), kernel=9)]
    before = None
    for channels, side in _SIZES:
        image = (1, channels, side, side)
        if before is not None:
            rows += _reduction(before, image)
        for edge in cell:
            rows += _N_CELLS * _edge(edge, image)
        before = image
    return merged([*rows, moving("pool", [image], (1, 64, 1, 1)), matmul(1, 64, 10)])


def _edge(name: str, image: tuple[int, ...]) -> list[list[float]]:
    if name == "none":
        return []
    if name == "avg_pool_3x3":
        return [moving("pool", [image], image, kernel=9)]
    if name == "skip_connect":
        return [moving("cheap", [image, image], image)]
    return [convolution(image, image, kernel=9 if name == "nor_conv_3x3" else 1)]


def _reduction(before: tuple[int, ...], after: tuple[int, ...]) -> list[list[float]]:
    """Two convolutions, and beside them a pool and a convolution."""
    half = (1, before[1], *after[2:])
    return [
        convolution(before, after, kernel=9),
        convolution(after, after, kernel=9),
        moving("pool", [before], half, kernel=4),
        convolution(half, after, kernel=1),
    ]
