"""TVM TopHub: the best time that AutoTVM found for an operator, by board and graphics chip.

Left out is what is not float32, what has no multiply-adds for its packed layout, and devices with
few operators in common with others (v100, vta, vtacpu). Where direct and Winograd templates were
tuned for one workload, the faster counts: a compiler would choose it.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmarks.data import DATA
from benchmarks.recordings.values import Recorded, convolution, matmul
from edgeweave.predict.features import Floats

__all__ = ["read"]

_ONE_CHIP = {
    "cuda/titanx": "gp102",
    "cuda/1080ti": "gp102",
    "opencl/1080ti": "gp102",
    "rocm/gfx900": "vega",
    "rocm/gfx906": "vega",
    "amd_apu/v1000": "vega",
    "arm_cpu/rk3399": "rk3399",
    "mali/rk3399": "rk3399",
}


def read(folder: Path = DATA / "latency_tvm_tophub") -> Recorded:
    """Operators that at least four devices ran, on devices that ran at least 40 of them."""
    seconds: dict[str, dict[str, float]] = defaultdict(dict)
    rows: dict[str, Floats] = {}
    with (folder / "tophub_ops.csv").open(encoding="utf-8", newline="") as file:
        for record in csv.DictReader(file):
            if not record["macs"] or record["dtype"] != "float32":
                continue
            workload = " ".join(
                record[key] for key in ("data_shape", "kernel_shape", "strides", "padding")
            )
            rows[workload] = np.array([_row(record)])
            of_device = seconds[f"{record['backend']}/{record['device']}"]
            taken = float(record["time_ms"]) / 1e3
            of_device[workload] = min(taken, of_device.get(workload, taken))
    families = {device: _ONE_CHIP.get(device, device) for device in seconds}
    return Recorded.of("tophub", rows, seconds, families, least_devices=4, least_pieces=40)


def _row(record: dict[str, str]) -> list[float]:
    data, kernel = (_shape(record[key]) for key in ("data_shape", "kernel_shape"))
    if len(data) == 2:
        return matmul(data[0], data[1], kernel[0])
    depthwise = record["op"].startswith("depthwise")
    channels_out = kernel[0] * kernel[1] if depthwise else kernel[0]
    groups = data[1] if depthwise else data[1] // kernel[1]
    top, left, bottom, right = json.loads(record["padding"])
    strides, dilation = json.loads(record["strides"]), json.loads(record["dilation"])
    around = (top + bottom, left + right)
    area = [
        (size + more - wide * (window - 1) - 1) // step + 1
        for size, more, window, step, wide in zip(
            data[2:], around, kernel[2:], strides, dilation, strict=True
        )
    ]
    outputs = (data[0], channels_out, *area)
    return convolution(data, outputs, kernel=kernel[2] * kernel[3], groups=groups)


def _shape(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("x")))
