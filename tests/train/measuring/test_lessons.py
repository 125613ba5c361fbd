"""What a profile and a run teach: units and stages, of real devices that were steady."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import edgeweave as ew
from edgeweave.device import StageTiming
from edgeweave.predict import unit_features
from edgeweave.predict.learning import Lessons
from edgeweave.program import capture
from edgeweave.train import Experience
from edgeweave.train.measuring import lessons as lessons_module
from edgeweave.train.measuring.lessons import RunTimings, Teacher, Thinned
from tests.fleet.worlds import memory_fleet, plan_of
from tests.train import slowed
from tests.train.trained_models import MLP, n_units


def timings_of(*seconds: float) -> RunTimings:
    timings = RunTimings()
    for each in seconds:
        timings.step({"pi-a": StageTiming(each, 2 * each)})
    return timings


def test_the_median_after_warming_up_is_what_a_steady_device_takes() -> None:
    found = timings_of(9.0, 9.0, 9.0, 1.0, 1.01, 0.99, 1.0, 5.0, 1.0, 1.0, 1.02, 1.0).steady()
    assert found == {"pi-a": StageTiming(1.0, 2.0)}


def test_a_device_that_got_slower_teaches_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert timings_of(*[1.0] * 20, *[1.5] * 10).steady() == {}
    assert caplog.messages == ["nothing is learnt of pi-a: its speed changed during the run"]


def test_a_long_run_is_judged_as_a_whole_and_takes_no_more_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lessons_module, "_MOST_TIMINGS", 32)
    slower = [1.0 + 0.00005 * number for number in range(1000)]
    steady = timings_of(*slower).steady()["pi-a"]
    assert steady.forward_seconds == pytest.approx(1.025, abs=0.005)
    assert timings_of(*[1.0] * 600, *[1.5] * 400).steady() == {}
    thinned = Thinned()
    for each in slower:
        thinned.add(StageTiming(each, each))
    assert 16 <= len(thinned.kept) < 32
    assert [each.forward_seconds for each in thinned.kept] == slower[::64]


@pytest.mark.parametrize("seconds", [[1.0] * 11, [0.0] * 40, []])
def test_too_few_steps_and_clocks_that_are_too_coarse_teach_nothing(seconds: list[float]) -> None:
    assert timings_of(*seconds).steady() == {}


def trained(fleet: ew.Fleet, experience: Experience) -> ew.PipelineTrainer:
    trainer = ew.PipelineTrainer(
        MLP.model(),
        MLP.loss,
        optimizer=slowed.SGD,
        fleet=fleet,
        n_microbatches=2,
        experience=experience,
    )
    trainer.fit(TensorDataset(*MLP.batch(8)), batch_size=8, epochs=1, progress=False)
    return trainer


def lessons(fleet: ew.Fleet, experience: Experience) -> dict[str, Lessons]:
    return {d: experience.lessons(d, fleet.greet(d).facts) for d in fleet.devices}


def test_real_devices_teach_the_units_of_their_profile() -> None:
    experience = Experience(None)
    with memory_fleet("a", "b") as world:
        trainer = trained(world.fleet, experience)
        found = lessons(world.fleet, experience)
    assert trainer.costs is not None
    assert trainer.measured is not None
    features = list(unit_features(*trainer.measured).values())
    for device in trainer.costs.devices:
        (profiled,) = found[device.device].waiting  # one step is no run to learn from
        assert tuple(each.forward_seconds for each in profiled) == device.forward_seconds
        for measurement, rows in zip(profiled, features, strict=True):
            assert (measurement.rows == rows).all()


def test_emulated_devices_teach_nothing(local_fleet: ew.Fleet) -> None:
    experience = Experience(None)
    trained(local_fleet, experience)
    assert all(each == Lessons() for each in lessons(local_fleet, experience).values())


def test_a_run_teaches_each_of_its_stages_as_one_sum() -> None:
    experience = Experience(None)
    with memory_fleet("a", "b") as world:
        inputs, target = MLP.batch(8)
        program = capture(MLP.model(), MLP.loss, inputs, target).program
        plan = plan_of(("a", "b"), (2,), n_units(MLP))
        taken = {device: StageTiming(0.5, 1.5) for device in plan.devices}
        Teacher(experience, world.fleet).teach_stages(program, 4, plan, taken)
        found = lessons(world.fleet, experience)
    features = list(unit_features(program, 4).values())
    for stage in plan.stages:
        ((summed,),) = found[stage.device].waiting
        assert (summed.forward_seconds, summed.backward_seconds) == (0.5, 1.5)
        units = np.concatenate(features[stage.first_unit : stage.stop_unit])
        assert (summed.rows == units).all()


class Aside(nn.Module):
    """A head between two others that the loss does not look at."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.aside, self.last = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(self.first(x))
        return self.aside(x), self.last(x)


def test_a_stage_whose_work_no_loss_needs_teaches_nothing() -> None:
    experience = Experience(None)
    program = capture(
        Aside(),
        lambda outputs, target: cross_entropy(outputs[1], target),
        torch.randn(8, 8),
        torch.zeros(8, dtype=torch.long),
    ).program
    n_operators = [len(rows) for rows in unit_features(program, 4).values()]
    assert n_operators[1] == 0
    with memory_fleet("a", "b", "c") as world:
        plan = plan_of(("a", "b", "c"), (1, 2), len(n_operators))
        taken = {device: StageTiming(0.5, 1.5) for device in plan.devices}
        Teacher(experience, world.fleet).teach_stages(program, 4, plan, taken)
        found = lessons(world.fleet, experience)
    assert [len(found[device].waiting) for device in plan.devices] == [1, 0, 1]
