"""The claim: a model trained over several devices has the numbers of one device, bit for bit."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.utils.data import TensorDataset

import edgeweave as ew
from edgeweave.program import Moment, StageProgram, capture, cut, flatten_inputs, without_outputs
from edgeweave.train.run import PipelineRun
from tests.fleet.worlds import memory_fleet, plan_of
from tests.models import ZOO, Example
from tests.train.reference import (
    Job,
    Reference,
    assert_equal_runs,
    differing,
    epoch_indices,
    evaluate_eagerly,
    job_of,
    train_eagerly,
)
from tests.train.trained_models import CNN, DROPOUT_MLP, MLP, TIED, UNET, TiedLM, accuracy, n_units

SGD = ew.Optimizer("SGD", lr=0.05, momentum=0.9)
BOUNDARIES = {"mlp": (2, 5), "cnn": (1, 3), "unet": (2, 5), "tied": (1, 3), "dropout": (2, 5)}


def torch_optimizer(optimizer: ew.Optimizer) -> Any:
    """The same optimizer for the reference."""
    return lambda parameters: getattr(torch.optim, optimizer.name)(parameters, **optimizer.options)


def trainer_of(
    job: Job,
    example: Example,
    fleet: ew.Fleet,
    *,
    optimizer: ew.Optimizer = SGD,
    schedule: str = "1f1b",
    devices: tuple[str, ...] = ("a", "b", "c"),
    **options: Any,
) -> ew.PipelineTrainer:
    """A trainer with a plan made by hand, so that nothing has to be measured."""
    plan = plan_of(
        devices,
        BOUNDARIES[example.name][: len(devices) - 1],
        n_units(example),
        schedule=schedule,
        n_microbatches=job.n_microbatches,
    )
    return ew.PipelineTrainer(
        copy.deepcopy(job.model),
        job.loss,
        optimizer=optimizer,
        fleet=fleet,
        plan=plan,
        n_microbatches=job.n_microbatches,
        seed=job.seed,
        clip_grad_norm=job.clip_grad_norm,
        metrics=job.metrics,
        **options,
    )


def fit(trainer: ew.PipelineTrainer, job: Job, **options: Any) -> ew.Report:
    """Train on the job's data."""
    return trainer.fit(
        job.data,
        batch_size=job.batch_size,
        epochs=job.epochs,
        validate=job.validation,
        progress=False,
        **options,
    )


@pytest.mark.wire
@pytest.mark.parametrize(
    ("example", "devices", "schedule"),
    [
        (CNN, ("a", "b"), "gpipe"),
        (UNET, ("a", "b", "c"), "1f1b"),
        pytest.param(MLP, ("a", "b", "c"), "1f1b", marks=pytest.mark.slow),
        pytest.param(MLP, ("c", "a", "b"), "gpipe", marks=pytest.mark.slow),
        pytest.param(CNN, ("a", "b"), "1f1b", marks=pytest.mark.slow),
        pytest.param(UNET, ("b", "a", "c"), "gpipe", marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_training_over_processes_equals_a_plain_loop_bit_for_bit(
    local_fleet: ew.Fleet, example: Example, devices: tuple[str, ...], schedule: str
) -> None:
    job = job_of(example, 40)  # batches of 12, 12, 12 and 4
    trainer = trainer_of(job, example, local_fleet, schedule=schedule, devices=devices)
    report = fit(trainer, job)
    expected = train_eagerly(job, torch_optimizer(SGD))
    assert len(report.step_losses) == 8
    assert_equal_runs(report, trainer.state_dict(), expected)


@pytest.mark.parametrize(
    ("schedule", "boundaries"), [("1f1b", (2, 4)), ("gpipe", (2, 4)), ("1f1b", (2, 3, 4))]
)
def test_skip_connections_past_agents_equal_a_plain_loop_bit_for_bit(
    schedule: str, boundaries: tuple[int, ...]
) -> None:
    job, names = job_of(UNET, 40), ("a", "b", "c", "d")[: len(boundaries) + 1]
    relayed = plan_of(
        names, boundaries, n_units(UNET), schedule=schedule, n_microbatches=job.n_microbatches
    )
    with memory_fleet(*names) as world:
        trainer = ew.PipelineTrainer(
            copy.deepcopy(job.model),
            job.loss,
            optimizer=SGD,
            fleet=world.fleet,
            plan=dataclasses.replace(relayed, skips="direct"),
            n_microbatches=job.n_microbatches,
            seed=job.seed,
            clip_grad_norm=job.clip_grad_norm,
            metrics=job.metrics,
        )
        report = fit(trainer, job)
    assert_equal_runs(report, trainer.state_dict(), train_eagerly(job, torch_optimizer(SGD)))


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("example", [MLP, CNN, UNET], ids=lambda example: example.name)
def test_training_over_agents_equals_a_plain_loop_bit_for_bit(
    fleet: ew.Fleet, example: Example, schedule: str
) -> None:
    job = job_of(example, 40)
    trainer = trainer_of(job, example, fleet, schedule=schedule)
    report = fit(trainer, job)
    assert_equal_runs(report, trainer.state_dict(), train_eagerly(job, torch_optimizer(SGD)))


@pytest.mark.parametrize("size", [5, 6, 7, 10])
def test_the_compute_thread_multiplies_with_torchs_number_of_threads(
    fleet: ew.Fleet, size: int
) -> None:
    # MKL adds up products of so many rows in another order where it has a thread more.
    job = job_of(MLP, 2 * size, batch_size=size, n_microbatches=1)
    trainer = trainer_of(job, MLP, fleet)
    report = fit(trainer, job)
    expected = train_eagerly(job, torch_optimizer(SGD))
    assert_equal_runs(report, trainer.state_dict(), expected)


@pytest.mark.parametrize(
    "optimizer",
    [
        ew.Optimizer("SGD", lr=0.1),
        ew.Optimizer("SGD", lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
        ew.Optimizer("Adam", lr=0.01),
        ew.Optimizer("AdamW", lr=0.01, betas=(0.8, 0.99), amsgrad=True),
        ew.Optimizer("RMSprop", lr=0.005, centered=True),
    ],
    ids=repr,
)
def test_every_optimizer_steps_as_torch_does(fleet: ew.Fleet, optimizer: ew.Optimizer) -> None:
    job = job_of(MLP, 40)
    trainer = trainer_of(job, MLP, fleet, optimizer=optimizer)
    report = fit(trainer, job)
    expected = train_eagerly(job, torch_optimizer(optimizer))
    assert_equal_runs(report, trainer.state_dict(), expected)


@pytest.mark.parametrize(
    ("batch_size", "n_microbatches", "n_samples"),
    [(12, 4, 37), (7, 3, 20), (5, 5, 11), (8, 1, 20), (9, 4, 27)],
)
def test_batches_that_do_not_divide_are_weighted_by_their_samples(
    fleet: ew.Fleet, batch_size: int, n_microbatches: int, n_samples: int
) -> None:
    job = job_of(MLP, n_samples, batch_size=batch_size, n_microbatches=n_microbatches)
    trainer = trainer_of(job, MLP, fleet)
    report = fit(trainer, job)
    assert report.n_samples == 2 * n_samples
    assert_equal_runs(report, trainer.state_dict(), train_eagerly(job, torch_optimizer(SGD)))


SCHEDULES = [
    (ew.LRSchedule("StepLR", step_size=1, gamma=0.5), SGD),
    (ew.LRSchedule("StepLR", interval="step", step_size=2, gamma=0.7), SGD),
    (ew.LRSchedule("OneCycleLR", interval="step", max_lr=0.1, total_steps=12), SGD),
    (
        ew.LRSchedule("OneCycleLR", interval="step", max_lr=0.02, total_steps=12),
        ew.Optimizer("Adam", lr=0.01),
    ),
    (ew.LRSchedule("CosineAnnealingLR", interval="step", T_max=8), SGD),
    (ew.LRSchedule("ReduceLROnPlateau", patience=0, threshold=10.0, factor=0.1), SGD),
]


@pytest.mark.parametrize(("schedule", "optimizer"), SCHEDULES, ids=repr)
def test_learning_rate_schedules_move_as_torch_moves_them(
    fleet: ew.Fleet, schedule: ew.LRSchedule, optimizer: ew.Optimizer
) -> None:
    job = job_of(MLP, 40, epochs=3, validation=TensorDataset(*MLP.batch(14, seed=9)))
    trainer = trainer_of(job, MLP, fleet, optimizer=optimizer, lr_schedule=schedule)
    report = fit(trainer, job)
    kind = getattr(torch.optim.lr_scheduler, schedule.name)
    expected = train_eagerly(
        job,
        torch_optimizer(optimizer),
        make_schedule=lambda built: kind(built, **schedule.options),
        interval=schedule.interval,
    )
    constant = train_eagerly(job, torch_optimizer(optimizer))
    assert_equal_runs(report, trainer.state_dict(), expected)
    assert expected.step_losses != constant.step_losses


@pytest.mark.parametrize("example", [MLP, CNN], ids=lambda example: example.name)
def test_clipping_by_the_global_norm_equals_torch_bit_for_bit(
    fleet: ew.Fleet, example: Example
) -> None:
    job = job_of(example, 40, clip_grad_norm=0.1)
    trainer = trainer_of(job, example, fleet)
    report = fit(trainer, job)
    expected = train_eagerly(job, torch_optimizer(SGD))
    unclipped = train_eagerly(job_of(example, 40), torch_optimizer(SGD))
    assert_equal_runs(report, trainer.state_dict(), expected)
    assert expected.step_losses != unclipped.step_losses


def test_clipping_that_has_nothing_to_clip_changes_nothing(fleet: ew.Fleet) -> None:
    job = job_of(MLP, 24, clip_grad_norm=1e6)
    trainer = trainer_of(job, MLP, fleet)
    report = fit(trainer, job)
    assert_equal_runs(report, trainer.state_dict(), train_eagerly(job, torch_optimizer(SGD)))


@pytest.mark.wire
@pytest.mark.parametrize("schedule", ["1f1b", pytest.param("gpipe", marks=pytest.mark.slow)])
def test_dropout_over_processes_equals_the_uncut_program_and_is_off_in_evaluation(
    local_fleet: ew.Fleet, schedule: str
) -> None:
    held_out = TensorDataset(*DROPOUT_MLP.batch(17, seed=9))
    job = job_of(DROPOUT_MLP, 40, validation=held_out)
    trainer = trainer_of(job, DROPOUT_MLP, local_fleet, schedule=schedule)
    report = fit(trainer, job)
    assert_equal_runs(report, trainer.state_dict(), train_uncut(job, torch_optimizer(SGD)))
    model = copy.deepcopy(job.model)
    model.load_state_dict(trainer.state_dict())
    assert report.epochs[-1].validation is not None
    assert report.epochs[-1].validation.loss == evaluate_eagerly(model, job, held_out)[0]


def train_uncut(job: Job, make_optimizer: Any) -> Reference:
    """One stage with the whole program in this process: a cut model has no other randomness."""
    captured = capture(copy.deepcopy(job.model), job.loss, *job.data[:4])
    whole = cut(without_outputs(captured.program), ())[0]
    stage = StageProgram(whole, captured.state, seed=job.seed)
    optimizer = make_optimizer(list(stage.parameters.values()))
    done = Reference()
    for epoch in range(job.epochs):
        for indices in epoch_indices(job, epoch):
            moment_step, loss = len(done.step_losses), 0.0
            parts = indices.split(job.microbatch_size)
            for number, part in enumerate(parts):
                inputs = flatten_inputs(*job.data[part])
                result = stage.forward(inputs, Moment(moment_step, number))
                stage.backward(number, {}, loss_weight=len(part) / len(indices))
                loss += result.loss.item() * len(part)
            optimizer.step()
            optimizer.zero_grad()
            done.step_losses.append(loss / len(indices))
    done.state = {name: tensor.clone() for name, tensor in stage.state_dict().items()}
    return done


def train_tied_apart(job: Job) -> Reference:
    """The tied model with its two uses apart: their gradients are added, the last stage's first."""
    with torch.random.fork_rng():
        model = TiedLM(tie=False)
    model.load_state_dict(copy.deepcopy(job.model).state_dict())
    optimizer = torch_optimizer(SGD)(list(model.parameters()))
    done = Reference()
    for epoch in range(job.epochs):
        for indices in epoch_indices(job, epoch):
            optimizer.zero_grad()
            loss_sum = 0.0
            for part in indices.split(job.microbatch_size):
                tokens, target = job.data[part]
                loss = job.loss(model(tokens), target)
                (loss * (len(part) / len(indices))).backward()
                loss_sum += loss.item() * len(part)
            total = model.head.weight.grad + model.embed.weight.grad
            model.head.weight.grad, model.embed.weight.grad = total, total.clone()
            if job.clip_grad_norm is not None:
                once = [p for name, p in model.named_parameters() if name != "head.weight"]
                norm = nn.utils.clip_grad_norm_(once, job.clip_grad_norm)
                nn.utils.clip_grads_with_norm_([model.head.weight], job.clip_grad_norm, norm)
            optimizer.step()
            done.step_losses.append(loss_sum / len(indices))
    done.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return done


@pytest.mark.wire
@pytest.mark.parametrize(
    "clip", [0.5, pytest.param(None, marks=pytest.mark.slow)], ids=["clipped", "free"]
)
def test_a_tied_embedding_in_two_stages_equals_both_uses_apart_after_many_steps(
    local_fleet: ew.Fleet, clip: float | None
) -> None:
    job = job_of(TIED, 40, epochs=8, clip_grad_norm=clip)
    trainer = trainer_of(job, TIED, local_fleet)
    report = fit(trainer, job)
    expected = train_tied_apart(job)
    assert len(report.step_losses) == 32
    assert_equal_runs(report, trainer.state_dict(), expected)
    assert torch.equal(expected.state["head.weight"], expected.state["embed.weight"])


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_both_stages_of_a_tied_embedding_hold_equal_values(
    fleet: ew.Fleet, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[dict[str, bytes]] = []
    fetch = PipelineRun.fetch_state

    def noted(run: PipelineRun) -> Any:
        result = fetch(run)
        held.append(result[0])
        return result

    monkeypatch.setattr(PipelineRun, "fetch_state", noted)
    job = job_of(TIED, 30, epochs=4)
    fit(trainer_of(job, TIED, fleet, schedule=schedule), job)
    stages = {device: safetensors.torch.load(data) for device, data in held[-1].items()}
    assert "embed.weight" in stages["a"]
    assert torch.equal(stages["a"]["embed.weight"], stages["c"]["embed.weight"])
    assert not torch.equal(stages["a"]["embed.weight"], job.model.embed.weight)


@pytest.mark.slow
def test_a_tied_gpt2_has_equal_names_and_learns(fleet: ew.Fleet) -> None:
    example = ZOO["gpt2"]
    tokens, target = example.batch(24)
    job = Job(example.model(), example.loss, TensorDataset(tokens, target), epochs=6)
    plan = plan_of(("a", "b", "c"), (3, 12), n_units(example), n_microbatches=4)
    trainer = ew.PipelineTrainer(
        job.model, job.loss, optimizer=SGD, fleet=fleet, plan=plan, n_microbatches=4
    )
    report = fit(trainer, job)
    state = trainer.state_dict()
    assert state.keys() == job.model.state_dict().keys()
    assert torch.equal(state["lm_head.weight"], state["transformer.wte.weight"])
    assert report.step_losses[-1] < report.step_losses[0]


def test_frozen_parameters_stay_frozen_and_the_rest_trains_as_in_torch(fleet: ew.Fleet) -> None:
    job = job_of(MLP, 40)
    for name, parameter in job.model.named_parameters():
        parameter.requires_grad = not name.startswith(("0.", "6."))
    trainer = trainer_of(job, MLP, fleet)
    report = fit(trainer, job)
    state, before = trainer.state_dict(), job.model.state_dict()
    assert_equal_runs(report, state, train_eagerly(job, torch_optimizer(SGD)))
    assert torch.equal(state["0.weight"], before["0.weight"])
    assert torch.equal(state["6.bias"], before["6.bias"])
    assert not torch.equal(state["3.weight"], before["3.weight"])


def test_no_gradients_travel_to_stages_that_have_nothing_to_train(fleet: ew.Fleet) -> None:
    job = job_of(MLP, 40)
    trained = fit(trainer_of(job, MLP, fleet), job)
    for parameter in list(job.model.parameters())[:-2]:
        parameter.requires_grad = False
    report = fit(trainer_of(job, MLP, fleet), job)
    bytes_in = {device.device: device.bytes_in for device in report.devices}
    bytes_out = {device.device: device.bytes_out for device in report.devices}
    inputs = 80 * 12 * 4
    assert bytes_in["a"] == inputs
    assert bytes_in["b"] == bytes_out["a"]
    assert bytes_out["c"] == 0
    assert {d.device: d.bytes_in for d in trained.devices}["a"] > inputs


def test_training_metrics_are_means_over_the_samples_of_an_epoch(fleet: ew.Fleet) -> None:
    job = job_of(MLP, 40, metrics={"accuracy": accuracy})
    report = fit(trainer_of(job, MLP, fleet), job)
    expected = train_eagerly(job, torch_optimizer(SGD))
    for record, metrics in zip(report.epochs, expected.epoch_metrics, strict=True):
        assert record.metrics == pytest.approx(metrics, rel=1e-12)


@pytest.mark.parametrize("example", [MLP, CNN, UNET], ids=lambda example: example.name)
def test_validation_during_training_equals_the_model_in_evaluation_mode(
    fleet: ew.Fleet, example: Example
) -> None:
    held_out = TensorDataset(*example.batch(17, seed=9))
    job = job_of(example, 28, validation=held_out, metrics={"accuracy": accuracy})
    trainer = trainer_of(job, example, fleet)
    report = fit(trainer, job)
    expected = train_eagerly(job, torch_optimizer(SGD))
    found = [(e.validation.loss, e.validation.metrics) for e in report.epochs if e.validation]
    assert found == expected.validations
    assert_equal_runs(report, trainer.state_dict(), expected)


def test_evaluation_after_training_equals_the_trained_model(fleet: ew.Fleet) -> None:
    job = job_of(CNN, 28, metrics={"accuracy": accuracy})
    held_out = TensorDataset(*CNN.batch(17, seed=9))
    trainer = trainer_of(job, CNN, fleet)
    fit(trainer, job)
    model = copy.deepcopy(job.model)
    model.load_state_dict(trainer.state_dict())
    found = trainer.evaluate(held_out, batch_size=job.batch_size)
    assert (found.loss, found.metrics) == evaluate_eagerly(model, job, held_out)
    assert found.n_samples == 17


def test_evaluation_before_training_leaves_the_model_as_it_is(fleet: ew.Fleet) -> None:
    job = job_of(CNN, 28)
    trainer = trainer_of(job, CNN, fleet)
    found = trainer.evaluate(job.data, batch_size=job.batch_size)
    assert found.loss == evaluate_eagerly(job.model, job, job.data)[0]
    assert differing(trainer.state_dict(), dict(job.model.state_dict())) == []


def test_training_never_touches_the_users_own_module(fleet: ew.Fleet) -> None:
    job = job_of(CNN, 24)
    trainer = ew.PipelineTrainer(
        job.model,
        job.loss,
        optimizer=SGD,
        fleet=fleet,
        plan=plan_of(("a", "b"), (2,), n_units(CNN)),
        n_microbatches=4,
    )
    before = {name: tensor.clone() for name, tensor in job.model.state_dict().items()}
    fit(trainer, job)
    assert differing(dict(job.model.state_dict()), before) == []
    assert job.model.training
    assert all(parameter.grad is None for parameter in job.model.parameters())


def test_a_trained_state_loads_into_the_users_model_strictly(fleet: ew.Fleet) -> None:
    job = job_of(CNN, 24)
    trainer = trainer_of(job, CNN, fleet)
    fit(trainer, job)
    fresh = CNN.model()
    assert str(fresh.load_state_dict(trainer.state_dict())) == "<All keys matched successfully>"
    assert int(fresh.norm1.num_batches_tracked) == 16
