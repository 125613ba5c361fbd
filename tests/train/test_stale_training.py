"""``async-1f1b`` over a fleet equals the same versions in one process, bit for bit."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

import edgeweave as ew
from edgeweave.codec import uniform
from edgeweave.core.errors import CheckpointError, ConfigError
from edgeweave.data.batches import Batch
from edgeweave.plan import Plan, older_versions
from edgeweave.program import VersionedStage, capture, cut, without_outputs
from edgeweave.train.codec_watch import CodecWatch
from edgeweave.train.run import PipelineRun
from tests.fleet.worlds import MemoryFleet, memory_fleet, plan_of
from tests.models import Example
from tests.train.reference import Job, assert_equal_runs, differing, job_of, train_eagerly
from tests.train.stale_reference import Staleness, train_with_stale_weights
from tests.train.test_trainer_equality import fit, torch_optimizer
from tests.train.trained_models import CNN, MLP, TIED, n_units

SGD = ew.Optimizer("SGD", lr=0.05, momentum=0.9)
NAMES = ("a", "b", "c", "d")
BOUNDARIES = {
    ("mlp", 2): (3,),
    ("mlp", 3): (2, 5),
    ("mlp", 4): (1, 3, 5),
    ("cnn", 2): (2,),
    ("cnn", 3): (1, 3),
    ("cnn", 4): (1, 2, 3),
}


@pytest.fixture(scope="module")
def four() -> Iterator[MemoryFleet]:
    with memory_fleet(*NAMES) as world:
        yield world


def stages_of(example: Example, n_stages: int) -> dict[str, int]:
    """By name of a parameter, the stage that holds it."""
    return _stages_of(example.name, n_stages)


@functools.cache
def _stages_of(name: str, n_stages: int) -> dict[str, int]:
    example = {each.name: each for each in (MLP, CNN)}[name]
    captured = capture(example.model(), example.loss, *example.batch(4))
    boundaries = BOUNDARIES.get((example.name, n_stages), ())
    stages = cut(without_outputs(captured.program), boundaries)
    return {spec.name: index for index, each in enumerate(stages) for spec in each.trainable}


def stale_job(example: Example, n_microbatches: int, *, n_steps: int = 5) -> Job:
    """Steps of so many microbatches of 3 samples; the last step of an epoch has one of 2."""
    batch_size = 3 * n_microbatches
    n_samples = (n_steps - 1) * batch_size + 2
    return job_of(example, n_samples, batch_size=batch_size, n_microbatches=n_microbatches)


def plan(example: Example, job: Job, n_stages: int, *, extra: int = 0) -> Plan:
    boundaries = BOUNDARIES.get((example.name, n_stages), ())
    made = plan_of(
        NAMES[:n_stages],
        boundaries,
        n_units(example),
        schedule="async-1f1b",
        n_microbatches=job.n_microbatches,
    )
    return dataclasses.replace(made, extra_in_flight=extra)


def trainer_of(
    job: Job, example: Example, fleet: ew.Fleet, n_stages: int, *, extra: int = 0, **options: Any
) -> ew.PipelineTrainer:
    return ew.PipelineTrainer(
        copy.deepcopy(job.model),
        job.loss,
        optimizer=SGD,
        fleet=fleet,
        plan=plan(example, job, n_stages, extra=extra),
        n_microbatches=job.n_microbatches,
        seed=job.seed,
        **options,
    )


def staleness(example: Example, n_stages: int, **options: Any) -> Staleness:
    return Staleness(stages_of(example, n_stages), n_stages, **options)


@pytest.mark.parametrize("n_microbatches", [1, 2, 4])
@pytest.mark.parametrize("n_stages", [2, 3, 4])
@pytest.mark.parametrize("example", [MLP, CNN], ids=lambda example: example.name)
def test_losses_weights_and_statistics_are_those_of_the_same_versions_in_one_process(
    four: MemoryFleet, example: Example, n_stages: int, n_microbatches: int
) -> None:
    job = stale_job(example, n_microbatches)
    trainer = trainer_of(job, example, four.fleet, n_stages)
    report = fit(trainer, job)
    expected = train_with_stale_weights(job, torch_optimizer(SGD), staleness(example, n_stages))
    assert_equal_runs(report, trainer.state_dict(), expected)
    assert list(report.step_losses) != train_eagerly(job, torch_optimizer(SGD)).step_losses


@pytest.mark.parametrize(("n_microbatches", "extra"), [(1, 1), (3, 2), (2, 4)])
def test_more_in_flight_is_more_stale_by_as_much_as_the_rule_says(
    four: MemoryFleet, n_microbatches: int, extra: int
) -> None:
    job = stale_job(MLP, n_microbatches)
    trainer = trainer_of(job, MLP, four.fleet, 3, extra=extra)
    report = fit(trainer, job)
    expected = train_with_stale_weights(job, torch_optimizer(SGD), staleness(MLP, 3, extra=extra))
    assert_equal_runs(report, trainer.state_dict(), expected)


def test_one_stage_is_plain_training(four: MemoryFleet) -> None:
    job = job_of(CNN, 40, validation=TensorDataset(*CNN.batch(14, seed=9)))
    trainer = trainer_of(job, CNN, four.fleet, 1)
    report = fit(trainer, job)
    expected = train_eagerly(job, torch_optimizer(SGD))
    assert_equal_runs(report, trainer.state_dict(), expected)
    found = [each.validation for each in report.epochs]
    assert [each.loss for each in found if each is not None] == [
        loss for loss, _ in expected.validations
    ]


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("n_microbatches", [1, 3])
def test_aggregation_takes_the_mean_of_a_stage_s_last_versions(
    four: MemoryFleet, n_microbatches: int, every: int
) -> None:
    job = stale_job(CNN, n_microbatches, n_steps=7)
    trainer = trainer_of(job, CNN, four.fleet, 3, weight_aggregation=every)
    report = fit(trainer, job)
    expected = train_with_stale_weights(
        job, torch_optimizer(SGD), staleness(CNN, 3, aggregation=every)
    )
    assert_equal_runs(report, trainer.state_dict(), expected)
    without = train_with_stale_weights(job, torch_optimizer(SGD), staleness(CNN, 3))
    assert differing(trainer.state_dict(), without.state) != []


def test_without_stashing_the_numbers_are_others(
    four: MemoryFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VersionedStage, "leave_version", lambda stage, *, keep=False: None)
    job = job_of(MLP, 48, n_microbatches=2)
    trainer = trainer_of(job, MLP, four.fleet, 3)
    fit(trainer, job)
    expected = train_with_stale_weights(job, torch_optimizer(SGD), staleness(MLP, 3))
    assert differing(trainer.state_dict(), expected.state) != []


@pytest.mark.parametrize("n_microbatches", [1, 2, 4])
def test_stages_hold_as_many_microbatches_and_versions_as_promised(
    four: MemoryFleet, monkeypatch: pytest.MonkeyPatch, n_microbatches: int
) -> None:
    held: dict[int, list[tuple[int, int]]] = {}
    forward, leave = VersionedStage.forward, VersionedStage.leave_version

    def note(stage: VersionedStage) -> None:
        index = stages_of(MLP, 4)[next(iter(stage.parameters))]
        held.setdefault(index, []).append((stage.n_in_flight, stage.n_older_versions))

    def noted_forward(stage: VersionedStage, *args: Any, **options: Any) -> Any:
        result = forward(stage, *args, **options)
        note(stage)
        return result

    def noted_leave(stage: VersionedStage, *, keep: bool = False) -> None:
        leave(stage, keep=keep)
        note(stage)

    monkeypatch.setattr(VersionedStage, "forward", noted_forward)
    monkeypatch.setattr(VersionedStage, "leave_version", noted_leave)
    job = job_of(MLP, 120, n_microbatches=n_microbatches)
    fit(trainer_of(job, MLP, four.fleet, 4), job)
    for stage in range(4):
        assert max(in_flight for in_flight, _ in held[stage]) == 4 - stage
        most = older_versions("async-1f1b", 3 - stage, n_microbatches, 0)
        assert max(older for _, older in held[stage]) == most


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_every_step_has_the_learning_rate_of_its_number(four: MemoryFleet, interval: Any) -> None:
    schedule = ew.LRSchedule("StepLR", interval=interval, step_size=1, gamma=0.7)
    job = job_of(MLP, 48, epochs=3)
    trainer = trainer_of(job, MLP, four.fleet, 3, lr_schedule=schedule)
    report = fit(trainer, job)
    expected = train_with_stale_weights(
        job,
        torch_optimizer(SGD),
        staleness(MLP, 3),
        make_schedule=lambda own: torch.optim.lr_scheduler.StepLR(own, 1, gamma=0.7),
        interval=interval,
    )
    assert_equal_runs(report, trainer.state_dict(), expected)


def test_an_evaluation_sees_the_weights_after_all_updates(four: MemoryFleet) -> None:
    job = job_of(CNN, 48, validation=TensorDataset(*CNN.batch(14, seed=9)))
    report = fit(trainer_of(job, CNN, four.fleet, 3), job)
    expected = train_with_stale_weights(job, torch_optimizer(SGD), staleness(CNN, 3))
    found = [each.validation for each in report.epochs]
    assert [each.loss for each in found if each is not None] == [
        loss for loss, _ in expected.validations
    ]


def test_a_checkpoint_is_a_flush_and_a_resumed_run_goes_on_alike(
    four: MemoryFleet, tmp_path: Path
) -> None:
    job = stale_job(MLP, 2, n_steps=7)
    options: dict[str, Any] = {"weight_aggregation": 2}
    whole = trainer_of(job, MLP, four.fleet, 3, **options)
    report = fit(whole, job, checkpoint=tmp_path / "whole", checkpoint_every=3)
    rule = staleness(MLP, 3, aggregation=2, checkpoint_every=3)
    assert_equal_runs(
        report, whole.state_dict(), train_with_stale_weights(job, torch_optimizer(SGD), rule)
    )
    kept = sorted(each for each in (tmp_path / "whole").iterdir() if each.is_dir())
    for later in kept[2:]:
        for path in later.iterdir():
            path.unlink()
        later.rmdir()
    resumed = trainer_of(job, MLP, four.fleet, 3, **options)
    again = fit(resumed, job, checkpoint=tmp_path / "whole", checkpoint_every=3, resume=True)
    assert again.step_losses == report.step_losses
    assert differing(resumed.state_dict(), whole.state_dict()) == []


def test_a_run_is_not_resumed_under_another_aggregation(four: MemoryFleet, tmp_path: Path) -> None:
    job = job_of(MLP, 24, epochs=1)
    fit(trainer_of(job, MLP, four.fleet, 2), job, checkpoint=tmp_path)
    other = trainer_of(job, MLP, four.fleet, 2, weight_aggregation=2)
    with pytest.raises(CheckpointError, match="weight_aggregation now 2, then None"):
        fit(other, job, checkpoint=tmp_path, resume=True)


def test_a_norm_over_all_stages_is_refused_before_anything_is_measured(four: MemoryFleet) -> None:
    job = job_of(MLP, 24)
    with pytest.raises(ConfigError, match=r"clip_grad_norm needs all stages' gradients .*'1f1b'"):
        trainer_of(job, MLP, four.fleet, 2, clip_grad_norm=1.0)


def test_tied_weights_in_two_stages_are_refused(four: MemoryFleet) -> None:
    job = job_of(TIED, 24)
    made = plan_of(("a", "b"), (2,), n_units(TIED), schedule="async-1f1b")
    trainer = ew.PipelineTrainer(
        copy.deepcopy(job.model),
        job.loss,
        optimizer=SGD,
        fleet=four.fleet,
        plan=made,
        n_microbatches=4,
    )
    with pytest.raises(ConfigError, match=r"embed\.weight in stage 0 on a and stage 1 on b"):
        fit(trainer, job)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_aggregation": 0}, "a number of updates, 1 or more (got 0)"),
        ({"weight_aggregation": 2, "schedule": "1f1b"}, "goes with the schedule 'async-1f1b'"),
    ],
)
def test_an_aggregation_that_cannot_be_is_refused(
    four: MemoryFleet, options: dict[str, Any], message: str
) -> None:
    told: dict[str, Any] = {"schedule": "async-1f1b", **options}
    with pytest.raises(ConfigError) as refused:
        ew.PipelineTrainer(MLP.model(), MLP.loss, optimizer=SGD, fleet=four.fleet, **told)
    assert message in str(refused.value)


@pytest.mark.wire
def test_over_processes_the_numbers_are_the_same(local_fleet: ew.Fleet) -> None:
    job = stale_job(CNN, 3)
    trainer = trainer_of(job, CNN, local_fleet, 3, weight_aggregation=3)
    report = fit(trainer, job)
    rule = staleness(CNN, 3, aggregation=3)
    assert_equal_runs(
        report, trainer.state_dict(), train_with_stale_weights(job, torch_optimizer(SGD), rule)
    )


def test_a_comparison_of_gradients_is_a_flush(
    four: MemoryFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    cosines = []

    def before(watch: CodecWatch, run: PipelineRun, step: int, batch: Batch) -> None:
        if step % 2 == 0:
            cosines.append(run.compare(step, batch).cosine)

    monkeypatch.setattr(CodecWatch, "before", before)
    job = stale_job(MLP, 2)
    trainer = trainer_of(job, MLP, four.fleet, 3)
    report = fit(trainer, job)
    assert cosines == pytest.approx([1.0] * 5)
    # Epochs of 5 steps: in the second one the flushes are before its second and fourth.
    rule = staleness(MLP, 3, checkpoint_every=2)
    expected = train_with_stale_weights(job, torch_optimizer(SGD), rule)
    assert_equal_runs(report, trainer.state_dict(), expected)


def test_coded_links_carry_a_stream_too_and_alike_every_time(four: MemoryFleet) -> None:
    job = stale_job(CNN, 2)
    runs = []
    for _ in range(2):
        trainer = trainer_of(job, CNN, four.fleet, 3, codec=uniform(8))
        runs.append((fit(trainer, job).step_losses, trainer.state_dict()))
    (losses, state), (again, other) = runs
    assert losses == again
    assert differing(state, other) == []
    exact = train_with_stale_weights(job, torch_optimizer(SGD), staleness(CNN, 3)).step_losses
    assert list(losses) != exact
    assert list(losses) == pytest.approx(exact, rel=0.1)
