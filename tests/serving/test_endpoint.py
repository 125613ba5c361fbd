"""Models served over agents in this process answer what the unsplit model answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree

from edgeweave.serving import ServeOptions, serve
from tests.fleet.worlds import MemoryFleet, memory_fleet
from tests.models import ZOO
from tests.program.running import call


@pytest.fixture(scope="module")
def world() -> Iterator[MemoryFleet]:
    """Three agents in this process. Nobody breaks them."""
    with memory_fleet("a", "b", "c") as found:
        yield found


def answers_of(model: torch.nn.Module, requests: list[Any]) -> list[Any]:
    """What the unsplit model answers to each request alone."""
    with torch.inference_mode():
        return [call(model.eval(), request) for request in requests]


def test_answers_are_those_of_the_unsplit_model_bit_for_bit(world: MemoryFleet) -> None:
    model = ZOO["mlp"].model()
    requests = [torch.randn(1, 12) for _ in range(20)]
    with serve(model, world.fleet, requests[0]) as endpoint:
        found = [endpoint(request) for request in requests]
    assert all(map(torch.equal, found, answers_of(model, requests)))


SERVED_WHOLE_ZOO = [
    "mlp",
    "lenet",
    pytest.param("mobilenetv2", marks=pytest.mark.slow),
    pytest.param("resnet18", marks=pytest.mark.slow),
    "unet",
    pytest.param("vit", marks=pytest.mark.slow),
    pytest.param("bert", marks=pytest.mark.slow),
    pytest.param("gpt2", marks=pytest.mark.slow),
    pytest.param("llama", marks=pytest.mark.slow),
    pytest.param("lstm", marks=pytest.mark.slow),
]


def leaves(answer: Any) -> list[torch.Tensor]:
    return [x for x in pytree.tree_leaves(answer) if torch.is_tensor(x)]


@pytest.mark.parametrize("name", SERVED_WHOLE_ZOO)
def test_cut_over_all_devices_every_model_answers_bit_for_bit(
    world: MemoryFleet, name: str
) -> None:
    model = ZOO[name].model().eval()
    requests = [ZOO[name].batch(1, seed=seed)[0] for seed in range(6)]
    options = ServeOptions(use="all")
    with serve(model, world.fleet, requests[0], options=options) as endpoint:
        assert endpoint.plan is not None
        assert len(endpoint.plan.stages) == 3
        found = list(endpoint.stream(requests))
    for answer, expected in zip(found, answers_of(model, requests), strict=True):
        assert type(answer) is type(expected)
        assert len(leaves(answer)) == len(leaves(expected))
        assert all(map(torch.equal, leaves(answer), leaves(expected)))
