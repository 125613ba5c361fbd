"""Checkpoints: one directory per step, written whole or not at all.

    DIRECTORY/step-00000120/model.safetensors       weights and buffers, by the user's names
                            optimizer.safetensors   optimizer state, <parameter>|<entry>
                            trainer.json            where the run is: cursor, schedule, history

A directory appears under its name only after everything in it is on the disk, so a crash or a full
disk leaves the checkpoints before it untouched.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import safetensors
import safetensors.torch
import torch

from edgeweave.core.errors import CheckpointError
from edgeweave.train.report import EpochRecord, OpenEpoch

__all__ = [
    "Checkpoint",
    "Progress",
    "latest",
    "load",
    "load_progress",
    "progress_from_json",
    "progress_to_json",
    "save",
]

_FORMAT = "edgeweave/checkpoint"
_VERSION = 1
_NAME = re.compile(r"step-(\d{8,})")
_DAMAGED = (
    msgspec.MsgspecError,
    safetensors.SafetensorError,
    ValueError,
    KeyError,
    RuntimeError,
    RecursionError,
)


class Progress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a run is, beside its tensors."""

    step: int
    epoch: int
    batch: int
    """Batches of ``epoch`` that are done."""
    settings: dict[str, str]
    """What must be the same to continue exactly, by name."""
    lr_calls: list[float | None]
    step_losses: list[float]
    epochs: tuple[EpochRecord, ...]
    open_epoch: OpenEpoch
    format: str = _FORMAT
    version: int = _VERSION


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that continues a run."""

    progress: Progress
    state: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]


def save(directory: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and return its directory. Raises ``CheckpointError`` naming the cause."""
    final = directory / f"step-{checkpoint.progress.step:08d}"
    partial = directory / f".{final.name}.partial"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for name, tensors in (("model", checkpoint.state), ("optimizer", checkpoint.optimizer)):
            _write(partial / f"{name}.safetensors", _as_bytes(tensors))
        _write(partial / "trainer.json", progress_to_json(checkpoint.progress))
        _sync_directory(partial)
        _replace(final, partial)
        _sync_directory(directory)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.progress.step} cannot be written to {directory} "
            f"({error.strerror or error}). Earlier checkpoints there are whole; free space or "
            "choose another directory."
        ) from error
    return final


def latest(directory: Path) -> Path:
    """The checkpoint of the highest step."""
    _recover(directory)
    found = [path for path in directory.glob("step-*") if _NAME.fullmatch(path.name)]
    if not found:
        raise CheckpointError(
            f"{directory} holds no checkpoint (step-XXXXXXXX). Check the path, or start without "
            "--resume."
        )
    return max(found, key=lambda path: int(path.name.removeprefix("step-")))


def load(path: Path) -> Checkpoint:
    """Read a checkpoint directory."""
    progress = load_progress(path)
    try:
        state = safetensors.torch.load((path / "model.safetensors").read_bytes())
        optimizer = safetensors.torch.load((path / "optimizer.safetensors").read_bytes())
    except (OSError, *_DAMAGED) as error:
        raise _not_whole(path, error) from error
    return Checkpoint(progress, state, optimizer)


def load_progress(path: Path) -> Progress:
    """Where the run of a checkpoint directory is, without its tensors."""
    try:
        data = (path / "trainer.json").read_bytes()
    except OSError as error:
        raise _not_whole(path, error) from error
    return progress_from_json(data, path)


def progress_from_json(data: bytes, path: Path) -> Progress:
    """Read what ``progress_to_json`` wrote; ``CheckpointError`` naming ``path`` for all else."""
    try:
        progress = msgspec.convert(json.loads(data), Progress)
    except _DAMAGED as error:
        raise _not_whole(path, error) from error
    if (progress.format, progress.version) != (_FORMAT, _VERSION):
        raise CheckpointError(
            f"{path} has format {progress.format!r} version {progress.version}; this package reads "
            f"{_FORMAT!r} version {_VERSION}. Use the package that wrote it."
        )
    return progress


def _not_whole(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a whole checkpoint ({error}). Delete it to resume from the one before."
    )


def progress_to_json(progress: Progress) -> bytes:
    """With NaN and Infinity as Python's json knows them: a diverged run has such losses."""
    return json.dumps(msgspec.to_builtins(progress)).encode()


def _replace(final: Path, partial: Path) -> None:
    """Put a checkpoint in its place; the one of the same step goes only once that has worked."""
    if not final.exists():
        partial.rename(final)
        return
    aside = final.with_name(f".{final.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    final.rename(aside)
    try:
        partial.rename(final)
    except OSError:
        aside.rename(final)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _recover(directory: Path) -> None:
    """Put back what a crash left aside between the two renames of ``_replace``."""
    for aside in directory.glob(".step-*.old"):
        final = aside.with_name(aside.name.removeprefix(".").removesuffix(".old"))
        if not final.exists():
            aside.rename(final)


def _as_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return bytes(safetensors.torch.save(flat))


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
