"""Every kind of job goes on after a loss with the numbers of one device, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import edgeweave as ew
from edgeweave.plan import Replication
from tests.fleet.worlds import memory_fleet
from tests.models import Example
from tests.train.interrupted import Interrupted
from tests.train.reference import Job, assert_equal_runs, differing, job_of, train_eagerly
from tests.train.test_recovery import assert_as_undisturbed, recovering, trained
from tests.train.test_trainer_equality import SGD, torch_optimizer
from tests.train.trained_models import CNN, MLP, TIED, UNET, accuracy

STEPS_AN_EPOCH = 4
"""Of 40 samples in batches of 12, the last of them smaller."""
CHAIN = Replication(chain_every=3, whole_every=1000)
"""Copies do not come at the ends of epochs."""


def recovered(
    job: Job, example: Example, *, victim: str = "b", at: int = 11, **options: Any
) -> tuple[ew.Report, ew.PipelineTrainer]:
    """A run that loses ``victim`` when batch ``at`` is read, and says so."""
    with memory_fleet("a", "b", "c") as world:
        trainer = recovering(world, job, example, **options)
        report = trained(trainer, job, at=at, act=lambda: world.fabric.kill(victim))
    assert [recovery.lost for recovery in report.recoveries] == [(victim,)]
    assert victim not in report.plan.devices
    return report, trainer


@pytest.mark.parametrize(
    "optimizer",
    [
        ew.Optimizer("AdamW", lr=0.01, amsgrad=True),
        ew.Optimizer("SGD", lr=0.1),
        ew.Optimizer("RMSprop", lr=0.005, centered=True),
    ],
    ids=lambda optimizer: optimizer.name,
)
def test_what_an_optimizer_keeps_survives_a_loss(optimizer: ew.Optimizer) -> None:
    job = job_of(MLP, 40, epochs=4)
    report, trainer = recovered(job, MLP, optimizer=optimizer)
    assert report.recoveries[0].resumed_step > 0
    assert_as_undisturbed(report, trainer, job, optimizer)


def test_clipping_by_the_norm_of_all_stages_goes_on_with_fewer_of_them() -> None:
    job = job_of(CNN, 40, epochs=4, clip_grad_norm=0.1)
    report, trainer = recovered(job, CNN)
    assert_as_undisturbed(report, trainer, job)


SCHEDULES = [
    ew.LRSchedule("StepLR", step_size=1, gamma=0.5),
    ew.LRSchedule("OneCycleLR", interval="step", max_lr=0.1, total_steps=16),
    ew.LRSchedule("ReduceLROnPlateau", patience=0, threshold=10.0, factor=0.1),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
def test_a_run_that_goes_back_across_the_end_of_an_epoch_takes_its_rate_along(
    schedule: ew.LRSchedule,
) -> None:
    """A device is gone when the third epoch begins: 8 steps are done, and 6 are kept."""
    validation = TensorDataset(*MLP.batch(14, seed=9))
    job = job_of(MLP, 40, epochs=4, validation=validation)
    report, trainer = recovered(
        job, MLP, at=2 * STEPS_AN_EPOCH + 2, lr_schedule=schedule, replication=CHAIN
    )
    (recovery,) = report.recoveries
    assert recovery.resumed_step < 2 * STEPS_AN_EPOCH <= recovery.step
    assert recovery.recomputed_steps >= 2
    kind = getattr(torch.optim.lr_scheduler, schedule.name)
    expected = train_eagerly(
        job,
        torch_optimizer(SGD),
        make_schedule=lambda built: kind(built, **schedule.options),
        interval=schedule.interval,
    )
    assert_equal_runs(report, trainer.state_dict(), expected)
    found = [epoch.validation for epoch in report.epochs]
    assert [each.loss for each in found if each] == [loss for loss, _ in expected.validations]
    assert [(epoch.epoch, epoch.step) for epoch in report.epochs] == [
        (n, (n + 1) * STEPS_AN_EPOCH) for n in range(job.epochs)
    ]


def test_metrics_of_an_epoch_that_was_done_twice_are_counted_once() -> None:
    job = job_of(MLP, 40, epochs=4, metrics={"accuracy": accuracy})
    report, _trainer = recovered(job, MLP, at=2 * STEPS_AN_EPOCH + 2, replication=CHAIN)
    expected = train_eagerly(job, torch_optimizer(SGD))
    assert [epoch.metrics for epoch in report.epochs] == [
        pytest.approx(metrics) for metrics in expected.epoch_metrics
    ]
    assert len(report.step_losses) == report.epochs[-1].step == 16


@pytest.mark.parametrize("victim", ["a", "b", "c"])
def test_frozen_parameters_and_running_statistics_survive_a_loss(victim: str) -> None:
    job = job_of(CNN, 40, epochs=4)
    for parameter in (*job.model.conv1.parameters(), job.model.conv2.weight):
        parameter.requires_grad_(False)
    report, trainer = recovered(job, CNN, victim=victim, boundaries=(1, 2))
    assert_as_undisturbed(report, trainer, job)
    assert not torch.equal(trainer.state_dict()["norm2.running_mean"], torch.zeros(6))


def test_the_schedule_stays_gpipe() -> None:
    job = job_of(UNET, 40, epochs=4)
    report, trainer = recovered(job, UNET, schedule="gpipe")
    assert report.plan.schedule == "gpipe"
    assert_as_undisturbed(report, trainer, job)


@pytest.mark.parametrize("victim", ["a", "b", "c"])
def test_a_tied_embedding_goes_on_to_the_order_of_sums(victim: str) -> None:
    """Both its stages may become one, which adds its gradients in another order."""
    job = job_of(TIED, 40, epochs=4)
    report, trainer = recovered(job, TIED, victim=victim)
    expected = train_eagerly(job, torch_optimizer(SGD))
    assert list(report.step_losses) == pytest.approx(expected.step_losses, rel=1e-5)
    state = trainer.state_dict()
    for name, tensor in expected.state.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-6)
    assert torch.equal(state["head.weight"], state["embed.weight"])


def test_a_loss_before_the_first_copy_begins_anew() -> None:
    job = job_of(MLP, 40, epochs=2)
    report, trainer = recovered(job, MLP, at=3, replication=Replication(1000, 1000))
    assert report.recoveries[0].resumed_step == 0
    assert_as_undisturbed(report, trainer, job)


def test_a_loss_during_evaluation_evaluates_anew() -> None:
    job = job_of(CNN, 40, epochs=3, validation=TensorDataset(*CNN.batch(30, seed=9)))
    with memory_fleet("a", "b", "c") as world:
        trainer = recovering(world, job, CNN)
        assert job.validation is not None
        validate = Interrupted(job.validation, at=14, act=lambda: world.fabric.kill("b"))
        report = trainer.fit(
            job.data,
            batch_size=job.batch_size,
            epochs=job.epochs,
            validate=validate,
            progress=False,
        )
    (recovery,) = report.recoveries
    assert recovery.step == 2 * STEPS_AN_EPOCH
    expected = train_eagerly(job, torch_optimizer(SGD))
    assert_equal_runs(report, trainer.state_dict(), expected)
    found = [epoch.validation.loss for epoch in report.epochs if epoch.validation]
    assert found == [loss for loss, _ in expected.validations]


def test_checkpoints_written_after_a_recovery_are_resumed_bit_for_bit(tmp_path: Any) -> None:
    job = job_of(UNET, 40, epochs=5)
    with memory_fleet("a", "b", "c") as world:
        first = recovering(world, job, UNET)
        begun = replace(job, epochs=3)
        report = trained(
            first, begun, at=7, act=lambda: world.fabric.kill("b"), checkpoint=tmp_path
        )
        second = recovering(world, job, UNET, devices=("c", "a"), boundaries=(3,))
        resumed = second.fit(
            job.data,
            batch_size=job.batch_size,
            epochs=job.epochs,
            checkpoint=tmp_path,
            resume=True,
            progress=False,
        )
    assert len(report.recoveries) == 1
    assert resumed.recoveries == ()
    assert len(resumed.step_seconds) == 2 * (STEPS_AN_EPOCH - 1)  # full steps of two epochs
    assert_as_undisturbed(resumed, second, job)


def test_training_goes_on_from_recovered_weights_in_another_call() -> None:
    job = job_of(MLP, 40, epochs=2)
    with memory_fleet("a", "b", "c") as world:
        trainer = recovering(world, job, MLP)
        trained(trainer, job, at=6, act=lambda: world.fabric.kill("c"))
        half = trainer.state_dict()
        trainer.plan = recovering(world, job, MLP, devices=("a", "b"), boundaries=(3,)).plan
        trained(trainer, job, at=999, act=lambda: None)
    expected = train_eagerly(job, torch_optimizer(SGD))
    assert differing(half, expected.state) == []
    again = replace(job, model=_with(job.model, half))
    assert differing(trainer.state_dict(), train_eagerly(again, torch_optimizer(SGD)).state) == []


def _with(model: nn.Module, state: dict[str, torch.Tensor]) -> nn.Module:
    model.load_state_dict(state)
    return model
