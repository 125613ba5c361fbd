"""The evaluation pass computes what ``model.eval()`` computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import nn

from edgeweave.core.errors import CaptureError
from edgeweave.program import Captured, Moment, capture, check, evaluation
from edgeweave.program.check import infer_values
from tests.models import ZOO
from tests.program.running import Pipeline, call, differing

Capture = Callable[[str], Captured]

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
Y = torch.randint(4, (6,), generator=torch.Generator().manual_seed(3))


def _outputs(model: nn.Module, inputs: object) -> list[torch.Tensor]:
    with torch.no_grad():
        return [x for x in pytree.tree_leaves(call(model.eval(), inputs)) if torch.is_tensor(x)]


@pytest.mark.parametrize("name", ZOO)
def test_a_cut_model_evaluates_bit_for_bit_like_the_users_module(
    captured: Capture, name: str
) -> None:
    example = ZOO[name]
    inputs, target = example.batch(5, seed=8)
    units = captured(name).program.unit_numbers
    result = Pipeline(captured(name), (units[1], units[-2]), outputs=True).evaluate(
        (inputs, target)
    )
    model = example.model()
    expected = _outputs(model, inputs)
    assert len(result.outputs) == len(expected)
    for found, wanted in zip(result.outputs.values(), expected, strict=True):
        assert torch.equal(found, wanted)
    with torch.no_grad():
        assert torch.equal(result.loss, example.loss(call(model, inputs), target))


@pytest.mark.parametrize("name", ["unet", "resnet18", "bert", "lstm"])
def test_the_evaluation_pass_is_a_program_of_the_same_units(captured: Capture, name: str) -> None:
    program = captured(name).program
    evaluated = evaluation(program)
    assert evaluated.unit_numbers == program.unit_numbers
    assert evaluated.state == program.state
    assert evaluated.updates == {}
    check(infer_values(evaluated))


DROPPING = [
    nn.Dropout(0.5),
    nn.AlphaDropout(0.0),
    nn.Sequential(nn.Unflatten(1, (4, 2)), nn.Dropout1d(0.5), nn.Flatten()),
    nn.Sequential(nn.Unflatten(1, (2, 2, 2)), nn.Dropout2d(0.5), nn.Flatten()),
]


@pytest.mark.parametrize("layer", DROPPING, ids=lambda layer: str(layer)[:25].split("\n")[0])
def test_every_kind_of_dropout_hands_its_input_on(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(8, 8), layer, nn.Linear(8, 4))
    captured = capture(model, F.cross_entropy, X, Y)
    found = Pipeline(captured, outputs=True).evaluate((X, Y)).outputs
    torch.testing.assert_close(list(found.values()), _outputs(model, X), rtol=0, atol=0)


def test_attention_drops_nothing() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into = nn.Linear(8, 8)
            self.out = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = self.into(x).view(-1, 1, 4, 2)
            p = 0.5 if self.training else 0.0
            mixed = F.scaled_dot_product_attention(tokens, tokens, tokens, dropout_p=p)
            return self.out(mixed.flatten(1))

    model = Attends()
    captured = capture(model, F.cross_entropy, X, Y)
    found = Pipeline(captured, outputs=True).evaluate((X, Y)).outputs
    assert torch.equal(*found.values(), *_outputs(model, X))


def test_batch_norm_uses_the_statistics_that_training_left() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    captured = capture(model, F.cross_entropy, X, Y)
    pipeline = Pipeline(captured, captured.program.unit_numbers[1:], outputs=True)
    for step in range(3):
        pipeline.forward((X + step, Y), Moment(step, 0))
        model.train()(X + step)
    found = pipeline.evaluate((X, Y)).outputs
    assert torch.equal(*found.values(), *_outputs(model, X))


def test_evaluation_changes_no_buffer() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    pipeline = Pipeline(capture(model, F.cross_entropy, X, Y))
    pipeline.evaluate((X, Y))
    assert differing(pipeline.buffers(), dict(model.named_buffers())) == []


def test_a_batch_norm_used_twice_reads_the_same_statistics_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(8)
            self.out = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.norm(2 * self.norm(x) + 1))

    model = Twice()
    captured = capture(model, F.cross_entropy, X, Y)
    pipeline = Pipeline(captured, outputs=True)
    pipeline.forward((X, Y), Moment(0, 0))
    model.train()(X)
    found = pipeline.evaluate((X, Y)).outputs
    assert torch.equal(*found.values(), *_outputs(model, X))


def test_a_dropout_mask_used_outside_its_layer_is_refused() -> None:
    class KeepsTheMask(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            kept, mask = torch.native_dropout(x, 0.5, self.training)
            return self.out(kept) + mask.float().mean()

    with pytest.raises(CaptureError, match=r"Do not use dropout masks or batch statistics outside"):
        capture(KeepsTheMask(), F.cross_entropy, X, Y)
