"""Learning-rate schedules: torch's own, told the same, resumed by telling them again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from edgeweave.core.errors import ConfigError
from edgeweave.device import Optimizer
from edgeweave.train.learning_rate import LearningRate, LRSchedule

SGD = Optimizer("SGD", lr=0.1, momentum=0.9)

BY_NAME: dict[str, dict[str, Any]] = {
    "ConstantLR": {"factor": 0.5, "total_iters": 3},
    "CosineAnnealingLR": {"T_max": 5},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 2},
    "ExponentialLR": {"gamma": 0.9},
    "LinearLR": {"total_iters": 4},
    "MultiStepLR": {"milestones": [2, 4], "gamma": 0.1},
    "OneCycleLR": {"max_lr": 0.2, "total_steps": 20},
    "PolynomialLR": {"total_iters": 6},
    "StepLR": {"step_size": 2},
}


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("optimizer", [SGD, Optimizer("Adam", lr=0.1)], ids=["SGD", "Adam"])
def test_values_are_those_of_torch(name: str, optimizer: Optimizer) -> None:
    rate = LearningRate(optimizer, LRSchedule(name, interval="step", **BY_NAME[name]))
    built = getattr(torch.optim, optimizer.name)(
        [nn.Parameter(torch.zeros(1))], **optimizer.options
    )
    schedule = getattr(torch.optim.lr_scheduler, name)(built, **BY_NAME[name])
    for _ in range(8):
        group = built.param_groups[0]
        found = rate.hyperparameters()
        assert found["lr"] == group["lr"]
        if "momentum" in found:
            assert found["momentum"] == group["momentum"]
        if "betas.0" in found:
            assert (found["betas.0"], found["betas.1"]) == group["betas"]
        built.step()
        schedule.step()
        rate.advance("step")


def test_without_a_schedule_only_the_rate_travels() -> None:
    rate = LearningRate(SGD, None)
    rate.advance("step")
    rate.advance("epoch", 1.0)
    rate.check(validated=False)
    assert rate.hyperparameters() == {"lr": 0.1}
    assert rate.calls == []


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_schedule_hears_of_its_own_interval_only(interval: Any) -> None:
    rate = LearningRate(SGD, LRSchedule("ExponentialLR", interval=interval, gamma=0.5))
    rate.advance("step")
    rate.advance("step")
    rate.advance("epoch")
    assert rate.hyperparameters()["lr"] == (0.025 if interval == "step" else 0.05)
    assert len(rate.calls) == (2 if interval == "step" else 1)


@pytest.mark.parametrize("name", BY_NAME)
def test_replaying_its_calls_brings_a_schedule_to_the_same_point(name: str) -> None:
    schedule = LRSchedule(name, interval="step", **BY_NAME[name])
    before, after = LearningRate(SGD, schedule), LearningRate(SGD, schedule)
    for _ in range(5):
        before.advance("step")
    after.replay(before.calls)
    for rate in (before, after):
        rate.advance("step")
    assert after.hyperparameters() == before.hyperparameters()
    assert after.calls == before.calls


def test_a_plateau_is_replayed_with_its_losses() -> None:
    schedule = LRSchedule("ReduceLROnPlateau", patience=1, factor=0.5)
    before, after = LearningRate(SGD, schedule), LearningRate(SGD, schedule)
    for loss in (1.0, 2.0, 3.0, 0.5, 0.6):
        before.advance("epoch", loss)
    assert before.hyperparameters()["lr"] == 0.05
    after.replay(before.calls)
    for rate in (before, after):
        rate.advance("epoch", 0.7)
    assert after.hyperparameters()["lr"] == before.hyperparameters()["lr"] == 0.025


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("n_calls", [0, 1, 3, 5])
def test_a_schedule_that_went_back_moves_as_it_did(name: str, n_calls: int) -> None:
    schedule = LRSchedule(name, interval="step", **BY_NAME[name])
    rate, values = LearningRate(SGD, schedule), []
    for _ in range(5):
        values.append(rate.hyperparameters())
        rate.advance("step")
    values.append(rate.hyperparameters())
    rate.rewind(n_calls)
    for expected in values[n_calls:]:
        assert rate.hyperparameters() == expected
        rate.advance("step")


def test_a_plateau_goes_back_to_the_losses_it_had_heard_of() -> None:
    schedule = LRSchedule("ReduceLROnPlateau", patience=1, factor=0.5)
    rate = LearningRate(SGD, schedule)
    for loss in (1.0, 2.0, 3.0, 4.0, 5.0):
        rate.advance("epoch", loss)
    assert rate.hyperparameters()["lr"] == 0.025
    rate.rewind(2)
    assert (rate.hyperparameters()["lr"], rate.calls) == (0.1, [1.0, 2.0])
    rate.advance("epoch", 3.0)
    assert rate.hyperparameters()["lr"] == 0.05


def test_a_rate_without_a_schedule_has_nowhere_to_go_back_from() -> None:
    rate = LearningRate(SGD, None)
    rate.rewind(0)
    assert rate.hyperparameters() == {"lr": 0.1}


@pytest.mark.parametrize(("interval", "validated"), [("epoch", False), ("step", True)])
def test_a_plateau_without_validation_is_refused_before_training(
    interval: Any, validated: bool
) -> None:
    schedule = LRSchedule("ReduceLROnPlateau", interval=interval)
    with pytest.raises(ConfigError) as refused:
        LearningRate(SGD, schedule).check(validated=validated)
    assert str(refused.value) == (
        f"{schedule!r} needs a validation loss after every epoch. "
        "Use interval='epoch', and pass validate= to fit()."
    )


def test_a_schedule_that_is_over_says_so() -> None:
    schedule = LRSchedule("OneCycleLR", interval="step", max_lr=0.1, total_steps=2)
    rate = LearningRate(SGD, schedule)
    rate.advance("step")
    rate.advance("step")
    with pytest.raises(ConfigError) as over:
        rate.advance("step")
    assert str(over.value).startswith(f"{schedule!r} does not go on: Tried to step ")


@pytest.mark.parametrize("name", ["Steplr", "Optimizer", "__doc__", "math", ""])
def test_a_schedule_that_torch_lacks_is_refused(name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        LearningRate(SGD, LRSchedule(name))
    assert str(refused.value) == (
        f"torch.optim.lr_scheduler has no {name!r}. "
        "See its documentation for names, such as StepLR or CosineAnnealingLR."
    )


def test_options_that_torch_refuses_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"StepLR', interval='epoch'\) is refused by torch: "):
        LearningRate(SGD, LRSchedule("StepLR"))


def test_an_interval_is_a_step_or_an_epoch() -> None:
    with pytest.raises(ConfigError, match=r"^interval is 'epoch' or 'step' \(got 'batch'\)\.$"):
        LRSchedule("StepLR", interval="batch")  # type: ignore[arg-type]


def test_a_schedule_is_shown_as_it_is_written() -> None:
    shown = repr(LRSchedule("StepLR", interval="step", step_size=2))
    assert shown == "LRSchedule('StepLR', interval='step', step_size=2)"
