"""Models served over agents in this process answer what the unsplit model answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import edgeweave as ew
from edgeweave.serve import Endpoint, ServeOptions, serve
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
