"""Losses at awkward moments: which copy is used, who goes on, and when nobody can."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

import edgeweave as ew
from edgeweave.device import Deploy, Halt, StateRequest
from edgeweave.device.stages.running import Running
from edgeweave.device.stages.snapshots import Snapshots, State
from edgeweave.plan import Replication
from tests.fleet.worlds import MemoryFleet, memory_fleet, plan_of, wait_until
from tests.models import Example
from tests.train.reference import Job, differing, job_of, train_eagerly
from tests.train.test_recovery import (
    Script,
    assert_as_undisturbed,
    free,
    kill_all,
    recovering,
    trained,
)
from tests.train.test_trainer_equality import SGD, torch_optimizer
from tests.train.trained_models import MLP, UNET, n_units

STEPS_AN_EPOCH = 4
NEVER = 1000


@pytest.fixture
def world() -> Iterator[MemoryFleet]:
    with memory_fleet("a", "b", "c") as made:
        yield made


def when_asked(monkeypatch: pytest.MonkeyPatch, act: Callable[[str, str, Any], None]) -> None:
    """``act(device, verb, message)`` comes before every request of the coordinator."""
    ask = ew.Fleet.ask

    def act_and_ask(self: ew.Fleet, device: str, verb: str, message: Any, **options: Any) -> bytes:
        act(device, verb, message)
        return ask(self, device, verb, message, **options)

    monkeypatch.setattr(ew.Fleet, "ask", act_and_ask)


class Once:
    """Kills a device, the first time only."""

    def __init__(self, world: MemoryFleet, victim: str) -> None:
        self._world, self._victim = world, victim
        self._first = threading.Lock()

    def __call__(self) -> None:
        if self._first.acquire(blocking=False):
            self._world.fabric.kill(self._victim)


def lost_of(report: ew.Report) -> list[tuple[str, ...]]:
    return [recovery.lost for recovery in report.recoveries]


def test_a_loss_while_a_checkpoint_is_fetched(
    world: MemoryFleet, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    job, kill = job_of(UNET, 40, epochs=3), Once(world, "b")

    def act(device: str, verb: str, message: Any) -> None:
        if isinstance(message, StateRequest) and message.rounds >= 6 and device == "b":
            kill()

    when_asked(monkeypatch, act)
    trainer = recovering(world, job, UNET)
    report = trained(trainer, job, at=NEVER, act=lambda: None, checkpoint=tmp_path)
    assert lost_of(report) == [("b",)]
    assert_as_undisturbed(report, trainer, job)


def test_a_loss_while_the_last_weights_are_fetched(
    world: MemoryFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, kill = job_of(UNET, 40), Once(world, "c")
    when_asked(monkeypatch, lambda _d, _v, m: kill() if isinstance(m, StateRequest) else None)
    trainer = recovering(world, job, UNET)
    report = trained(trainer, job, at=NEVER, act=lambda: None)
    assert lost_of(report) == [("c",)]
    assert_as_undisturbed(report, trainer, job)


def test_two_losses_one_after_the_other() -> None:
    job = job_of(UNET, 40, epochs=6)
    with memory_fleet("a", "b", "c", "d") as world:
        acts = {9: lambda: world.fabric.kill("a"), 20: lambda: world.fabric.kill("c")}
        trainer = recovering(world, job, UNET, devices=tuple("abcd"), boundaries=(2, 4, 5))
        report = trainer.fit(
            Script(job, acts), batch_size=job.batch_size, epochs=job.epochs, progress=False
        )
    assert lost_of(report) == [("a",), ("c",)]
    assert report.plan.devices == ("b", "d")
    assert_as_undisturbed(report, trainer, job)


@pytest.mark.parametrize("verb", ["halt", "deploy"])
@pytest.mark.parametrize("second", ["a", "d"])
def test_a_second_loss_during_the_recovery_from_the_first(
    monkeypatch: pytest.MonkeyPatch, verb: str, second: str
) -> None:
    job = job_of(UNET, 40, epochs=4)
    with memory_fleet("a", "b", "c", "d") as world:
        kill = Once(world, second)

        def act(device: str, asked: str, message: Any) -> None:
            is_later = isinstance(message, Halt) or (
                isinstance(message, Deploy) and message.assignment.term == 1
            )
            if (device, asked) == (second, verb) and is_later:
                kill()

        when_asked(monkeypatch, act)
        trainer = recovering(world, job, UNET, devices=tuple("abcd"), boundaries=(2, 4, 5))
        report = trained(trainer, job, at=11, act=lambda: world.fabric.kill("b"))
        assert free(world) >= {"c", "a" if second == "d" else "d"}
    assert {device for lost in lost_of(report) for device in lost} == {"b", second}
    assert_as_undisturbed(report, trainer, job)


@pytest.mark.parametrize("victim", ["a", "b", "c"])
def test_copies_along_the_chain_are_enough_for_one_loss(world: MemoryFleet, victim: str) -> None:
    job = job_of(UNET, 40, epochs=4)
    chain = Replication(chain_every=3, whole_every=NEVER)
    trainer = recovering(world, job, UNET, replication=chain)
    report = trained(trainer, job, at=12, act=lambda: world.fabric.kill(victim))
    (recovery,) = report.recoveries
    assert recovery.resumed_step in (3, 6, 9)
    assert_as_undisturbed(report, trainer, job)


@pytest.mark.parametrize("victims", ["a", "b", "c", "ab", "ac"])
def test_copies_to_the_coordinator_are_enough_for_any_loss(
    world: MemoryFleet, victims: str
) -> None:
    job = job_of(UNET, 40, epochs=4)
    whole = Replication(chain_every=NEVER, whole_every=3)
    trainer = recovering(world, job, UNET, replication=whole)
    report = trained(trainer, job, at=12, act=kill_all(world, *victims))
    assert {recovery.resumed_step for recovery in report.recoveries} <= {3, 6, 9, 10, 11, 12}
    assert report.recoveries[0].resumed_step in (3, 6, 9)
    assert_as_undisturbed(report, trainer, job)


def test_neighbours_lost_without_a_whole_copy_begin_anew(world: MemoryFleet) -> None:
    job = job_of(UNET, 40, epochs=3)
    chain = Replication(chain_every=3, whole_every=NEVER)
    trainer = recovering(world, job, UNET, replication=chain)
    report = trained(trainer, job, at=10, act=kill_all(world, "a", "b"))
    assert report.recoveries[-1].resumed_step == 0
    assert_as_undisturbed(report, trainer, job)


def test_where_the_newest_step_is_nowhere_whole_the_one_before_is_used(
    world: MemoryFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replicas of step 6 and later do not arrive, and b's own state of it goes with b."""
    add_replica = Snapshots.add_replica

    def drop_late(self: Snapshots, step: int, state: State) -> None:
        if step < 6:
            add_replica(self, step, state)

    monkeypatch.setattr(Snapshots, "add_replica", drop_late)
    job = job_of(UNET, 40, epochs=3)
    kept = Replication(chain_every=3, whole_every=NEVER)
    trainer = recovering(world, job, UNET, replication=kept)
    report = trained(trainer, job, at=10, act=lambda: world.fabric.kill("b"))
    (recovery,) = report.recoveries
    assert recovery.step >= 6
    assert recovery.resumed_step == 3
    assert_as_undisturbed(report, trainer, job)


@pytest.mark.parametrize("with_checkpoints", [False, True])
def test_where_snapshots_do_not_fit_the_coordinators_copy_is_used(
    world: MemoryFleet, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, with_checkpoints: bool
) -> None:
    """It is as new as the last checkpoint, because states are copied from snapshots."""
    check = Running._check_memory

    def no_room(self: Running, program: Any) -> None:
        check(self, program)
        self._snapshots.room_bytes = 0

    monkeypatch.setattr(Running, "_check_memory", no_room)
    job = job_of(UNET, 40, epochs=3)
    trainer = recovering(world, job, UNET)
    options = {"checkpoint": tmp_path} if with_checkpoints else {}
    report = trained(trainer, job, at=11, act=lambda: world.fabric.kill("b"), **options)
    (recovery,) = report.recoveries
    assert recovery.resumed_step == (recovery.step // 4 * 4 if with_checkpoints else 0)
    assert_as_undisturbed(report, trainer, job)


def test_a_spare_device_takes_part_where_devices_were_measured() -> None:
    job = job_of(MLP, 40, epochs=4)
    with memory_fleet("a", "b", "c") as world:
        trainer = ew.PipelineTrainer(
            MLP.model(), MLP.loss, optimizer=SGD, fleet=world.fleet, n_microbatches=4, seed=job.seed
        )
        plan = trainer.prepare(job.data, batch_size=job.batch_size)
        trainer.plan = replace(plan_of(("b",), (), n_units(MLP)), replication=Replication(2, 4))
        report = trained(trainer, job, at=11, act=lambda: world.fabric.kill("b"))
    assert plan.devices  # whichever
    assert lost_of(report) == [("b",)]
    assert set(report.recoveries[0].left) == {"a", "c"}
    assert set(report.plan.devices) <= {"a", "c"}
    assert_as_undisturbed(report, trainer, job)


def test_when_nobody_is_left_the_run_ends_and_the_weights_here_are_of_one_step(
    world: MemoryFleet,
) -> None:
    job = job_of(UNET, 40, epochs=5)
    whole = Replication(chain_every=NEVER, whole_every=STEPS_AN_EPOCH)
    trainer = recovering(world, job, UNET, replication=whole)
    with pytest.raises(ew.DeviceLost) as lost:
        trained(trainer, job, at=16, act=kill_all(world, "a", "b", "c"))
    assert lost.value.device in ("a", "b", "c")
    assert_whole(trainer, job)


def assert_whole(trainer: ew.PipelineTrainer, job: Job) -> None:
    """The weights are those after some epochs, which is where copies were made."""
    after = [train_eagerly(replace(job, epochs=n), torch_optimizer(SGD)) for n in (1, 2, 3, 4)]
    states = [job.model.state_dict(), *(reference.state for reference in after)]
    assert [] in [differing(trainer.state_dict(), state) for state in states]


def test_when_those_left_cannot_hold_the_model_the_run_ends_with_the_numbers() -> None:
    job = job_of(UNET, 40, epochs=5)
    with memory_fleet("a", "b", "c", memory_limits=limits_of(UNET)) as world:
        whole = Replication(chain_every=NEVER, whole_every=STEPS_AN_EPOCH)
        trainer = recovering(world, job, UNET, replication=whole)
        with pytest.raises(ew.PlanError) as refused:
            trained(trainer, job, at=16, act=lambda: world.fabric.kill("b"))
        wait_until(lambda: free(world) >= {"a", "c"}, "those left are free")
    assert " needs " in str(refused.value)
    assert "(limit: " in str(refused.value)
    assert_whole(trainer, job)


def limits_of(example: Example) -> dict[str, int]:
    """What the three stages made by hand need, and nothing that a fourth unit would."""
    needed: dict[str, int] = {}
    with memory_fleet("a", "b", "c", memory_limits=dict.fromkeys("abc", 1 << 40)) as world:
        job = job_of(example, 12, epochs=1)
        weighed: list[tuple[str, int]] = []
        check = Running._check_memory

        def note(self: Running, program: Any) -> None:
            check(self, program)
            room = self._snapshots.room_bytes
            assert room is not None
            weighed.append((self._place.settings.name, (1 << 40) - room))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Running, "_check_memory", note)
            trained(recovering(world, job, example), job, at=NEVER, act=lambda: None)
        needed.update(weighed)
    return needed


def test_without_recovery_a_loss_ends_the_run_and_no_state_is_copied(
    world: MemoryFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_copy(*_arguments: object) -> None:
        raise AssertionError("a state was kept")

    monkeypatch.setattr(Snapshots, "add", no_copy)
    job = job_of(MLP, 40, epochs=4)
    with pytest.raises(ew.DeviceLost) as lost:
        trained(
            recovering(world, job, MLP, recover=False),
            job,
            at=11,
            act=lambda: world.fabric.kill("b"),
        )
    assert lost.value.device == "b"
    assert free(world) >= {"a", "c"}
