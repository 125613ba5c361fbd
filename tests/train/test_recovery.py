"""Devices vanish, and the run ends with the numbers of one in which none did, bit for bit."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import edgeweave as ew
from edgeweave.device.stages.snapshots import Snapshots
from edgeweave.fleet import Fleet
from edgeweave.net import NetSettings
from edgeweave.plan import Replication
from edgeweave.train.checkpoint import latest, load
from tests.fleet.worlds import QUICK, MemoryFleet, memory_fleet, plan_of, wait_until
from tests.models import Example
from tests.train.interrupted import Interrupted
from tests.train.reference import Job, assert_equal_runs, job_of, train_eagerly
from tests.train.test_trainer_equality import BOUNDARIES, SGD, torch_optimizer
from tests.train.trained_models import CNN, MLP, UNET, n_units

OFTEN = Replication(chain_every=2, whole_every=4)
ADAM = ew.Optimizer("AdamW", lr=0.01)


def recovering(
    world: MemoryFleet,
    job: Job,
    example: Example,
    *,
    devices: tuple[str, ...] = ("a", "b", "c"),
    boundaries: tuple[int, ...] | None = None,
    optimizer: ew.Optimizer = SGD,
    replication: Replication = OFTEN,
    schedule: str = "1f1b",
    **options: Any,
) -> ew.PipelineTrainer:
    """A trainer with a plan made by hand, whose states are copied often."""
    plan = plan_of(
        devices,
        boundaries or BOUNDARIES[example.name][: len(devices) - 1],
        n_units(example),
        schedule=schedule,
        n_microbatches=job.n_microbatches,
    )
    return ew.PipelineTrainer(
        copy.deepcopy(job.model),
        job.loss,
        optimizer=optimizer,
        fleet=world.fleet,
        plan=replace(plan, replication=replication),
        n_microbatches=job.n_microbatches,
        seed=job.seed,
        clip_grad_norm=job.clip_grad_norm,
        metrics=job.metrics,
        **options,
    )


def trained(
    trainer: ew.PipelineTrainer, job: Job, *, at: int, act: Callable[[], None], **options: Any
) -> ew.Report:
    """Train, and let something happen when batch ``at`` is read."""
    return trainer.fit(
        Interrupted(job.data, at=at, act=act),
        batch_size=job.batch_size,
        epochs=job.epochs,
        validate=job.validation,
        progress=False,
        **options,
    )


def assert_as_undisturbed(
    report: ew.Report, trainer: ew.PipelineTrainer, job: Job, optimizer: ew.Optimizer = SGD
) -> None:
    expected = train_eagerly(job, torch_optimizer(optimizer))
    assert_equal_runs(report, trainer.state_dict(), expected)


@pytest.mark.parametrize("victim", ["a", "b", pytest.param("c", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "example",
    [pytest.param(MLP, marks=pytest.mark.slow), CNN, UNET],
    ids=lambda example: example.name,
)
def test_any_device_may_vanish(example: Example, victim: str) -> None:
    job = job_of(example, 40, epochs=4)
    with memory_fleet("a", "b", "c") as world:
        trainer = recovering(world, job, example)
        report = trained(trainer, job, at=11, act=lambda: world.fabric.kill(victim))
        free = {world.fleet.greet(name).run for name in world.fleet.present()}
    (recovery,) = report.recoveries
    assert recovery.lost == (victim,)
    assert set(report.plan.devices) == {"a", "b", "c"} - {victim}
    assert 0 <= recovery.recomputed_steps <= OFTEN.whole_every + 2
    assert recovery.resumed_step > 0
    assert free == {None}
    assert_as_undisturbed(report, trainer, job)


def kill_all(world: MemoryFleet, *victims: str) -> Callable[[], None]:
    def act() -> None:
        for victim in victims:
            world.fabric.kill(victim)

    return act


@pytest.mark.parametrize(
    "victims",
    ["bc", "ad", "abc"]
    + [pytest.param(each, marks=pytest.mark.slow) for each in ("ab", "cd", "bcd", "acd")],
)
def test_several_devices_may_vanish_at_once_and_all_but_one(victims: str) -> None:
    job = job_of(UNET, 40, epochs=4)
    with memory_fleet("a", "b", "c", "d") as world:
        trainer = recovering(world, job, UNET, boundaries=(2, 4, 5), devices=("a", "b", "c", "d"))
        report = trained(trainer, job, at=11, act=kill_all(world, *victims))
    lost = {device for recovery in report.recoveries for device in recovery.lost}
    assert lost == set(victims)
    assert set(report.plan.devices) == set("abcd") - lost
    assert_as_undisturbed(report, trainer, job)


class Script:
    """The same samples; things happen when batches are read, by how many were read before."""

    def __init__(self, job: Job, acts: dict[int, Callable[[], None]]) -> None:
        self._data = job.data
        self._acts = acts
        self._n_read = 0

    def __len__(self) -> int:
        return len(self._data)

    def batch(self, indices: torch.Tensor) -> Any:
        self._acts.get(self._n_read, lambda: None)()
        self._n_read += 1
        return self._data[indices]


def test_a_device_that_restarted_takes_its_place_again() -> None:
    job = job_of(UNET, 40, epochs=12)
    with memory_fleet("a", "b", "c") as world:
        trainer = recovering(world, job, UNET)
        script = {11: lambda: world.fabric.kill("b"), 24: lambda: world.start("b")}
        script |= dict.fromkeys(range(25, 50), lambda: time.sleep(0.05))  # meanwhile it is met
        report = trainer.fit(
            Script(job, script), batch_size=job.batch_size, epochs=job.epochs, progress=False
        )
    assert [recovery.lost for recovery in report.recoveries] == [("b",)]
    assert report.plan.devices == ("a", "b", "c")
    assert_as_undisturbed(report, trainer, job)


SELDOM_WHOLE = Replication(chain_every=2, whole_every=1000)


def killed_run(
    world: MemoryFleet,
    job: Job,
    folder: Path,
    *,
    at: int = 18,
    before: Mapping[int, Callable[[], None]] | None = None,
) -> Path:
    """A run whose coordinator is killed about step 16, after a checkpoint of step 10; the directory
    as the dead process left it. ``before`` is what else happens, by batches read.
    """
    left = folder / "left"

    def kill() -> None:
        shutil.copytree(folder / "run", left)  # a killed process has no time to clean up
        world.fabric.kill(world.fleet.transport.name)

    trainer = recovering(world, job, UNET, replication=SELDOM_WHOLE)
    with pytest.raises(ew.EdgeweaveError):
        trainer.fit(
            Script(job, {**(before or {}), at: kill}),
            batch_size=job.batch_size,
            epochs=job.epochs,
            checkpoint=folder / "run",
            progress=False,
        )
    wait_until(lambda: free(world) == {"a", "b", "c"}, "they let go")
    assert load(latest(left)).progress.step == 10
    return left


def resumed_run(
    world: MemoryFleet, job: Job, left: Path, data: Any
) -> tuple[ew.Report, ew.PipelineTrainer]:
    """A new process goes on with it."""
    with ew.Fleet.over(world.fabric.join, NetSettings(), devices=("a", "b", "c")) as fleet:
        trainer = recovering(replace(world, fleet=fleet), job, UNET, replication=SELDOM_WHOLE)
        report = trainer.fit(
            data,
            batch_size=job.batch_size,
            epochs=job.epochs,
            checkpoint=left,
            resume=True,
            progress=False,
        )
    return report, trainer


def test_a_run_whose_coordinator_was_killed_goes_on_with_what_its_devices_keep(
    tmp_path: Path,
) -> None:
    job = job_of(UNET, 120, epochs=3)  # steps 0 to 29, checkpoints after 10 and 20
    with memory_fleet("a", "b", "c", timeouts=replace(QUICK, frame=5.0)) as world:
        left = killed_run(world, job, tmp_path)
        resumed, again = resumed_run(world, job, left, job.data)
    assert len(resumed.step_seconds) < 20  # steps that are not done again
    assert_as_undisturbed(resumed, again, job)


@pytest.mark.slow
def test_a_device_lost_right_after_that_takes_the_run_back_to_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has a replica, so that what the device kept is gone with it."""
    monkeypatch.setattr(Snapshots, "add_replica", lambda *_arguments: None)
    job = job_of(UNET, 120, epochs=3)
    with memory_fleet("a", "b", "c", timeouts=replace(QUICK, frame=5.0)) as world:
        left = killed_run(world, job, tmp_path)
        data = Interrupted(job.data, at=2, act=lambda: world.fabric.kill("b"))
        resumed, again = resumed_run(world, job, left, data)
    (recovery,) = resumed.recoveries
    assert recovery.step > recovery.resumed_step == 10
    assert_as_undisturbed(resumed, again, job)


def free(world: MemoryFleet) -> set[str]:
    """The devices that work for nobody."""
    return {name for name, agent in world.agents.items() if agent.greeting().run is None}


@pytest.mark.parametrize(
    "victim",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in "ac"), "b"],
)
def test_without_a_flush_a_run_goes_on_from_states_after_one_step(victim: str) -> None:
    """Before the loss the numbers are the undisturbed run's; after it versions are others."""
    job = job_of(UNET, 120, epochs=3)
    with memory_fleet("a", "b", "c") as world:
        undisturbed = trained(asynchronous(world, job), job, at=10**6, act=lambda: None)
        trainer = asynchronous(world, job)
        report = trained(trainer, job, at=11, act=lambda: world.fabric.kill(victim))
    (recovery,) = report.recoveries
    assert recovery.lost == (victim,)
    resumed = recovery.resumed_step
    assert 0 < resumed <= recovery.step
    assert report.step_losses[:resumed] == undisturbed.step_losses[:resumed]
    assert len(report.step_losses) == len(undisturbed.step_losses) == 30
    assert sum(report.step_losses[20:]) < sum(report.step_losses[:10])


def asynchronous(world: MemoryFleet, job: Job) -> ew.PipelineTrainer:
    trainer = recovering(world, job, UNET, schedule="async-1f1b")
    assert trainer.plan is not None
    trainer.plan = replace(trainer.plan, schedule="async-1f1b")
    return trainer


def test_whoever_asks_a_coordinator_learns_where_its_run_is() -> None:
    job = job_of(UNET, 40, epochs=6)
    told = []
    with memory_fleet("a", "b", "c") as world:

        def look() -> None:
            with Fleet.over(world.fabric.join, NetSettings(timeouts=QUICK), devices=()) as other:
                (coordinator,) = other.coordinators()
                told.append(other.run_status(coordinator))

        script = {9: look, 11: lambda: world.fabric.kill("b"), 20: look}
        report = recovering(world, job, UNET).fit(
            Script(job, script), batch_size=job.batch_size, epochs=job.epochs, progress=False
        )
        with Fleet.over(world.fabric.join, NetSettings(timeouts=QUICK), devices=()) as other:
            (idle,) = other.coordinators()
            with pytest.raises(ew.FleetError):
                other.run_status(idle)
    before, after = told
    assert before.devices == ("a", "b", "c")
    assert 9 - 4 <= before.step <= 9
    assert 0 <= before.devices_age_steps < OFTEN.chain_every + 3
    assert 0 <= before.here_age_steps <= 9
    assert before.recoveries == ()
    assert (before.service.n_lost, before.service.recomputed_steps) == (0, 0)
    assert 0 <= (before.service.replica_age_steps or 0) <= before.step
    assert (after.run, after.term) == (before.run, 1)
    assert after.devices == report.plan.devices
    assert after.recoveries == tuple(each.line() for each in report.recoveries)
    (recovery,) = report.recoveries
    for level in (after.service, report.service):
        assert level.n_lost == 1
        assert level.recomputed_steps == recovery.recomputed_steps
        assert (level.detect_seconds, level.recover_seconds) == (
            recovery.silent_seconds,
            recovery.seconds,
        )


def test_the_report_tells_what_copies_cost_and_how_old_they_were() -> None:
    job = job_of(MLP, 40, epochs=4)
    with memory_fleet("a", "b", "c") as world:
        trainer = recovering(world, job, MLP)
        report = trained(trainer, job, at=10**6, act=lambda: None)
        spared = recovering(world, job, MLP, recover=False)
        without = trained(spared, job, at=10**6, act=lambda: None)
    state_bytes = 2 * sum(each.nbytes for each in job.model.parameters())  # with momentum
    sent_bytes = sum(device.copy_bytes_out for device in report.devices)
    most = 16 // OFTEN.chain_every + 16 // OFTEN.whole_every  # to neighbours, and to here
    assert 2 * state_bytes <= sent_bytes <= most * 1.5 * state_bytes  # names and shapes beside it
    assert min(device.copy_bytes_out for device in report.devices) > 0
    assert min(device.snapshot_seconds for device in report.devices) > 0
    assert report.service.n_lost == 0
    age, oldest = report.service.replica_age_steps, report.service.oldest_replica_steps
    assert age is not None
    assert oldest is not None
    assert 0 <= age <= oldest < 16  # some copies came in time
    assert {device.copy_bytes_out for device in without.devices} == {0}
    assert without.service.replica_age_steps is None
