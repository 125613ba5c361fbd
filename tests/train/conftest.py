"""Fleets that many tests train on, started once: agents survive the end of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from torch import nn

import edgeweave as ew
from edgeweave.program import Captured, LossFunction, capture
from edgeweave.train import trainer
from tests.fleet.worlds import MemoryFleet, memory_fleet


@pytest.fixture(scope="session")
def shared_memory_fleet() -> Iterator[MemoryFleet]:
    """Three agents in this process. Nobody breaks them."""
    with memory_fleet("a", "b", "c") as world:
        yield world


@pytest.fixture
def fleet(shared_memory_fleet: MemoryFleet) -> ew.Fleet:
    """The fleet of ``shared_memory_fleet``."""
    return shared_memory_fleet.fleet


@pytest.fixture(scope="session")
def local_fleet() -> Iterator[ew.Fleet]:
    """Three agent processes. Nobody breaks them."""
    with ew.Fleet.local([ew.Device("a"), ew.Device("b"), ew.Device("c")]) as fleet:
        yield fleet


_captured: dict[Any, Captured] = {}


def _capture_once(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Any,
    target: Any,
    *,
    metrics: Mapping[str, LossFunction],
) -> Captured:
    """``capture`` remembers the graph of an equal model, and takes the weights of this one."""
    trained = tuple((n, p.shape, p.requires_grad) for n, p in model.named_parameters())
    key = (repr(model), trained, loss_fn, tuple(metrics.items()), inputs.shape, target.shape)
    if key not in _captured:
        _captured[key] = capture(model, loss_fn, inputs, target, metrics=metrics)
    found = _captured[key]
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state = {name: own.get(name, tensor).detach().clone() for name, tensor in found.state.items()}
    return Captured(found.program, state)


@pytest.fixture(autouse=True)
def _models_are_captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of each test otherwise; what is captured is tested in ``tests/program``."""
    monkeypatch.setattr(trainer, "capture", _capture_once)
