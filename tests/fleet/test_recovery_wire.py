"""Real processes die in the middle of a run, and it ends with the numbers of one device."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psutil
import pytest
import torch

import edgeweave as ew
from edgeweave.plan import Plan, Replication
from tests.fleet.worlds import assert_gone, family_of, plan_of
from tests.models import Example
from tests.train.reference import Job, Reference, assert_equal_runs, job_of, train_eagerly
from tests.train.test_trainer_equality import BOUNDARIES, SGD, torch_optimizer, train_uncut
from tests.train.trained_models import DROPOUT_MLP, UNET, n_units

pytestmark = [pytest.mark.wire, pytest.mark.timeout(180)]

DEVICES = ("a", "b", "c")
KILLED_AT = 9
KILLED = [
    (UNET, "b"),
    pytest.param(DROPOUT_MLP, "a", marks=pytest.mark.slow),
    pytest.param(UNET, "c", marks=pytest.mark.slow),
]


def trainer_of(fleet: ew.Fleet, job: Job, plan: Plan) -> ew.PipelineTrainer:
    return ew.PipelineTrainer(
        copy.deepcopy(job.model),
        job.loss,
        optimizer=SGD,
        fleet=fleet,
        plan=replace(plan, replication=Replication(chain_every=2, whole_every=4)),
        n_microbatches=job.n_microbatches,
        seed=job.seed,
    )


@pytest.mark.parametrize(
    ("example", "victim"), KILLED, ids=lambda value: getattr(value, "name", value)
)
def test_a_killed_process_is_done_without_and_the_numbers_stay(
    example: Example, victim: str
) -> None:
    job = job_of(example, 40, epochs=5)
    plan = plan_of(DEVICES, BOUNDARIES[example.name], n_units(example))
    family: list[psutil.Process] = []
    chaos = ew.Chaos().kill(victim, at_step=KILLED_AT)
    with ew.Fleet.local([ew.Device(name) for name in DEVICES], chaos=chaos) as fleet:
        for name in DEVICES:
            family.extend(family_of(fleet.pid(name)))
        trainer = trainer_of(fleet, job, plan)
        report = trainer.fit(job.data, batch_size=job.batch_size, epochs=job.epochs, progress=False)
        left = {fleet.greet(name).run for name in DEVICES if name != victim}
    (recovery,) = report.recoveries
    assert recovery.lost == (victim,)
    assert KILLED_AT <= recovery.step < job.epochs * 4
    assert 0 < recovery.resumed_step <= recovery.step
    assert report.plan.devices == tuple(name for name in DEVICES if name != victim)
    assert [record.what for record in report.chaos] == [f"kill {victim}"]
    assert left == {None}
    assert_gone(family)
    expected: Reference
    if example is DROPOUT_MLP:
        expected = train_uncut(job, torch_optimizer(SGD))
    else:
        expected = train_eagerly(job, torch_optimizer(SGD))
    assert_equal_runs(report, trainer.state_dict(), expected)


class SlowlyRead:
    """The same samples; from batch ``since`` on each takes a while, until ``is_back`` says so."""

    def __init__(self, data: Any, since: int, is_back: Callable[[], bool]) -> None:
        self._data = data
        self._since = since
        self._is_back = is_back
        self._n_read = 0

    def __len__(self) -> int:
        return len(self._data)

    def batch(self, indices: torch.Tensor) -> Any:
        self._n_read += 1
        if self._n_read > self._since and not self._is_back():
            time.sleep(0.2)
        return self._data[indices]


@pytest.mark.slow
def test_a_process_that_was_killed_and_started_again_takes_its_place_in_the_run() -> None:
    job = job_of(UNET, 40, epochs=40)
    plan = plan_of(DEVICES, BOUNDARIES[UNET.name], n_units(UNET))
    chaos = ew.Chaos().restart("b", at_step=KILLED_AT, for_seconds=0.5)
    family: list[psutil.Process] = []
    with ew.Fleet.local([ew.Device(name) for name in DEVICES], chaos=chaos) as fleet:
        first = fleet.pid("b")
        for name in DEVICES:
            family.extend(family_of(fleet.pid(name)))
        trainer = trainer_of(fleet, job, plan)

        def is_back() -> bool:
            return "b" in fleet.present() and fleet.greet("b").run is not None

        report = trainer.fit(
            SlowlyRead(job.data, KILLED_AT + 3, is_back),
            batch_size=job.batch_size,
            epochs=job.epochs,
            progress=False,
        )
        assert fleet.pid("b") != first
        family.extend(family_of(fleet.pid("b")))
        assert {fleet.greet(name).run for name in DEVICES} == {None}
    assert [recovery.lost for recovery in report.recoveries] == [("b",)]
    assert report.plan.devices == DEVICES
    assert [record.what for record in report.chaos] == ["restart b", "end of restart b"]
    assert_gone(family)
    assert_equal_runs(report, trainer.state_dict(), train_eagerly(job, torch_optimizer(SGD)))


@pytest.mark.slow
def test_of_two_processes_that_cannot_reach_each_other_one_is_done_without() -> None:
    job = job_of(UNET, 40, epochs=5)
    plan = plan_of(DEVICES, BOUNDARIES[UNET.name], n_units(UNET))
    chaos = ew.Chaos().link_down("b", "c", both=True, at_step=KILLED_AT)
    with ew.Fleet.local([ew.Device(name) for name in DEVICES], chaos=chaos) as fleet:
        trainer = trainer_of(fleet, job, plan)
        report = trainer.fit(job.data, batch_size=job.batch_size, epochs=job.epochs, progress=False)
        assert {fleet.greet(name).run for name in DEVICES} == {None}
    (recovery,) = report.recoveries
    assert recovery.lost == ("c",)  # a reaches b, and nobody in this plan c
    assert report.plan.devices == ("a", "b")
    assert_equal_runs(report, trainer.state_dict(), train_eagerly(job, torch_optimizer(SGD)))
