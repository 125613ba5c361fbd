"""Devices with data of their own, which nobody has seen together: what differs is told at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import edgeweave as ew
from edgeweave.core.errors import ConfigError
from edgeweave.data import load_source
from edgeweave.fleet import Fleet
from edgeweave.gossip import DeviceFiles, GossipReport, GossipTrainer, running
from edgeweave.train.models import mlp
from tests.fleet.worlds import MemoryFleet, memory_fleet


@pytest.fixture(scope="module")
def world() -> Iterator[MemoryFleet]:
    with memory_fleet("a", "b") as found:
        yield found


def fit(fleet: Fleet, files: dict[str, DeviceFiles], *, n_inputs: int) -> GossipReport:
    torch.manual_seed(0)
    trainer = GossipTrainer(
        mlp(n_inputs, 3),
        functional.cross_entropy,
        optimizer=ew.Optimizer("SGD", lr=0.1),
        fleet=fleet,
        balance=False,
    )
    first = files["a"]
    here = load_source(first.source, path=Path(str(first.path))).test
    return trainer.fit(files, batch_size=8, epochs=1, validate=here)


def npz(path: Path, x: np.ndarray, y: np.ndarray) -> DeviceFiles:
    np.savez(path, x=x, y=y)
    return DeviceFiles("npz", path)


def pictures(folder: Path, classes: Sequence[str]) -> DeviceFiles:
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for k in range(5):
            Image.new("L", (4, 4), 40 * number + k).save(folder / name / f"{k}.png")
    return DeviceFiles("images", folder)


def test_samples_of_another_shape_are_refused_before_anybody_begins(
    world: MemoryFleet, tmp_path: Path
) -> None:
    """Bug: the device was enrolled, and failed in its first step with an error of torch."""
    y = np.arange(40) % 3
    files = {
        "a": npz(tmp_path / "a.npz", np.random.rand(40, 6).astype("f4"), y),
        "b": npz(tmp_path / "b.npz", np.random.rand(40, 7).astype("f4"), y),
    }
    wrong = r"input:0 on b is float32 of 7, the model takes float32 of 6"
    with pytest.raises(ConfigError, match=wrong):
        fit(world.fleet, files, n_inputs=6)
    assert running(world.fleet) == {}


def test_real_targets_do_not_pass_for_classes(world: MemoryFleet, tmp_path: Path) -> None:
    x = np.random.rand(40, 6).astype("f4")
    files = {
        "a": npz(tmp_path / "a.npz", x, np.arange(40) % 3),
        "b": npz(tmp_path / "b.npz", x, np.random.rand(40).astype("f4")),
    }
    wrong = r"target:0 on b is float32 of one number, the model takes int64 of one number"
    with pytest.raises(ConfigError, match=wrong):
        fit(world.fleet, files, n_inputs=6)


def test_pictures_whose_folders_number_classes_differently_are_refused(
    world: MemoryFleet, tmp_path: Path
) -> None:
    """Bug: what was a dog on one device was a horse on the other, and nobody said so."""
    files = {
        "a": pictures(tmp_path / "a", ["cat", "dog"]),
        "b": pictures(tmp_path / "b", ["cat", "horse"]),
    }
    wrong = r"devices have the same classes \(a: cat, dog; b: cat, horse\)\. Make the folders"
    with pytest.raises(ConfigError, match=wrong):
        fit(world.fleet, files, n_inputs=16)
    (tmp_path / "a" / "horse").mkdir()
    (tmp_path / "b" / "dog").mkdir()
    report = fit(world.fleet, files, n_inputs=16)
    assert [peer.there for peer in report.peers] == [True, True]


@pytest.mark.slow
def test_numbered_folders_need_not_be_the_same(world: MemoryFleet, tmp_path: Path) -> None:
    files = {
        "a": pictures(tmp_path / "a", ["0", "1"]),
        "b": pictures(tmp_path / "b", ["1", "2"]),
    }
    report = fit(world.fleet, files, n_inputs=16)
    assert [peer.there for peer in report.peers] == [True, True]
