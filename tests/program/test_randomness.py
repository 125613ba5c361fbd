"""Dropout: the same numbers wherever a unit is computed, and however often."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeweave.program import Captured, Moment, StageProgram, capture
from edgeweave.program.stage import unit_seed
from tests.models import ZOO, Example, SensorLSTM, bert, gpt2, mlp
from tests.program.running import Pipeline, Trained, assert_same_training, microbatches

SIZES = (3, 3, 2)


def _dropping(name: str, build: functools.partial[nn.Module]) -> Example:
    return Example(f"{name} with dropout", build, ZOO[name].loss, ZOO[name].sample)


DROPPING = {
    "mlp": _dropping("mlp", functools.partial(mlp, dropout=0.3)),
    "bert": _dropping("bert", functools.partial(bert, dropout=0.1)),
    "gpt2": _dropping("gpt2", functools.partial(gpt2, dropout=0.1)),
}


def _short_lstm() -> Example:
    return Example(
        "lstm with dropout",
        functools.partial(SensorLSTM, dropout=0.4),
        ZOO["lstm"].loss,
        lambda n: (torch.randn(n, 9, 6), torch.randint(6, (n,))),
    )


@functools.cache
def _captured(name: str) -> Captured:
    example = _short_lstm() if name == "lstm" else DROPPING[name]
    return capture(example.model(), example.loss, *example.batch(4))


def _trained(name: str, boundaries: tuple[int, ...], sizes: tuple[int, ...] = SIZES) -> Trained:
    example = _short_lstm() if name == "lstm" else DROPPING[name]
    parts = microbatches(example.batch(sum(sizes)), sizes)
    return Pipeline(_captured(name), boundaries).train(parts)


@pytest.mark.parametrize("name", ["mlp", "bert", "lstm"])
def test_dropout_draws_the_same_numbers_however_the_model_is_cut(name: str) -> None:
    units = _captured(name).program.unit_numbers
    expected = _trained(name, ())
    for boundaries in (units[1:], units[len(units) // 2 :][:1], units[2:4]):
        assert_same_training(_trained(name, boundaries), expected)


@pytest.mark.slow
def test_dropout_beside_tied_weights_draws_the_same_numbers_over_one_microbatch() -> None:
    units = _captured("gpt2").program.unit_numbers
    assert_same_training(_trained("gpt2", units[1::3], (5,)), _trained("gpt2", (), (5,)))


def test_a_model_of_one_random_unit_draws_as_torch_does_under_the_units_seed() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    x, y = torch.randn(5, 6), torch.randint(3, (5,))
    captured = capture(model, F.cross_entropy, x, y)
    random = {n.unit for n in captured.program.nodes if "dropout" in n.op}
    stage = StageProgram(captured.program, captured.state, seed=9)
    moment = Moment(step=4, microbatch=2)
    loss = stage.forward({"input:0": x, "target:0": y}, moment).loss
    torch.manual_seed(unit_seed(9, moment, *random))
    assert torch.equal(loss, F.cross_entropy(model(x), y))


def test_a_replayed_microbatch_is_the_same_microbatch() -> None:
    batch = DROPPING["mlp"].batch(6)
    pipeline = Pipeline(_captured("mlp"), _captured("mlp").program.unit_numbers[1:])
    first = pipeline.forward(batch, Moment(3, 1)).loss
    pipeline.forward(batch, Moment(4, 0))
    assert torch.equal(pipeline.forward(batch, Moment(3, 1)).loss, first)


def test_every_step_and_microbatch_draws_its_own_numbers() -> None:
    batch = DROPPING["mlp"].batch(6)
    pipeline = Pipeline(_captured("mlp"))
    losses = {
        float(pipeline.forward(batch, Moment(step, microbatch)).loss)
        for step in range(3)
        for microbatch in range(3)
    }
    assert len(losses) == 9


def test_another_seed_of_the_run_draws_other_numbers() -> None:
    captured, (x, y) = _captured("mlp"), DROPPING["mlp"].batch(6)
    losses = {
        float(
            StageProgram(captured.program, captured.state, seed=seed)
            .forward({"input:0": x, "target:0": y}, Moment(0, 0))
            .loss
        )
        for seed in range(3)
    }
    assert len(losses) == 3


def test_forward_leaves_the_random_state_of_the_caller() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Pipeline(_captured("mlp")).forward(DROPPING["mlp"].batch(4), Moment(0, 0))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["mlp", "bert", "lstm"])
def test_evaluation_draws_nothing(name: str) -> None:
    example = _short_lstm() if name == "lstm" else DROPPING[name]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Pipeline(_captured(name)).evaluate(example.batch(4))
    assert torch.equal(torch.rand(3), expected)
