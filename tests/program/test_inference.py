"""A model captured for inference computes and answers what ``model.eval()`` does."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.utils._pytree as pytree
from torch import nn

from edgeweave.core.errors import CaptureError
from edgeweave.program import StageProgram, capture_inference, check, cut
from tests.models import ZOO
from tests.program.running import call


def through_stages(model: nn.Module, inputs: Any, example: Any, n_stages: int) -> Any:
    """The answer of a captured model that was cut into so many stages."""
    captured = capture_inference(model, example)
    units = captured.program.unit_numbers
    values = {f"input:{i}": x for i, x in enumerate(pytree.tree_leaves(_sorted(inputs)))}
    for stage in cut(captured.program, units[1:n_stages]):
        program = StageProgram(stage, captured.state)
        values |= program.evaluate({v.name: values[v.name] for v in stage.inputs}).outputs
    return captured.answer.of(values)


def _sorted(inputs: Any) -> Any:
    return {key: inputs[key] for key in sorted(inputs)} if isinstance(inputs, dict) else inputs


def assert_same(found: Any, expected: Any) -> None:
    ours, structure = pytree.tree_flatten(found)
    theirs, wanted = pytree.tree_flatten(expected)
    assert structure == wanted
    for one, other in zip(ours, theirs, strict=True):
        same = torch.equal(one, other) if torch.is_tensor(one) else one == other
        assert same


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("mlp", "unet") else pytest.param(name, marks=pytest.mark.slow)
        for name in ZOO
    ],
)
@pytest.mark.parametrize("n_samples", [1, 3])
def test_the_zoo_answers_bit_for_bit_whole_and_cut(name: str, n_samples: int) -> None:
    model = ZOO[name].model().eval()
    inputs = ZOO[name].batch(n_samples)[0]
    example = ZOO[name].batch(1, seed=9)[0]
    with torch.no_grad():
        expected = call(model, inputs)
    assert_same(through_stages(model, inputs, example, 3), expected)


class Nested(nn.Module):
    """Answers with tensors, numbers and nothing, in a dictionary of tuples."""

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return {"twice": (x * 2, None), "word": "w", "again": [x * 2 + 1, 3, (x.sum(1),)]}


class Pair(NamedTuple):
    """What a model of pairs answers."""

    first: torch.Tensor
    second: torch.Tensor


class Pairs(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Pair:
        return Pair(x + y, x)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [(Nested(), torch.randn(1, 4)), (Pairs(), (torch.randn(2, 4), torch.randn(2, 4)))],
)
def test_an_answer_has_the_structure_of_the_models(model: nn.Module, inputs: Any) -> None:
    assert_same(through_stages(model, inputs, inputs, 1), call(model, inputs))


def test_nothing_trains_and_the_program_is_sound() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.ReLU())
    captured = capture_inference(model.train(), torch.randn(1, 1, 5, 5))
    program = captured.program
    check(program)
    assert model.training
    assert not any(spec.trainable for spec in program.state)
    assert not any(value.requires_grad for value in program.values().values())
    assert (program.loss, program.updates, program.metrics) == (None, {}, {})
    assert all("dropout" not in node.op for node in program.nodes)


def test_the_models_own_tensors_are_not_copied() -> None:
    model = nn.Linear(3, 2)
    captured = capture_inference(model, torch.randn(1, 3))
    assert captured.state["weight"].data_ptr() == model.weight.data_ptr()


class Counting(nn.Module):
    """Counts its calls, also in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n", torch.zeros(()))
        self.n: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.n.add_(1)
        return x + self.n


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x)


class Deciding(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class Words(nn.Module):
    def forward(self, x: torch.Tensor) -> str:
        return "w"


REFUSED: dict[str, tuple[nn.Module, Any, str]] = {
    "keeps state": (Counting(), torch.ones(1, 2), "changes a buffer in evaluation mode .n."),
    "draws": (Noisy(), torch.ones(1, 2), "does not answer as model.eval.. does"),
    "decides": (Deciding(), torch.ones(1, 2), "cannot be captured"),
    "no tensor out": (Words(), torch.ones(1, 2), "answers with no tensor"),
    "no samples": (nn.Linear(2, 2), torch.ones(0, 2), "the batch, of one size and not empty"),
    "no batch": (nn.Linear(2, 2), torch.ones(()), "the batch, of one size and not empty"),
    "two sizes": (Pairs(), (torch.ones(1, 2), torch.ones(2, 2)), "the batch, of one size"),
    "no tensor in": (nn.Linear(2, 2), [], "got shapes none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_said(name: str) -> None:
    model, example, message = REFUSED[name]
    with pytest.raises(CaptureError, match=message):
        capture_inference(model, example)
