"""A model rewritten for speed answers what the model does, to rounding, whole and cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import nn

from edgeweave.program import (
    Inference,
    StageProgram,
    capture_inference,
    check,
    cut,
    decode,
    encode,
    faster,
)
from edgeweave.program.graph import Node
from edgeweave.program.interpret import Interpreter
from tests.models import ZOO
from tests.program.running import call


def answer(inference: Inference, inputs: Any, n_stages: int = 1) -> Any:
    """What it answers, cut into so many stages that travelled as bytes."""
    units = inference.program.unit_numbers
    values = {f"input:{i}": x for i, x in enumerate(pytree.tree_leaves(inputs))}
    for part in cut(inference.program, units[1:n_stages]):
        stage = decode(*encode(part, inference.state))
        program = StageProgram(stage.program, stage.state)
        for name, tensor in program.evaluate(
            {v.name: values[v.name] for v in part.inputs}
        ).outputs.items():
            values[name] = tensor.contiguous()  # as the wire has it
    return inference.answer.of(values)


def trained(model: nn.Module) -> nn.Module:
    """The model with statistics and scales that are not 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight, module.bias):
                if tensor is not None:
                    tensor.data.normal_(generator=generator)
            if module.running_var is not None:
                module.running_var.uniform_(0.5, 2.0, generator=generator)
    return model.eval()


@pytest.mark.parametrize(
    "name",
    [
        "unet",
        "lenet",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("resnet18", "mobilenetv2", "bert")),
    ],
)
@pytest.mark.parametrize("n_stages", [1, 3])
def test_answers_are_the_models_to_rounding(name: str, n_stages: int) -> None:
    model, inputs = trained(ZOO[name].model()), ZOO[name].batch(2)[0]
    found = faster(capture_inference(model, inputs))
    check(found.program)
    with torch.no_grad():
        expected = call(model, inputs)
    ordered = {k: inputs[k] for k in sorted(inputs)} if isinstance(inputs, dict) else inputs
    ours = pytree.tree_leaves(answer(found, ordered, n_stages))
    for one, other in zip(ours, pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def ops(inference: Inference) -> list[str]:
    return [node.op.split(".")[1] for node in inference.program.nodes if node.unit >= 0]


def captured(*layers: nn.Module, channels: int = 2) -> Inference:
    model = trained(nn.Sequential(*layers))
    return capture_inference(model, torch.randn(1, channels, 6, 6))


CONV = nn.Conv2d(2, 4, 3)


@pytest.mark.parametrize(
    ("layers", "left"),
    [
        ((CONV, nn.BatchNorm2d(4), nn.ReLU()), ["conv2d", "relu"]),
        ((nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)), ["conv2d"]),
        (
            (CONV, nn.ReLU(), nn.BatchNorm2d(4)),
            ["conv2d", "relu", "_native_batch_norm_legit_no_training"],
        ),
        ((nn.BatchNorm2d(2), CONV), ["_native_batch_norm_legit_no_training", "conv2d"]),
        ((nn.Conv2d(2, 2, 3, groups=2), nn.BatchNorm2d(2)), ["conv2d"]),
    ],
)
def test_a_norm_right_behind_a_convolution_disappears(
    layers: tuple[nn.Module, ...], left: list[str]
) -> None:
    before = captured(*layers)
    found = faster(before)
    assert ops(found) == left
    x = torch.randn(3, 2, 6, 6)
    torch.testing.assert_close(answer(found, x), answer(before, x), rtol=1e-4, atol=1e-5)


class Twice(nn.Module):
    """The convolution's result is read by others too, and its weight by another one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.conv(x)
        found: torch.Tensor = self.conv(self.norm(first)) + first
        return found


def test_what_others_read_stays() -> None:
    model, x = trained(Twice()), torch.randn(2, 2, 5, 5)
    before = capture_inference(model, x)
    found = faster(before)
    assert ops(found) == ops(before)
    assert torch.equal(answer(found, x), model(x))


def test_convolutions_compute_channels_last_and_hand_that_on() -> None:
    found = faster(captured(CONV, nn.ReLU(), nn.Conv2d(4, 4, 3)))
    seen: list[bool] = []

    def observe(node: Node, results: tuple[torch.Tensor, ...]) -> None:
        if node.unit >= 0:
            seen.append(results[0].is_contiguous(memory_format=torch.channels_last))

    interpreter = Interpreter(found.program, found.state, device=torch.device("cpu"))
    with torch.inference_mode():
        interpreter.run({"input:0": torch.randn(1, 2, 6, 6)}, 1, wanted=(), observe=observe)
    assert seen == [True] * 3
