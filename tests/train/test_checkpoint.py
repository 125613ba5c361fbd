"""Checkpoints: whole or not there at all, and refused when they are not what they seem."""

from __future__ import annotations

import errno
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edgeweave.core.errors import CheckpointError
from edgeweave.train import checkpoint as checkpoints
from edgeweave.train.checkpoint import Checkpoint, Progress, latest, load, save
from edgeweave.train.report import EpochRecord, Evaluation, OpenEpoch


def checkpoint(step: int = 3, value: float = 1.0, **changes: object) -> Checkpoint:
    values: dict[str, object] = {
        "step": step,
        "epoch": 1,
        "batch": 1,
        "settings": {"seed": "7", "optimizer": "Optimizer('SGD', lr=0.1)"},
        "lr_calls": [None, 0.25],
        "step_losses": [0.1 * n for n in range(step)],
        "epochs": (EpochRecord(0, 2, 0.5, {"accuracy": 0.1}, 3.0, Evaluation(0.4, {}, 9)),),
        "open_epoch": OpenEpoch(4, 0.3, {"accuracy": 1.0}, 0.5),
    }
    progress = Progress(**(values | changes))  # type: ignore[arg-type]
    state = {"weight": torch.full((3, 2), value), "norm.count": torch.tensor(5)}
    return Checkpoint(progress, state, {"weight|momentum_buffer": torch.full((3, 2), -value)})


def assert_whole(path: Path, expected: Checkpoint) -> None:
    found = load(path)
    assert found.progress == expected.progress
    for mine, theirs in ((found.state, expected.state), (found.optimizer, expected.optimizer)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = save(tmp_path / "new" / "folder", checkpoint())
    assert path == tmp_path / "new" / "folder" / "step-00000003"
    assert sorted(file.name for file in path.iterdir()) == [
        "model.safetensors",
        "optimizer.safetensors",
        "trainer.json",
    ]
    assert_whole(path, checkpoint())


def test_a_diverged_run_can_be_read_again(tmp_path: Path) -> None:
    losses = [1.0, math.inf, -math.inf, math.nan]
    found = load(save(tmp_path, checkpoint(4, step_losses=losses))).progress.step_losses
    assert found[:3] == losses[:3]
    assert math.isnan(found[3])


def test_floats_are_kept_to_the_last_bit(tmp_path: Path) -> None:
    losses = [random.uniform(-1, 1) * 10 ** random.randint(-30, 30) for _ in range(200)]
    assert load(save(tmp_path, checkpoint(200, step_losses=losses))).progress.step_losses == losses


def test_the_latest_is_that_of_the_highest_step(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        save(tmp_path, checkpoint(step))
    assert latest(tmp_path).name == "step-00000100"


def test_half_written_directories_and_other_files_are_ignored(tmp_path: Path) -> None:
    save(tmp_path, checkpoint(2))
    for name in (".step-00000009.partial", "step-9", "step-00000009.bak"):
        (tmp_path / name).mkdir()
    assert latest(tmp_path).name == "step-00000002"
    save(tmp_path, checkpoint(9))
    assert latest(tmp_path).name == "step-00000009"
    assert not (tmp_path / ".step-00000009.partial").exists()


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, Path.touch])
def test_a_directory_without_checkpoints_is_refused(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    directory = tmp_path / "run"
    make(directory)
    with pytest.raises(CheckpointError) as refused:
        latest(directory)
    assert str(refused.value) == (
        f"{directory} holds no checkpoint (step-XXXXXXXX). Check the path, or start without "
        "--resume."
    )


def full_disk(*_arguments: object, **_options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


FAILURES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "fsync": lambda patch: patch.setattr(os, "fsync", full_disk),
    "rename": lambda patch: patch.setattr(Path, "rename", full_disk),
    "mkdir": lambda patch: patch.setattr(Path, "mkdir", full_disk),
    "open": lambda patch: patch.setattr(Path, "open", full_disk),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_full_disk_leaves_the_checkpoints_before_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    earlier = save(tmp_path, checkpoint(3))
    with monkeypatch.context() as patch:
        FAILURES[failure](patch)
        with pytest.raises(CheckpointError) as refused:
            save(tmp_path, checkpoint(4))
    assert str(refused.value) == (
        f"the checkpoint of step 4 cannot be written to {tmp_path} (No space left on device). "
        "Earlier checkpoints there are whole; free space or choose another directory."
    )
    assert latest(tmp_path) == earlier
    assert_whole(earlier, checkpoint(3))
    assert_whole(save(tmp_path, checkpoint(4)), checkpoint(4))


@pytest.mark.parametrize("nth", range(6))
def test_a_disk_that_fills_up_anywhere_leaves_the_checkpoint_of_the_same_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """The end of an epoch may write the step that was just written, and must not lose it."""
    save(tmp_path, checkpoint(4, value=1.0))
    calls = 0

    def failing(original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls == nth + 1:
                full_disk()
            return original(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(os.fsync))
        patch.setattr(Path, "rename", failing(Path.rename))
        with pytest.raises(CheckpointError):
            save(tmp_path, checkpoint(4, value=2.0))
    # The last sync fails when the new one is in its place already.
    assert load(latest(tmp_path)).state["weight"][0, 0] in (1.0, 2.0)
    assert_whole(save(tmp_path, checkpoint(4, value=3.0)), checkpoint(4, value=3.0))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, checkpoint(4, value=1.0))
    path = save(tmp_path, checkpoint(4, value=2.0))
    assert_whole(path, checkpoint(4, value=2.0))


def test_everything_is_on_the_disk_before_the_name_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(descriptor: int) -> None:
        order.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        fsync(descriptor)

    def noted_rename(path: Path, target: Path) -> Path:
        order.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    save(tmp_path, checkpoint(4))
    assert order == [
        "model.safetensors",
        "optimizer.safetensors",
        "trainer.json",
        ".step-00000004.partial",
        "rename",
        tmp_path.name,
    ]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "trainer.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "cut", "directory"])
def test_a_damaged_checkpoint_is_refused_with_what_to_do(
    tmp_path: Path, name: str, damage: str
) -> None:
    path = save(tmp_path, checkpoint())
    file = path / name
    data = file.read_bytes()
    file.unlink()
    if damage == "directory":
        file.mkdir()
    elif damage != "missing":
        file.write_bytes({"empty": b"", "garbage": b"\xff\x00garbage", "cut": data[:-3]}[damage])
    with pytest.raises(CheckpointError) as refused:
        load(path)
    assert str(refused.value).startswith(f"{path} is not a whole checkpoint (")
    assert str(refused.value).endswith("Delete it to resume from the one before.")


def test_no_damage_raises_anything_else(tmp_path: Path) -> None:
    path = save(tmp_path, checkpoint())
    generator = random.Random(5)
    whole = {file: file.read_bytes() for file in path.iterdir()}
    for file, data in whole.items():
        for _ in range(120):
            damaged = bytearray(data)
            for _ in range(generator.randint(1, 3)):
                damaged[generator.randrange(len(damaged))] = generator.randrange(256)
            file.write_bytes(damaged)
            try:
                load(path)
            except CheckpointError:
                continue
        file.write_bytes(data)
    assert_whole(path, checkpoint())


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"version": 2}, "'edgeweave/checkpoint' version 2"),
        ({"format": "other"}, "'other' version 1"),
    ],
)
def test_a_checkpoint_of_another_version_is_refused(
    tmp_path: Path, changes: dict[str, object], shown: str
) -> None:
    path = save(tmp_path, checkpoint(**changes))
    with pytest.raises(CheckpointError) as refused:
        load(path)
    assert str(refused.value) == (
        f"{path} has format {shown}; this package reads 'edgeweave/checkpoint' version 1. "
        "Use the package that wrote it."
    )


def test_a_file_in_the_place_of_the_directory_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(CheckpointError, match=r"cannot be written to .*run \(File exists\)"):
        save(tmp_path / "run", checkpoint())


def test_partial_work_of_a_crash_is_cleared_away(tmp_path: Path) -> None:
    save(tmp_path, checkpoint(4))
    shutil.copytree(tmp_path / "step-00000004", tmp_path / ".step-00000005.partial")
    save(tmp_path, checkpoint(5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]
    assert checkpoints.latest(tmp_path).name == "step-00000005"


def test_a_crash_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    save(tmp_path, checkpoint(3))
    save(tmp_path, checkpoint(4)).rename(tmp_path / ".step-00000004.old")
    assert_whole(latest(tmp_path), checkpoint(4))
    assert latest(tmp_path).name == "step-00000004"
    save(tmp_path, checkpoint(4, value=2.0))
    assert_whole(latest(tmp_path), checkpoint(4, value=2.0))
