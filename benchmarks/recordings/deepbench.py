"""Baidu DeepBench: matrix products and convolutions of training, forward, float32, on 11 cards.

The boards and phones are left out: 13 int8 products each are too few to learn from and to judge by.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmarks.data import DATA
from benchmarks.recordings.values import Recorded, convolution, matmul
from edgeweave.predict.features import Floats

__all__ = ["read"]

_ONE_CHIP = {
    "AMD_MI25": "vega10",
    "AMD_VegaFE": "vega10",
    "NV_M40": "gm200",
    "NV_TitanX": "gm200",
    "NV_1080Ti": "gp102",
    "NV_TitanX_Pascal": "gp102",
    "NV_TitanXp": "gp102",
}


def read(folder: Path = DATA / "latency_deepbench") -> Recorded:
    """Operators that at least six cards ran."""
    seconds: dict[str, dict[str, float]] = defaultdict(dict)
    rows: dict[str, Floats] = {}
    for name, columns, key in (("gemm", _GEMM, "time_ms"), ("conv", _CONVOLUTION, "fwd_ms")):
        with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            for record in csv.DictReader(file):
                if record["phase"] != "train" or "FP32" not in record["sheet"] or not record[key]:
                    continue
                shape = [record[column] for column in columns]
                workload = f"{name} {' '.join(shape)}"
                rows[workload] = np.array([_row(name, shape)])
                seconds[record["device"]][workload] = float(record[key]) / 1e3
    families = {device: _ONE_CHIP.get(device, device) for device in seconds}
    return Recorded.of("deepbench", rows, seconds, families, least_devices=6, least_pieces=100)


_GEMM = ("M", "N", "K", "transA", "transB")
_CONVOLUTION = (
    *("N", "C", "K", "W", "S_filter_w", "pad_w", "stride_w"),
    *("H", "R_filter_h", "pad_h", "stride_h"),
)


def _row(name: str, shape: list[str]) -> list[float]:
    if name == "gemm":
        rows, columns, inner = map(int, shape[:3])
        # M counts a layer's outputs and N its samples: the first matrix is the weights.
        layout = 1 + 2 * (shape[3] == "T") + 4 * (shape[4] == "T")
        return matmul(columns, inner, rows, layout=layout)
    batch, channels, filters, *sides = map(int, shape)
    width, height = sides[:4], sides[4:]
    outputs = [(size + 2 * pad - window) // step + 1 for size, window, pad, step in (height, width)]
    return convolution(
        (batch, channels, height[0], width[0]),
        (batch, filters, *outputs),
        kernel=height[1] * width[1],
    )
