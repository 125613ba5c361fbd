"""Training with coded cuts: exact where nothing is coded, and compared seed by seed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks import convergence, convergence_table
from benchmarks.coded_stages import Batch, CodedStages
from benchmarks.convergence_tasks import TASKS
from benchmarks.convergence_training import Effort, Look, Training
from edgeweave.codec import Codec, none, uniform
from edgeweave.program import Moment, capture, cut, without_outputs

_MOMENT = Moment(step=3, microbatch=0)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Linear(32, 4))


def batch() -> Batch:
    chance = torch.Generator().manual_seed(1)
    return torch.randn(16, 8, generator=chance), torch.arange(16) % 4


def stages(codec: Codec, *, seed: int = 0) -> CodedStages:
    captured = capture(model(), cross_entropy, *batch())
    program = without_outputs(captured.program)
    others = program.unit_numbers[1:]
    return CodedStages(cut(program, others[:2]), captured.state, codec, seed=seed)


def exact_gradient() -> torch.Tensor:
    whole = model()
    inputs, target = batch()
    cross_entropy(whole(inputs), target).backward()
    return torch.cat([each.grad.flatten() for each in whole.parameters() if each.grad is not None])


def test_with_no_coding_the_gradient_is_that_of_the_uncut_model() -> None:
    assert torch.equal(stages(none()).gradient(batch(), _MOMENT), exact_gradient())


def test_with_coding_it_is_near() -> None:
    exact = exact_gradient()
    error = (stages(uniform(8)).gradient(batch(), _MOMENT) - exact).norm() / exact.norm()
    assert 0 < error < 0.05


def test_a_gradient_is_rounded_as_seed_and_moment_say() -> None:
    coded = stages(uniform(4)).gradient(batch(), _MOMENT)
    assert torch.equal(coded, stages(uniform(4)).gradient(batch(), _MOMENT))
    assert not torch.equal(coded, stages(uniform(4)).gradient(batch(), Moment(4, 0)))
    assert not torch.equal(coded, stages(uniform(4)).gradient(batch(), Moment(3, 1)))
    assert not torch.equal(coded, stages(uniform(4), seed=1).gradient(batch(), _MOMENT))


def test_stages_with_another_codec_have_the_same_weights_and_leave_the_first_alone() -> None:
    learning = stages(uniform(4))
    torch.optim.SGD(learning.parameters, lr=0.1).zero_grad()
    learning.learn(batch(), _MOMENT)
    before = [each.grad for each in learning.parameters]
    with torch.no_grad():
        learning.parameters[0].add_(1.0)
    copied = learning.with_codec(none())
    assert torch.equal(copied.parameters[0], learning.parameters[0])
    copied.learn(batch(), _MOMENT)
    assert all(mine is its.grad for mine, its in zip(before, learning.parameters, strict=True))


def test_an_evaluation_codes_nothing() -> None:
    inputs, target = batch()
    expected = cross_entropy(model()(inputs), target).item()
    assert stages(uniform(2)).evaluate(batch()) == {"loss": pytest.approx(expected)}


def test_looks_are_after_the_first_step_and_at_equal_distances_to_the_last() -> None:
    effort = Effort(steps=20, looks=4)
    assert [step for step in range(20) if effort.is_look(step)] == [0, 4, 9, 14, 19]


def training(task: str, codec: Codec, seed: int, score: float) -> Training:
    looks = [
        Look(step, 2.0, {"loss": score, "accuracy": score}, 0.99, 1.01, 0.1) for step in (1, 5, 9)
    ]
    return Training(task, str(codec), seed, 9, {"loss": score, "accuracy": score}, looks, 1.0)


def test_coded_trainings_are_compared_with_those_of_the_same_seed() -> None:
    scores = {none(): (0.5, 0.7), uniform(8): (0.49, 0.72)}
    found = {
        (task, codec): [training(task, codec, seed, score) for seed, score in enumerate(each)]
        for task in TASKS
        for codec, each in scores.items()
    }
    samples = convergence._compared(found)
    assert samples["cifar10_accuracy"] == pytest.approx([50.0, 70.0])
    assert samples["cifar10_accuracy_loss_points_8bit"] == pytest.approx([1.0, -2.0])
    assert samples["shakespeare_loss_ratio_8bit"] == pytest.approx([0.98, 0.72 / 0.7])


def test_a_training_that_was_kept_is_not_done_again(tmp_path: Path) -> None:
    task, codec = TASKS["cifar10"], uniform(8)
    kept = training("cifar10", codec, 7, 0.5)
    path = tmp_path / "cifar10-8-bits-seed-7-9-steps.json"
    path.write_bytes(msgspec.json.encode(kept))
    assert convergence._kept_or_trained(task, codec, Effort(9), 7, tmp_path) == kept


def test_the_table_has_a_row_for_each_task_and_codec() -> None:
    trainings = [
        training(task, codec, seed, 0.5)
        for task in TASKS
        for codec in (none(), uniform(8))
        for seed in (0, 1)
    ]
    document = {"settings": {"trainings": [asdict(each) for each in trainings]}}
    shown = convergence_table.table(document)
    row = "| `uniform(8, 256)` | 50, 50 | 0.99000, 0.99000, 0.99000 | 1.010 to 1.010 |"
    assert f"| CIFAR-10: test accuracy, % {row}" in shown
    assert "| `none` | 50, 50 | another microbatch: 0.10000, 0.10000, 0.10000 | - |" in shown
    assert len(shown.splitlines()) == 6
    assert convergence_table.draw(document).startswith(b"\x89PNG")
