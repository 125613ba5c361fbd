"""Resuming: the run goes on as if it had never stopped, to the last bit, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch.utils.data import TensorDataset

import edgeweave as ew
from edgeweave.train import checkpoint as checkpoints
from tests.fleet.worlds import plan_of
from tests.models import Example
from tests.train.interrupted import Interrupted, Stop, stop
from tests.train.reference import differing
from tests.train.trained_models import CNN, DROPOUT_MLP, MLP, n_units

SGD = ew.Optimizer("SGD", lr=0.05, momentum=0.9)
ADAM = ew.Optimizer("Adam", lr=0.01)
STEP = ew.LRSchedule("StepLR", interval="step", step_size=3, gamma=0.7)
PLATEAU = ew.LRSchedule("ReduceLROnPlateau", patience=0, threshold=10.0, factor=0.1)
BATCH = 12


def trainer_of(
    fleet: ew.Fleet, example: Example = MLP, *, seed: int = 3, **options: Any
) -> ew.PipelineTrainer:
    options.setdefault("optimizer", SGD)
    options.setdefault("plan", plan_of(("a", "b", "c"), (1, 3), n_units(example)))
    return ew.PipelineTrainer(
        example.model(),
        example.loss,
        fleet=fleet,
        n_microbatches=4,
        seed=seed,
        **options,
    )


def fit(trainer: ew.PipelineTrainer, data: Any, **options: Any) -> ew.Report:
    options = {"batch_size": BATCH, "epochs": 2, "progress": False, **options}
    return trainer.fit(data, **options)


CASES = {
    "momentum": (MLP, {"optimizer": SGD}),
    "adam": (MLP, {"optimizer": ADAM, "clip_grad_norm": 0.5}),
    "batch norm": (CNN, {"optimizer": SGD}),
    "schedule per step": (MLP, {"optimizer": SGD, "lr_schedule": STEP}),
    "schedule by validation": (MLP, {"optimizer": ADAM, "lr_schedule": PLATEAU}),
}


MIDDLE, END_OF_EPOCH = 2, 4


@pytest.mark.parametrize(
    ("case", "kept"),
    [(case, kept) for case in CASES for kept in (MIDDLE, END_OF_EPOCH)],
)
def test_a_resumed_run_equals_one_that_never_stopped(
    fleet: ew.Fleet, tmp_path: Path, case: str, kept: int
) -> None:
    example, options = CASES[case]
    data = TensorDataset(*example.batch(40))  # four batches an epoch
    validate = TensorDataset(*example.batch(10, seed=8))
    whole = trainer_of(fleet, example, **options)
    report = fit(whole, data, validate=validate, checkpoint=tmp_path, checkpoint_every=2)
    for path in tmp_path.iterdir():
        if int(path.name.removeprefix("step-")) > kept:
            shutil.rmtree(path)
    resumed = trainer_of(fleet, example, **options)
    again = fit(resumed, data, validate=validate, checkpoint=tmp_path, resume=True)
    assert again.step_losses == report.step_losses
    assert differing(resumed.state_dict(), whole.state_dict()) == []
    assert [(e.loss, e.validation) for e in again.epochs] == [
        (e.loss, e.validation) for e in report.epochs
    ]
    assert again.n_samples == sum(([12, 12, 12, 4] * 2)[kept:])


@pytest.mark.slow
@pytest.mark.wire
def test_a_resumed_run_with_dropout_equals_one_that_never_stopped(
    local_fleet: ew.Fleet, tmp_path: Path
) -> None:
    data = TensorDataset(*DROPOUT_MLP.batch(40))
    plan = plan_of(("a", "b"), (3,), n_units(DROPOUT_MLP))
    options: dict[str, Any] = {"lr_schedule": STEP, "optimizer": ADAM, "plan": plan}
    whole = trainer_of(local_fleet, DROPOUT_MLP, **options)
    report = fit(whole, data, epochs=2, checkpoint=tmp_path, checkpoint_every=3)
    for step in (4, 6, 8):
        shutil.rmtree(tmp_path / f"step-{step:08d}")
    resumed = trainer_of(local_fleet, DROPOUT_MLP, **options)
    again = fit(resumed, data, epochs=2, checkpoint=tmp_path, resume=True)
    assert again.step_losses == report.step_losses
    assert differing(resumed.state_dict(), whole.state_dict()) == []


def test_a_run_that_was_interrupted_resumes_from_its_last_checkpoint(
    fleet: ew.Fleet, tmp_path: Path
) -> None:
    data = TensorDataset(*MLP.batch(40))
    whole = trainer_of(fleet)
    report = fit(whole, data)
    with pytest.raises(Stop):
        fit(
            trainer_of(fleet),
            Interrupted(data, at=7, act=stop),
            checkpoint=tmp_path,
            checkpoint_every=1,
        )
    resumed = trainer_of(fleet)
    again = fit(resumed, data, checkpoint=tmp_path, resume=True)
    assert 0 < again.n_samples < 80
    assert again.step_losses == report.step_losses
    assert differing(resumed.state_dict(), whole.state_dict()) == []


def test_a_checkpoint_is_written_every_so_many_steps_and_after_each_epoch(
    fleet: ew.Fleet, tmp_path: Path
) -> None:
    fit(
        trainer_of(fleet),
        TensorDataset(*MLP.batch(40)),
        epochs=2,
        checkpoint=tmp_path,
        checkpoint_every=3,
    )
    assert sorted(int(path.name[5:]) for path in tmp_path.iterdir()) == [3, 4, 6, 8]


def test_a_finished_run_resumes_to_nothing_more_and_longer_ones_go_on(
    fleet: ew.Fleet, tmp_path: Path
) -> None:
    data = TensorDataset(*MLP.batch(24))
    first = fit(trainer_of(fleet), data, epochs=2, checkpoint=tmp_path)
    again = trainer_of(fleet)
    nothing = fit(again, data, epochs=2, checkpoint=tmp_path, resume=True)
    assert (nothing.n_samples, nothing.step_losses) == (0, first.step_losses)
    longer = trainer_of(fleet)
    report = fit(longer, data, epochs=3, checkpoint=tmp_path, resume=True)
    whole = trainer_of(fleet)
    assert report.step_losses == fit(whole, data, epochs=3).step_losses
    assert differing(longer.state_dict(), whole.state_dict()) == []


def test_the_names_in_a_checkpoint_are_those_of_the_users_model(
    fleet: ew.Fleet, tmp_path: Path
) -> None:
    trainer = trainer_of(fleet, CNN)
    fit(trainer, TensorDataset(*CNN.batch(24)), epochs=1, checkpoint=tmp_path)
    saved = safetensors.torch.load_file(tmp_path / "step-00000002" / "model.safetensors")
    model = CNN.model()
    model.load_state_dict(saved, strict=False)
    trained = {n: t for n, t in trainer.state_dict().items() if n in saved}
    assert differing(saved, trained) == []
    assert set(dict(model.named_parameters())) <= set(saved)


@pytest.fixture(scope="module")
def written(
    shared_memory_fleet: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TensorDataset]:
    """A checkpoint in the middle of the first epoch."""
    directory = tmp_path_factory.mktemp("run")
    data = TensorDataset(*MLP.batch(40))
    fit(
        trainer_of(shared_memory_fleet.fleet),
        data,
        epochs=1,
        checkpoint=directory,
        checkpoint_every=2,
    )
    shutil.rmtree(directory / "step-00000004")
    return directory, data


def refusal(fleet: ew.Fleet, written: tuple[Path, Any], **options: Any) -> str:
    directory, data = written
    batch_size = options.pop("batch_size", BATCH)
    with pytest.raises(ew.CheckpointError) as refused:
        fit(
            trainer_of(fleet, **options),
            data,
            checkpoint=directory,
            resume=True,
            batch_size=batch_size,
        )
    return str(refused.value)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 4}, "seed now 4, then 3"),
    "batch size": (
        {"batch_size": 8},
        "batch_size now 8, then 12; microbatch_size now 2, then 3",
    ),
    "optimizer": ({"optimizer": ADAM}, f"optimizer now {ADAM!r}, then {SGD!r}"),
    "schedule": ({"lr_schedule": STEP}, f"lr_schedule now {STEP!r}, then None"),
    "clipping": ({"clip_grad_norm": 1.0}, "clip_grad_norm now 1.0, then None"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_other_settings_are_refused_and_named(
    fleet: ew.Fleet, written: tuple[Path, Any], other: str
) -> None:
    options, difference = OTHERS[other]
    assert refusal(fleet, written, **options) == (
        f"a run resumes with the settings it began with ({written[0]}: {difference}). "
        "Pass the same ones."
    )


def test_another_data_set_is_refused(fleet: ew.Fleet, written: tuple[Path, Any]) -> None:
    shorter = TensorDataset(*MLP.batch(39))
    assert "(" + f"{written[0]}: samples now 39, then 40)" in refusal(fleet, (written[0], shorter))


def test_another_model_is_refused(fleet: ew.Fleet, written: tuple[Path, Any]) -> None:
    wider = torch.nn.Sequential(
        torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.Linear(8, 5)
    )
    trainer = ew.PipelineTrainer(
        wider,
        MLP.loss,
        optimizer=SGD,
        fleet=fleet,
        plan=plan_of(("a",), (), 4),
        n_microbatches=4,
        seed=3,
    )
    with pytest.raises(ew.CheckpointError) as refused:
        fit(trainer, written[1], checkpoint=written[0], resume=True)
    assert str(refused.value) == (
        f"the checkpoint in {written[0]} is of another model (0.bias, 0.weight, 12.bias differ). "
        "Pass the model it was made with."
    )


def test_an_empty_directory_is_refused(fleet: ew.Fleet, tmp_path: Path) -> None:
    data = TensorDataset(*MLP.batch(24))
    assert refusal(fleet, (tmp_path, data)) == (
        f"{tmp_path} holds no checkpoint (step-XXXXXXXX). Check the path, or start without "
        "--resume."
    )


def test_resuming_without_a_directory_is_refused(fleet: ew.Fleet) -> None:
    with pytest.raises(ew.ConfigError) as refused:
        fit(trainer_of(fleet), TensorDataset(*MLP.batch(24)), resume=True)
    assert str(refused.value) == "resume needs a checkpoint directory. Pass checkpoint=."


def test_a_disk_that_is_full_ends_the_run_and_leaves_the_last_checkpoint(
    fleet: ew.Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = TensorDataset(*MLP.batch(40))
    write, n_written = checkpoints._write, 0

    def fill_up(path: Path, content: bytes) -> None:
        nonlocal n_written
        n_written += 1
        if n_written == 5:  # the second file of the second checkpoint
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(checkpoints, "_write", fill_up)
    with pytest.raises(ew.CheckpointError, match=r"^the checkpoint of step 2 cannot be written"):
        fit(trainer_of(fleet), data, checkpoint=tmp_path, checkpoint_every=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    resumed = trainer_of(fleet)
    assert fit(resumed, data, checkpoint=tmp_path, resume=True).n_samples == 80 - 12
