"""The ncnn benchmark: whole networks on boards, phones and computers, processors only.

A network is the sum of the layers of its ``.param`` file, which has the shape of every blob. Three
networks have none there (FastestDet, blazeface, vision_transformer) and are left out. Runs on one
chip are one family, whichever board it sits on.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Final

from benchmarks.data import DATA
from benchmarks.recordings.values import Recorded, convolution, matmul, merged, moving
from edgeweave.predict.features import Floats

__all__ = ["network", "read"]

_FAMILIES: Final = {
    "Pooling": "pool",
    **dict.fromkeys(("ReLU", "HardSwish", "HardSigmoid", "Eltwise", "BinaryOp"), "cheap"),
    **dict.fromkeys(("Swish", "Sigmoid"), "transcendental"),
    **dict.fromkeys(("Softmax", "Reduction"), "reduce"),
    **dict.fromkeys(("LRN", "BatchNorm"), "norm"),
    **dict.fromkeys(("Concat", "ShuffleChannel", "Permute", "Crop", "Slice"), "copy"),
    **dict.fromkeys(("Padding", "Interp"), "copy"),
    **dict.fromkeys(("DetectionOutput", "Yolov3DetectionOutput", "YoloDetectionOutput"), "other"),
}
"""Other layers without weights give the same bytes another name."""
_MOST_RUNS: Final = 2
_LEAST_NETWORKS: Final = 30
_CONVOLUTIONS: Final = ("Convolution", "ConvolutionDepthWise", "DeconvolutionDepthWise")
_CHIPS: Final = (
    *("RK3588", "RK3399", "RK3568", "RK3566", "RK3328", "RK3288", "Snapdragon 8 Gen 2"),
    *("Raspberry Pi 5", "Raspberry Pi 4", "Raspberry Pi 3", "KunPeng 920", "FT-2000", "JH7110"),
    *("Loongson 2K1000", "Jetson AGX Orin", "Jetson Orin", "Jetson Nano", "Jetson TX2"),
)
"""Named in several headings, or on boards of other names."""
_ONE_CORE: Final = {"rk3566": "rk3568", "jetson orin": "jetson agx orin"}


def read(folder: Path = DATA / "latency_ncnn") -> Recorded:
    """Networks on processors, two settings (threads, cluster of cores) of each at most."""
    networks = {path.stem: network(path.read_text()) for path in sorted(folder.glob("params/*"))}
    rows = {name: found for name, found in networks.items() if found is not None}
    seconds: dict[str, dict[str, float]] = defaultdict(dict)
    families: dict[str, str] = {}
    with (folder / "ncnn_benchmark.csv").open(encoding="utf-8", newline="") as file:
        for record in csv.DictReader(file):
            taken = float(record["avg_ms"]) / 1e3
            if record["gpu_device"] != "-1" or taken <= 0:
                continue
            run = " ".join(record[key] for key in ("device", "block", "threads", "powersave"))
            families[run] = _chip(record["device"])
            seconds[run][record["model"]] = taken
    runs = _few(families, {run for run, found in seconds.items() if len(found) >= _LEAST_NETWORKS})
    kept = {run: seconds[run] for run in runs}
    return Recorded.of("ncnn", rows, kept, families, least_devices=50, least_pieces=_LEAST_NETWORKS)


def network(param: str) -> Floats | None:
    """The layers of a ``.param`` file, or None where it does not tell the shapes of its blobs."""
    shapes: dict[str, tuple[int, ...]] = {}
    rows = []
    for line in param.splitlines()[2:]:
        kind, _, n_inputs, n_outputs, *rest = line.split()
        first, last = int(n_inputs), int(n_inputs) + int(n_outputs)
        options = dict(text.split("=", 1) for text in rest[last:])
        inputs = [shapes[name] for name in rest[:first] if name in shapes]
        if "-23330" in options:
            shapes.update(zip(rest[first:last], _shapes(options["-23330"]), strict=True))
        outputs = [shapes[name] for name in rest[first:last] if name in shapes]
        if kind in _CONVOLUTIONS and not (inputs and outputs):
            return None
        if inputs and outputs:
            rows += _rows(kind, inputs, outputs[0], options)
    return merged(rows)


def _rows(
    kind: str,
    inputs: list[tuple[int, ...]],
    output: tuple[int, ...],
    options: dict[str, str],
) -> list[list[float]]:
    """One row, or none for what moves nothing."""
    itemsize = 1 if int(options.get("8", 0)) else 4
    if kind in _CONVOLUTIONS:
        width = int(options["1"])
        kernel = width * int(options.get("11", width))
        groups = int(options.get("7", 1))
        return [convolution(inputs[0], output, kernel=kernel, groups=groups, itemsize=itemsize)]
    if kind == "InnerProduct":
        columns = int(options["0"])
        return [matmul(1, int(options["2"]) // columns, columns, itemsize=itemsize)]
    return [moving(_FAMILIES[kind], inputs, output)] if kind in _FAMILIES else []


def _shapes(hint: str) -> list[tuple[int, ...]]:
    """From ``4n,dimensions,width,height,channels,...``; the batch is 1."""
    _, *numbers = map(int, hint.split(","))
    found: list[tuple[int, ...]] = []
    for start in range(0, len(numbers), 4):
        dimensions, width, height, channels = numbers[start : start + 4]
        found.append(((1, width), (1, height, width), (1, channels, height, width))[dimensions - 1])
    return found


def _few(families: dict[str, str], complete: set[str]) -> list[str]:
    """So many runs of each chip, in the order of the file."""
    n_runs: Counter[str] = Counter()
    found = []
    for run, family in families.items():
        if run in complete and n_runs[family] < _MOST_RUNS:
            n_runs[family] += 1
            found.append(run)
    return found


def _chip(heading: str) -> str:
    plain = re.sub(r"\W+", " ", heading).lower()
    named = [chip.lower() for chip in _CHIPS if chip.lower().replace("-", " ") in plain]
    return _ONE_CORE.get(named[0], named[0]) if named else plain
