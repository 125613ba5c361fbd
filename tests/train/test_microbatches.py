"""The number of microbatches where nobody gives it: what is chosen, measured, kept and told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import edgeweave as ew
from edgeweave.plan import DeviceCosts, from_json, to_json
from edgeweave.program import Captured, capture, cut
from edgeweave.train.measuring import measurements
from edgeweave.train.measuring.measurements import Measurements
from edgeweave.train.microbatches import choose_microbatches
from tests.fleet.worlds import memory_fleet, plan_of
from tests.models import Example
from tests.train.reference import differing, evaluate_eagerly, job_of, train_eagerly
from tests.train.trained_models import CNN, MLP, n_units

SGD = ew.Optimizer("SGD", lr=0.05, momentum=0.9)
BATCH = 24


class Devices:
    """What the devices of a fleet would measure: a fixed time for each unit, and one a sample."""

    def __init__(self) -> None:
        self.overhead_seconds = 0.0
        self.slow_above = 10_000
        self.asked: list[tuple[int, int]] = []

    def profile(
        self,
        fleet: ew.Fleet,
        captured: Captured,
        names: Sequence[str],
        *,
        microbatch_size: int,
        optimizer: ew.Optimizer,
        repetitions: int,
    ) -> dict[str, DeviceCosts]:
        size = microbatch_size
        self.asked.append((size, repetitions))
        each = self.overhead_seconds + size * (1.0 if size <= self.slow_above else 10.0)
        times = (each,) * len(cut(captured.program, ())[0].unit_numbers)
        return {name: DeviceCosts(name, times, times, None) for name in names}

    @property
    def sizes(self) -> list[int]:
        return [size for size, _ in self.asked]


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Devices:
    """Instead of what they really take, which no test can tell."""
    devices = Devices()
    monkeypatch.setattr(measurements, "profile_devices", devices.profile)
    return devices


def trainer_of(fleet: ew.Fleet, example: Example = MLP, **options: Any) -> ew.PipelineTrainer:
    return ew.PipelineTrainer(
        example.model(), example.loss, optimizer=SGD, fleet=fleet, seed=3, **options
    )


def fit(trainer: ew.PipelineTrainer, data: Any, **options: Any) -> ew.Report:
    return trainer.fit(data, **{"batch_size": BATCH, "epochs": 2, "progress": False, **options})


def data_of(n_samples: int, example: Example = MLP) -> TensorDataset:
    return TensorDataset(*example.batch(n_samples))


class Watched:
    """A data set that remembers how many samples were read at once."""

    def __init__(self, data: TensorDataset) -> None:
        self._data = data
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self._data)

    def batch(self, indices: torch.Tensor) -> Any:
        self.read.append(len(indices))
        return self._data[indices]


def test_devices_without_overhead_get_many_microbatches_and_others_few(
    fleet: ew.Fleet, devices: Devices
) -> None:
    many = trainer_of(fleet).prepare(data_of(24), batch_size=BATCH)
    devices.overhead_seconds = 1000.0
    few = trainer_of(fleet).prepare(data_of(24), batch_size=BATCH)
    assert many.n_microbatches >= 8
    assert few.n_microbatches == 1


def test_two_sizes_are_measured_and_the_chosen_one(fleet: ew.Fleet, devices: Devices) -> None:
    devices.overhead_seconds = 1000.0
    trainer = trainer_of(fleet)
    plan = trainer.prepare(data_of(256), batch_size=256)
    assert [each.microbatch_size for each in trainer.tried] == [256, 128, 64, 32, 16]
    assert devices.asked == [(16, 8), (64, 4), (256, 3)]
    assert plan.n_microbatches == 1
    assert trainer.measured is not None
    assert trainer.measured[1] == 256
    assert trainer.prepare(data_of(256), batch_size=256) is plan
    assert len(devices.asked) == 3


def test_a_choice_that_was_too_hopeful_is_made_again(fleet: ew.Fleet, devices: Devices) -> None:
    devices.overhead_seconds, devices.slow_above = 1000.0, 64
    trainer = trainer_of(fleet)
    plan = trainer.prepare(data_of(256), batch_size=256)
    assert devices.sizes[:3] == [16, 64, 256]
    assert 256 // plan.n_microbatches in devices.sizes
    assert plan.n_microbatches > 1
    best = min(each.step_seconds for each in trainer.tried if each.step_seconds is not None)
    assert plan.step_seconds <= 1.03 * best


def test_the_chosen_number_trains_as_one_device_would_with_it(fleet: ew.Fleet) -> None:
    trainer = trainer_of(fleet)
    report = fit(trainer, data_of(48))
    n_microbatches = report.plan.n_microbatches
    assert n_microbatches in [each.n_microbatches for each in trainer.tried]
    job = job_of(MLP, 48, batch_size=BATCH, n_microbatches=n_microbatches)
    expected = train_eagerly(
        job, lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    )
    assert list(report.step_losses) == expected.step_losses
    assert differing(trainer.state_dict(), expected.state) == []


def test_a_number_is_a_number_and_nothing_else_is_tried(fleet: ew.Fleet, devices: Devices) -> None:
    trainer = trainer_of(fleet, n_microbatches=5)
    plan = trainer.prepare(data_of(24), batch_size=BATCH)
    assert plan.n_microbatches == 5
    assert (devices.sizes, trainer.tried) == ([5], ())


def test_a_resumed_run_keeps_its_microbatches_whatever_would_be_chosen_now(
    fleet: ew.Fleet, devices: Devices, tmp_path: Path
) -> None:
    data, options = data_of(192, CNN), {"batch_size": 64}
    devices.overhead_seconds = 1000.0
    whole = trainer_of(fleet, CNN)
    report = fit(whole, data, checkpoint=tmp_path, checkpoint_every=1, **options)
    for path in tmp_path.iterdir():
        if int(path.name.removeprefix("step-")) > 4:
            shutil.rmtree(path)
    devices.overhead_seconds, devices.asked = 0.0, []
    resumed = trainer_of(fleet, CNN)
    assert resumed.prepare(data, **options).n_microbatches != report.plan.n_microbatches
    again = fit(resumed, data, checkpoint=tmp_path, resume=True, **options)
    assert devices.sizes[-1] == 64 // report.plan.n_microbatches
    assert again.n_samples == 2 * 64
    assert again.step_losses == report.step_losses
    assert differing(resumed.state_dict(), whole.state_dict()) == []


def test_who_prepares_for_resuming_measures_that_size_alone(
    fleet: ew.Fleet, devices: Devices, tmp_path: Path
) -> None:
    devices.overhead_seconds = 1000.0
    fit(trainer_of(fleet), data_of(48), epochs=1, checkpoint=tmp_path)
    devices.overhead_seconds, devices.asked = 0.0, []
    resumed = trainer_of(fleet)
    plan = resumed.prepare(data_of(48), batch_size=BATCH, resume=tmp_path)
    report = fit(resumed, data_of(48), checkpoint=tmp_path, resume=True)
    assert report.plan is plan
    assert devices.sizes == [BATCH]


def test_a_plan_of_another_number_does_not_resume_a_run(fleet: ew.Fleet, tmp_path: Path) -> None:
    given = [plan_of(("a",), (), n_units(MLP), n_microbatches=n) for n in (2, 3)]
    fit(trainer_of(fleet, plan=given[0]), data_of(48), epochs=1, checkpoint=tmp_path)
    with pytest.raises(ew.CheckpointError, match=r"microbatch_size now 8, then 12"):
        fit(trainer_of(fleet, plan=given[1]), data_of(48), checkpoint=tmp_path, resume=True)


@pytest.mark.parametrize("kept", ["", "0", "-3", "many", "9" * 5000])
def test_a_checkpoint_of_no_size_is_refused(fleet: ew.Fleet, tmp_path: Path, kept: str) -> None:
    given = plan_of(("a",), (), n_units(MLP))
    fit(trainer_of(fleet, plan=given), data_of(24), epochs=1, checkpoint=tmp_path)
    path = tmp_path / "step-00000001" / "trainer.json"
    written = json.loads(path.read_text())
    written["settings"]["microbatch_size"] = kept
    path.write_text(json.dumps(written))
    with pytest.raises(ew.CheckpointError, match="says how many samples a microbatch has"):
        fit(trainer_of(fleet), data_of(24), checkpoint=tmp_path, resume=True)


def test_a_plan_carries_its_number_through_a_file(fleet: ew.Fleet, devices: Devices) -> None:
    chosen = trainer_of(fleet)
    plan = chosen.prepare(data_of(48), batch_size=BATCH)
    saved = trainer_of(fleet, plan=from_json(to_json(plan)))
    assert fit(saved, data_of(48)).step_losses == fit(chosen, data_of(48)).step_losses
    assert saved.costs is None


def test_evaluation_keeps_the_size_and_other_batches_get_their_own(
    fleet: ew.Fleet, devices: Devices
) -> None:
    devices.overhead_seconds = 2.0
    trainer = trainer_of(fleet)
    plan = trainer.prepare(data_of(48), batch_size=BATCH)
    size = -(-BATCH // plan.n_microbatches)
    assert 1 < size < BATCH
    job = job_of(MLP, 40, batch_size=size, n_microbatches=1)
    for batch_size in (BATCH, 40):
        watched = Watched(job.data)
        found = trainer.evaluate(watched, batch_size=batch_size)
        assert set(watched.read) <= {size, 40 % size}
        eager = evaluate_eagerly(job.model, job, job.data)[0]
        assert found.loss == pytest.approx(eager, rel=1e-6)  # agents here have threads of their own
    other = trainer.prepare(data_of(48), batch_size=2)
    assert other is not plan
    assert other.n_microbatches <= 2


def test_batch_norm_is_given_at_least_16_samples(fleet: ew.Fleet, devices: Devices) -> None:
    for example, least in ((MLP, 4), (CNN, 16)):
        trainer = trainer_of(fleet, example)
        trainer.prepare(data_of(64, example), batch_size=64)
        assert min(each.microbatch_size for each in trainer.tried) == least
    trainer = trainer_of(fleet, CNN)
    assert trainer.prepare(data_of(12, CNN), batch_size=12).n_microbatches == 1


class Narrowing(nn.Module):
    """What is left of a picture at the last BatchNorm is one number for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 8)
        self.norm = nn.BatchNorm2d(4)
        self.classify = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(self.norm(self.conv(x)).flatten(1))


def test_batch_norm_over_one_number_of_each_sample_is_never_given_one_sample(
    devices: Devices,
) -> None:
    example = Example("narrowing", Narrowing, CNN.loss, CNN.sample)
    with memory_fleet("a", "b", memory_limits={"a": 400, "b": 400}) as tiny:
        trainer = trainer_of(tiny.fleet, example)
        with pytest.raises(ew.PlanError, match="fits the memory of 2 devices"):
            trainer.prepare(data_of(8, example), batch_size=8)
    assert devices.sizes == [2]


def test_no_device_measures_more_than_its_memory_holds(devices: Devices) -> None:
    limit = 200_000  # the whole model with microbatches of 16, not of 32
    captured = capture(CNN.model(), CNN.loss, *CNN.batch(4))
    devices.overhead_seconds = 1000.0
    with memory_fleet("a", "b", memory_limits={"a": limit, "b": limit}) as small:
        found = choose_microbatches(
            Measurements(small.fleet, captured, optimizer=SGD), 64, schedule="1f1b"
        )
        assert max(devices.sizes) == 16
    assert found.tried[0].step_seconds is None
    assert all(stage.memory_bytes <= limit for stage in found.plan.stages)


def test_below_16_samples_batch_norm_works_where_nothing_else_fits(devices: Devices) -> None:
    limit = 60_000
    with memory_fleet("a", "b", memory_limits={"a": limit, "b": limit}) as small:
        trainer = trainer_of(small.fleet, CNN)
        plan = trainer.prepare(data_of(64, CNN), batch_size=64)
    assert 64 // plan.n_microbatches < 16
    assert all(stage.memory_bytes <= limit for stage in plan.stages)
