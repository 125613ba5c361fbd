"""Disks that take no notes: runs go on, say so once, and resume from what there is."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import edgeweave as ew
from edgeweave.train import journal as module
from edgeweave.train.checkpoint import latest, load
from edgeweave.train.journal import Journal, RunRecord
from tests.fleet.worlds import QUICK, memory_fleet
from tests.train.interrupted import Interrupted
from tests.train.reference import job_of
from tests.train.test_recovery import (
    assert_as_undisturbed,
    killed_run,
    recovering,
    resumed_run,
)
from tests.train.trained_models import MLP, UNET

SHORT = replace(QUICK, frame=5.0)


class Disk:
    """Where notes go. ``takes`` says which files there is room for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.takes: Callable[[str], bool] = lambda _name: True
        self.n_refused = 0
        self._write = module.write_whole
        monkeypatch.setattr(module, "write_whole", self.write_whole)

    def write_whole(self, path: Path, data: bytes) -> None:
        if not self.takes(path.name):
            self.n_refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._write(path, data)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def warnings_of(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [message for message in caplog.messages if words in message]


def test_a_run_goes_on_without_notes_and_says_so_once(
    disk: Disk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A device is lost meanwhile, so that a term cannot be noted either."""
    job = job_of(MLP, 40, epochs=4)
    with memory_fleet("a", "b", "c") as world:

        def fill_up_and_kill() -> None:
            disk.takes = lambda _name: False
            world.fabric.kill("b")

        trainer = recovering(world, job, MLP)
        report = trainer.fit(
            Interrupted(job.data, at=7, act=fill_up_and_kill),
            batch_size=job.batch_size,
            epochs=job.epochs,
            checkpoint=tmp_path,
            progress=False,
        )
    assert [recovery.lost for recovery in report.recoveries] == [("b",)]
    assert disk.n_refused > 3
    (told,) = warnings_of(caplog, "it is not noted where the run is")
    assert "No space left on device" in told
    assert len(warnings_of(caplog, "term 1 of run-")) == 1
    assert_as_undisturbed(report, trainer, job)
    assert load(latest(tmp_path)).progress.step_losses == list(report.step_losses)
    assert all(path.name.startswith("step-") for path in tmp_path.iterdir())


def test_a_disk_that_has_room_again_is_told_of_and_used(
    disk: Disk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = job_of(MLP, 40, epochs=4)
    with memory_fleet("a", "b", "c") as world:
        trainer = recovering(world, job, MLP)
        disk.takes = lambda name: name not in ("progress-00000006.json", "progress-00000008.json")
        trainer.fit(
            job.data,
            batch_size=job.batch_size,
            epochs=job.epochs,
            checkpoint=tmp_path,
            progress=False,
        )
    assert [m.partition(":")[0] for m in warnings_of(caplog, "noted")] == [
        "from step 6 on it is not noted where the run is, so that --resume would go back to a "
        "checkpoint",
        "from step 10 on it is noted again where the run is",
    ]


def test_a_disk_that_takes_nothing_ends_a_run_before_it_begins(disk: Disk, tmp_path: Path) -> None:
    job = job_of(MLP, 40)
    disk.takes = lambda _name: False
    with memory_fleet("a", "b", "c") as world:
        with pytest.raises(
            ew.CheckpointError, match=r"run\.json cannot be written \(No space left"
        ):
            recovering(world, job, MLP).fit(
                job.data, batch_size=job.batch_size, epochs=2, checkpoint=tmp_path, progress=False
            )
        assert {world.fleet.greet(name).run for name in "abc"} == {None}


@pytest.mark.slow
def test_what_was_not_noted_is_said_when_the_run_is_resumed_from_its_checkpoint(
    disk: Disk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = job_of(UNET, 120, epochs=3)
    disk.takes = lambda name: name <= "progress-00000010.json" or name == "run.json"
    with memory_fleet("a", "b", "c", timeouts=SHORT) as world:
        left = killed_run(world, job, tmp_path)  # about step 16, with a checkpoint of step 10
        disk.takes = lambda _name: True
        caplog.clear()
        resumed, again = resumed_run(world, job, left, job.data)
    (lacking,) = warnings_of(caplog, "the devices keep all of run-")
    assert f"is not noted in {left} (was its disk full?)" in lacking
    (chosen,) = warnings_of(caplog, "goes on from its checkpoint of step 10")
    assert chosen.endswith("no newer state of it is whole on a, b, c")
    assert len(resumed.step_seconds) == 20
    assert_as_undisturbed(resumed, again, job)


@pytest.mark.slow
def test_devices_that_had_a_term_which_was_not_noted_do_not_take_the_next_for_it(
    disk: Disk, tmp_path: Path
) -> None:
    job = job_of(UNET, 120, epochs=3)
    found: list[RunRecord | None] = []
    with memory_fleet("a", "b", "c", timeouts=SHORT) as world:

        def restart() -> None:
            disk.takes = lambda name: name != "run.json"
            world.fabric.kill("b")
            world.start("b")

        left = killed_run(world, job, tmp_path, at=22, before={13: restart})
        disk.takes = lambda _name: True
        found.append(Journal(left).record())
        look = Interrupted(job.data, at=3, act=lambda: found.append(Journal(left).record()))
        resumed, again = resumed_run(world, job, left, look)
    noted, next_one = found
    assert noted is not None
    assert next_one is not None
    assert noted.term == 0  # those after it could not be noted
    assert (next_one.run, next_one.term > 1) == (noted.run, True)
    assert len(resumed.step_seconds) < 20  # steps that are not done again
    assert_as_undisturbed(resumed, again, job)
