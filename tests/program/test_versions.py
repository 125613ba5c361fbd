"""A backward uses the weights of its forward, whatever the optimizer did in between."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from edgeweave.core.errors import WireError
from edgeweave.program import Moment, VersionedStage, capture, cut, without_outputs

X = torch.linspace(-1, 1, 24).reshape(6, 4)
Y = torch.linspace(0, 2, 12).reshape(6, 2)


def model() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))


def whole_stage() -> VersionedStage:
    captured = capture(model(), mse_loss, X, Y)
    return VersionedStage(cut(without_outputs(captured.program), ())[0], captured.state)


def forward(stage: VersionedStage, microbatch: int, *, key: int | None = None) -> None:
    inputs = {"input:0": X[microbatch : microbatch + 3], "target:0": Y[microbatch : microbatch + 3]}
    stage.forward(inputs, Moment(0, microbatch), key=key)


def update(stage: VersionedStage, *, stash: bool = True) -> None:
    """A large step, so that the version makes a difference."""
    if stash:
        stage.leave_version()
    torch.optim.SGD(stage.parameters.values(), lr=0.5).step()
    for parameter in stage.parameters.values():
        parameter.grad = None


def gradients(stage: VersionedStage) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in stage.parameters.items() if p.grad is not None}


def gradients_of_a_plain_backward(microbatch: int) -> dict[str, torch.Tensor]:
    plain = model()
    part = slice(microbatch, microbatch + 3)
    mse_loss(plain(X[part]), Y[part]).backward()
    return {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}


def after_an_update_in_between(*, stash: bool) -> dict[str, torch.Tensor]:
    stage = whole_stage()
    forward(stage, 0)
    forward(stage, 1)
    stage.backward(0, {})
    update(stage, stash=stash)
    stage.backward(1, {})
    return gradients(stage)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_backward_uses_the_weights_of_its_forward_after_an_update() -> None:
    assert equal(after_an_update_in_between(stash=True), gradients_of_a_plain_backward(1))


def test_without_stashing_it_would_not() -> None:
    assert not equal(after_an_update_in_between(stash=False), gradients_of_a_plain_backward(1))


def test_a_later_forward_uses_the_newest_weights() -> None:
    stage = whole_stage()
    forward(stage, 0)
    forward(stage, 1)
    stage.backward(0, {})
    update(stage)
    newest = {name: p.detach().clone() for name, p in stage.parameters.items()}
    assert all(torch.equal(stage.version[name], newest[name]) for name in newest)
    assert any(not torch.equal(newest[n], p) for n, p in model().named_parameters())


def test_gradients_of_several_versions_add_up_in_the_parameters() -> None:
    stage = whole_stage()
    forward(stage, 0)
    stage.leave_version(keep=True)
    forward(stage, 1)
    assert stage.n_older_versions == 1
    stage.backward(0, {})
    stage.backward(1, {})
    parts = [gradients_of_a_plain_backward(microbatch) for microbatch in (0, 1)]
    assert equal(gradients(stage), {n: parts[0][n] + parts[1][n] for n in parts[0]})


def test_weights_are_copied_only_while_a_microbatch_needs_the_old_ones() -> None:
    stage = whole_stage()
    forward(stage, 0)
    stage.backward(0, {})
    memory = stage.parameters["0.weight"].data_ptr()
    update(stage)
    assert stage.parameters["0.weight"].data_ptr() == memory
    forward(stage, 0)
    forward(stage, 1)
    stage.backward(0, {})
    update(stage)
    assert stage.parameters["0.weight"].data_ptr() != memory
    assert stage.n_older_versions == 1
    stage.backward(1, {})
    assert stage.n_older_versions == 0


def test_running_statistics_are_the_newest_for_everybody() -> None:
    stage, plain = whole_stage(), model()
    for microbatch in (0, 1):
        forward(stage, microbatch)
        plain(X[microbatch : microbatch + 3])
    stage.backward(0, {})
    update(stage)
    assert torch.equal(stage.state_dict()["1.running_var"], plain.state_dict()["1.running_var"])


def test_evaluation_and_state_dict_are_of_the_newest_version() -> None:
    stage = whole_stage()
    forward(stage, 0)
    stage.leave_version()
    stage.parameters["3.bias"].data.add_(1.0)
    assert torch.equal(stage.state_dict()["3.bias"], model().state_dict()["3.bias"] + 1.0)
    with torch.no_grad():
        plain = model().eval()
        plain[3].bias.add_(1.0)
        plain[1].running_mean, plain[1].running_var = (
            stage.state_dict()[f"1.running_{name}"] for name in ("mean", "var")
        )
        expected = mse_loss(plain(X), Y)
    found = stage.evaluate({"input:0": X, "target:0": Y}).loss
    assert found is not None
    assert torch.equal(found, expected)


def test_two_steps_may_have_a_microbatch_of_one_number_in_flight() -> None:
    stage = whole_stage()
    forward(stage, 0, key=0)
    forward(stage, 0, key=100)
    stage.backward(0, {})
    assert stage.n_in_flight == 1
    with pytest.raises(WireError, match=r"in flight: \[100\]"):
        stage.backward(0, {})
    stage.backward(100, {})


def test_a_version_that_is_set_takes_the_place_of_the_parameters() -> None:
    stage = whole_stage()
    mean = {name: torch.full_like(tensor, 2.0) for name, tensor in stage.version.items()}
    stage.set_version(mean)
    assert all(torch.equal(p, mean[name]) for name, p in stage.parameters.items())
