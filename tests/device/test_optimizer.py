"""Optimizers as values: torch's own steps, state that survives a move, and no compiler loaded."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from edgeweave.core.errors import ConfigError, FormatError
from edgeweave.device import (
    Optimizer,
    build,
    state_bytes_per_trainable_byte,
    step_bytes_per_trainable_byte,
)
from edgeweave.device.optimizer import StageOptimizer

OPTIONS: dict[str, dict[str, Any]] = {
    "ASGD": {"lr": 0.01},
    "Adadelta": {"lr": 0.5},
    "Adafactor": {"lr": 0.01},
    "Adagrad": {"lr": 0.01},
    "Adam": {"lr": 0.01, "betas": (0.8, 0.95)},
    "AdamW": {"lr": 0.01, "amsgrad": True},
    "Adamax": {"lr": 0.01},
    "Muon": {"lr": 0.01},
    "NAdam": {"lr": 0.01},
    "RAdam": {"lr": 0.01},
    "RMSprop": {"lr": 0.01, "momentum": 0.5, "centered": True},
    "Rprop": {"lr": 0.01},
    "SGD": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
}
AVAILABLE = sorted(name for name in OPTIONS if hasattr(torch.optim, name))


def parameters(name: str) -> dict[str, nn.Parameter]:
    """Two parameters that do not depend on when they are made; matrices where Muon wants them."""
    generator = torch.Generator().manual_seed(5)
    shapes = {"weight": (6, 4), "bias": (4, 3) if name == "Muon" else (6,)}
    return {
        key: nn.Parameter(torch.randn(shape, generator=generator)) for key, shape in shapes.items()
    }


def gradients_of(step: int, params: dict[str, nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in params.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def stepped(name: str, n_steps: int) -> tuple[dict[str, nn.Parameter], StageOptimizer]:
    params = parameters(name)
    optimizer = StageOptimizer(Optimizer(name, **OPTIONS[name]), params)
    for step in range(n_steps):
        gradients_of(step, params)
        optimizer.step({})
        optimizer.clear_gradients()
    return params, optimizer


def test_every_optimizer_of_torch_is_tested_or_refused() -> None:
    torch_has = {
        name
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    }
    assert torch_has - set(OPTIONS) == {"Optimizer", "LBFGS", "SparseAdam"}


@pytest.mark.parametrize("name", AVAILABLE)
def test_steps_equal_those_of_torch(name: str) -> None:
    found, _ = stepped(name, 4)
    expected = parameters(name)
    reference = getattr(torch.optim, name)(list(expected.values()), **OPTIONS[name])
    for step in range(4):
        gradients_of(step, expected)
        reference.step()
    for key, parameter in found.items():
        assert torch.equal(parameter, expected[key]), key
        assert parameter.grad is None


@pytest.mark.parametrize("name", AVAILABLE)
def test_a_saved_state_continues_as_if_nothing_had_happened(name: str) -> None:
    expected, _ = stepped(name, 5)
    params, optimizer = stepped(name, 3)
    moved = {key: nn.Parameter(parameter.detach().clone()) for key, parameter in params.items()}
    continued = StageOptimizer(Optimizer(name, **OPTIONS[name]), moved)
    continued.load_state(optimizer.state())
    for step in (3, 4):
        gradients_of(step, moved)
        continued.step({})
    for key, parameter in moved.items():
        assert torch.equal(parameter, expected[key]), key


@pytest.mark.parametrize("name", AVAILABLE)
def test_a_loaded_state_is_saved_as_it_was(name: str) -> None:
    params, optimizer = stepped(name, 2)
    copy = StageOptimizer(Optimizer(name, **OPTIONS[name]), params)
    copy.load_state(optimizer.state())
    before, after = (safetensors.torch.load(o.state()) for o in (optimizer, copy))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_hyperparameters_are_set_for_a_step_and_stay() -> None:
    params = parameters("Adam")
    optimizer = StageOptimizer(Optimizer("Adam", lr=0.1), params)
    expected = parameters("Adam")
    reference = torch.optim.Adam(expected.values(), lr=0.1)
    for step, (lr, beta) in enumerate([(0.5, 0.7), (0.25, 0.6)]):
        gradients_of(step, params)
        gradients_of(step, expected)
        optimizer.step({"lr": lr, "betas.0": beta, "betas.1": 0.95})
        reference.param_groups[0].update(lr=lr, betas=(beta, 0.95))
        reference.step()
    assert all(torch.equal(params[key], expected[key]) for key in params)


def test_frozen_parameters_are_left_out() -> None:
    params = parameters("SGD")
    params["weight"].requires_grad = False
    before = params["weight"].detach().clone()
    optimizer = StageOptimizer(Optimizer("SGD", lr=1.0, momentum=0.9), params)
    params["bias"].grad = torch.ones(6)
    optimizer.step({})
    assert torch.equal(params["weight"], before)
    assert list(safetensors.torch.load(optimizer.state())) == ["bias|momentum_buffer"]


def test_a_stage_without_trainable_parameters_steps_and_saves_nothing() -> None:
    optimizer = StageOptimizer(Optimizer("Adam", lr=0.1), {})
    optimizer.step({"lr": 0.2})
    optimizer.load_state(optimizer.state())
    assert safetensors.torch.load(optimizer.state()) == {}


def test_a_state_of_parameters_that_are_not_trained_here_is_refused() -> None:
    optimizer = StageOptimizer(Optimizer("Adam", lr=0.1), {})
    with pytest.raises(FormatError) as refused:
        optimizer.load_state(safetensors.torch.save({"bias|exp_avg": torch.zeros(6)}))
    assert str(refused.value) == "the optimizer's state names bias, which is not trained here."


def test_a_state_of_another_shape_is_refused() -> None:
    optimizer = StageOptimizer(Optimizer("Adam", lr=0.1), parameters("Adam"))
    data = safetensors.torch.save({"weight|exp_avg": torch.zeros(6, 5)})
    with pytest.raises(FormatError) as refused:
        optimizer.load_state(data)
    assert str(refused.value) == (
        "the optimizer's exp_avg of weight has shape (6, 5), the parameter (6, 4)."
    )


def test_a_state_that_is_no_safetensors_is_refused() -> None:
    optimizer = StageOptimizer(Optimizer("Adam", lr=0.1), parameters("Adam"))
    with pytest.raises(FormatError, match=r"^the optimizer's state is not safetensors"):
        optimizer.load_state(b"pickle")


def test_a_name_that_torch_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(ConfigError) as refused:
        build(Optimizer("Sgd", lr=0.1), [nn.Parameter(torch.zeros(1))])
    assert str(refused.value).startswith(
        "torch.optim has no optimizer 'Sgd'. Choose one of ASGD, Adadelta, "
    )


@pytest.mark.parametrize("name", ["lr_scheduler", "__name__", "Tensor", ""])
def test_a_name_of_something_else_in_torch_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^torch.optim has no optimizer"):
        build(Optimizer(name), [nn.Parameter(torch.zeros(1))])


def test_lbfgs_is_refused_with_what_to_use_instead() -> None:
    with pytest.raises(ConfigError) as refused:
        build(Optimizer("LBFGS"), [nn.Parameter(torch.zeros(1))])
    assert str(refused.value) == (
        "LBFGS needs a closure, which a pipeline has not. Choose SGD or AdamW."
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "Optimizer('SGD', lr=-1.0) is refused by torch: Invalid learning rate"),
        ({"speed": 2}, "Optimizer('SGD', speed=2) is refused by torch: "),
    ],
)
def test_options_that_torch_refuses_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build(Optimizer("SGD", **options), [nn.Parameter(torch.zeros(1))])
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (Optimizer("SGD", lr=0.1), 0.0),
        (Optimizer("SGD", lr=0.1, momentum=0.9), 1.0),
        (Optimizer("Adam", lr=0.1), 2.0),
        (Optimizer("AdamW", lr=0.1, amsgrad=True), 3.0),
    ],
    ids=repr,
)
def test_the_size_of_an_optimizers_state_is_found_by_stepping_it(
    optimizer: Optimizer, expected: float
) -> None:
    assert state_bytes_per_trainable_byte(optimizer) == expected


def test_an_optimizer_that_cannot_train_dense_gradients_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^Optimizer\('SparseAdam', lr=0.1\) cannot train dense"):
        state_bytes_per_trainable_byte(Optimizer("SparseAdam", lr=0.1))


STEPPING = """
import sys, torch
from edgeweave.device import Optimizer
from edgeweave.device.optimizer import StageOptimizer
for optimizer in (Optimizer("SGD", lr=0.1, momentum=0.9), Optimizer("Adam", lr=0.1)):
    parameter = torch.nn.Parameter(torch.ones(3))
    stage = StageOptimizer(optimizer, {"p": parameter})
    parameter.grad = torch.ones(3)
    stage.step({"lr": 0.2})
    StageOptimizer(optimizer, {"p": parameter}).load_state(stage.state())
    assert float(parameter.detach()[0]) < 1
print([name for name in sys.modules if name.startswith(("torch._dynamo", "sympy"))])
"""


def test_a_process_that_steps_sgd_and_adam_never_loads_the_compiler() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STEPPING], capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout.strip() == "[]", done.stdout


def test_building_an_optimizer_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in AVAILABLE:
            stepped(name, 1)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("SGD", {}, 3),  # p += g
        ("SGD", {"momentum": 0.9}, 8),  # m *= 0.9, m += g, p += m
        ("SGD", {"momentum": 0.9, "weight_decay": 0.1}, 11),  # and g + 0.1 p before
    ],
)
def test_a_step_moves_as_many_bytes_as_its_operators_read_and_write(
    name: str, options: dict[str, Any], expected: int
) -> None:
    assert step_bytes_per_trainable_byte(Optimizer(name, lr=0.1, **options)) == expected


def test_a_step_of_an_optimizer_with_more_state_moves_more() -> None:
    moved = [
        step_bytes_per_trainable_byte(Optimizer(name, lr=0.1))
        for name in ("SGD", "RMSprop", "Adam")
    ]
    assert moved == sorted(set(moved))
