"""Other people's measurements, read as operators that the package would make of the same work."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.data import DATA
from benchmarks.recordings import deepbench, nasbench, ncnn, tophub
from benchmarks.recordings.values import (
    Recorded,
    convolution,
    matmul,
    merged,
    moving,
    operator,
)
from edgeweave.predict import FEATURES, unit_features
from edgeweave.predict.features import FAMILIES, Floats, macs_and_bytes
from edgeweave.program import capture

_NOT_RECORDED = (
    "padding",
    "bytes_before",
    "bytes_behind",
    "bytes_left",
    "pass_bytes",
    "bytes_since",
    "bytes_until",
    "input_gradient",
)
_READERS = {"tophub": tophub, "deepbench": deepbench, "ncnn": ncnn, "nasbench": nasbench}
_FOLDERS = {
    "tophub": "latency_tvm_tophub",
    "deepbench": "latency_deepbench",
    "ncnn": "latency_ncnn",
    "nasbench": "latency_help",
}


def _need(name: str) -> Path:
    folder = DATA / _FOLDERS[name]
    if not folder.exists():
        pytest.skip(f"needs {folder}")
    return folder


def _captured(model: nn.Module, inputs: torch.Tensor, family: str) -> Floats:
    """The only operator of this family in the model's graph, without what was not recorded."""
    targets = torch.zeros(len(inputs), dtype=torch.long)
    whole = nn.Sequential(model, nn.Flatten())
    program = capture(whole, functional.cross_entropy, inputs, targets).program
    rows = np.concatenate(list(unit_features(program, len(inputs)).values()))
    (row,) = rows[rows[:, 0] == FAMILIES.index(family)]
    return np.asarray(row)


@pytest.mark.parametrize(
    ("model", "shape", "family", "row"),
    [
        (
            nn.Conv2d(4, 6, 3, stride=2, bias=False),
            (2, 4, 9, 9),
            "conv",
            convolution((2, 4, 9, 9), (2, 6, 4, 4), kernel=9),
        ),
        (
            nn.Conv2d(4, 8, 3, groups=4, bias=False),
            (2, 4, 8, 8),
            "depthwise",
            convolution((2, 4, 8, 8), (2, 8, 6, 6), kernel=9, groups=4),
        ),
        (nn.Linear(5, 7, bias=False), (3, 5), "matmul", matmul(3, 5, 7)),
        (nn.ReLU(), (2, 4, 3, 3), "cheap", moving("cheap", [(2, 4, 3, 3)], (2, 4, 3, 3))),
    ],
)
def test_an_operator_is_described_as_the_package_describes_it(
    model: nn.Module, shape: tuple[int, ...], family: str, row: list[float]
) -> None:
    ours = _captured(model, torch.zeros(shape), family)
    known = [
        column for column, name in enumerate(("family", *FEATURES)) if name not in _NOT_RECORDED
    ]
    assert np.array(row)[known] == pytest.approx(ours[known])


def test_a_count_that_is_no_feature_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^no such features: flops$"):
        operator("conv", flops=3)


def test_equal_operators_become_one_with_the_work_of_all() -> None:
    row, other = matmul(2, 3, 4), matmul(2, 3, 5)
    together = merged([row, other, row])
    macs, moved = macs_and_bytes(together)
    assert sorted(macs) == pytest.approx([2 * 3 * 5, 2 * 2 * 3 * 4])
    assert max(moved) == pytest.approx(2 * 4 * (2 * 3 + 3 * 4 + 2 * 4))


def test_seconds_without_a_family_for_each_device_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^made has seconds for 2 devices of as many families"):
        Recorded("made", (np.array([matmul(1, 2, 3)]),), ("a", "b"), ("x",), np.ones((2, 1)))


def test_pieces_and_devices_with_few_measurements_are_left_out() -> None:
    rows = {name: np.array([matmul(1, 2, size)]) for size, name in enumerate("pqr", 1)}
    seconds = {"a": {"p": 1.0, "q": 2.0}, "b": {"p": 3.0, "q": 4.0}, "c": {"q": 5.0, "r": 6.0}}
    found = Recorded.of(
        "made", rows, seconds, {d: d for d in seconds}, least_devices=2, least_pieces=1
    )
    assert len(found.pieces) == 2
    np.testing.assert_equal(found.seconds, [[1.0, 2.0], [3.0, 4.0], [math.nan, 5.0]])


_PARAM = """7767517
5 5
Input data 0 1 data -23330=4,3,8,8,3 0=8 1=8 2=3
Convolution conv 1 1 data conv -23330=4,3,4,4,16 0=16 1=3 3=2 4=1 5=1 6=432
Split split 1 2 conv a b -23330=8,3,4,4,16,3,4,4,16
Eltwise sum 2 1 a b sum -23330=4,3,4,4,16 0=1
InnerProduct fc 1 1 sum fc -23330=4,1,10,1,1 0=10 1=1 2=2560
"""


def test_an_ncnn_network_is_the_operators_of_its_graph() -> None:
    rows = ncnn.network(_PARAM)
    assert rows is not None
    macs, _ = macs_and_bytes(rows)
    names = [FAMILIES[int(family)] for family in rows[:, 0]]
    assert dict(zip(names, macs, strict=True)) == pytest.approx(
        {"conv": 4 * 4 * 16 * 9 * 3, "cheap": 0, "matmul": 2560}
    )


def test_an_ncnn_network_without_shapes_is_not_guessed() -> None:
    assert ncnn.network("7767517\n1 1\nConvolution conv 1 1 data conv 0=16 1=3 6=432") is None


def test_a_cell_of_nothing_leaves_stem_reductions_and_head() -> None:
    empty, full = nasbench.network(["none"] * 6), nasbench.network(["nor_conv_3x3"] * 6)
    more = macs_and_bytes(full)[0].sum() - macs_and_bytes(empty)[0].sum()
    assert more == pytest.approx(5 * 6 * 3 * 9 * 16 * 16 * 32 * 32)


@pytest.mark.parametrize(
    ("name", "least_devices", "least_families"),
    [("tophub", 13, 10), ("deepbench", 11, 7), ("ncnn", 70, 60), ("nasbench", 23, 8)],
)
def test_recorded_data_are_read_whole(name: str, least_devices: int, least_families: int) -> None:
    recorded = _READERS[name].read(_need(name))
    assert len(recorded.devices) >= least_devices
    assert len(set(recorded.families)) >= least_families
    assert np.nanmin(recorded.seconds) > 0
    assert all(np.isfinite(piece).all() for piece in recorded.pieces)


def test_tophub_counts_the_multiply_adds_that_it_states() -> None:
    folder = _need("tophub")
    with (folder / "tophub_ops.csv").open(encoding="utf-8", newline="") as file:
        stated = {
            float(record["macs"])
            for record in csv.DictReader(file)
            if record["macs"] and record["dtype"] == "float32"
        }
    found = [macs_and_bytes(piece)[0][0] for piece in tophub.read(folder).pieces]
    known = np.array(sorted(stated))
    assert all(np.isclose(known, macs, rtol=1e-9).any() for macs in found)
