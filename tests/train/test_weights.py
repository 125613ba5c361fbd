"""The coordinator's copy: always all of one step, and never older than it was."""

from __future__ import annotations

import pytest
import torch

from edgeweave.core.errors import DeviceLost, WireError
from edgeweave.program import encode_state
from edgeweave.train.weights import Weights


def one(value: float) -> torch.Tensor:
    return torch.tensor([value])


def values(tensors: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: tensor.item() for name, tensor in tensors.items()}


def at_step_4() -> Weights:
    weights = Weights({"a": one(0), "b": one(0), "mask": one(7)})
    weights.take(4, [{"a": one(4), "a|momentum": one(40)}, {"b": one(5), "b|momentum": one(50)}])
    return weights


def test_what_devices_keep_is_parted_into_weights_and_the_optimizers_state() -> None:
    weights = at_step_4()
    assert values(weights.state) == {"a": 4, "b": 5, "mask": 7}
    assert values(weights.optimizer) == {"a|momentum": 40, "b|momentum": 50}
    assert weights.step == 4


def test_a_copy_that_comes_late_changes_nothing() -> None:
    weights = at_step_4()
    weights.take(3, [{"a": one(3), "b": one(3)}])
    assert values(weights.state) == {"a": 4, "b": 5, "mask": 7}
    assert (values(weights.optimizer), weights.step) == ({"a|momentum": 40, "b|momentum": 50}, 4)


def test_a_newer_copy_takes_the_place_of_all_of_the_optimizers_state() -> None:
    weights = at_step_4()
    weights.take(6, [{"a": one(6), "b": one(6), "a|momentum": one(60)}])
    assert values(weights.optimizer) == {"a|momentum": 60}
    assert weights.step == 6


class Run:
    """Devices that answer, or do not."""

    def __init__(self, weights: dict[str, bytes], optimizers: dict[str, bytes]) -> None:
        self._answers = weights, optimizers

    def fetch_state(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        return self._answers


def test_everything_is_fetched_from_the_devices() -> None:
    weights = at_step_4()
    run = Run(
        {"x": encode_state({"a": one(9)}), "y": encode_state({"b": one(8), "mask": one(7)})},
        {"x": encode_state({"a|momentum": one(90)}), "y": encode_state({})},
    )
    weights.fetch(run, 9)
    assert values(weights.state) == {"a": 9, "b": 8, "mask": 7}
    assert (values(weights.optimizer), weights.step) == ({"a|momentum": 90}, 9)


def test_a_fetch_that_fails_leaves_all_as_it_was() -> None:
    class Gone:
        def fetch_state(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
            raise DeviceLost("gone", device="x")

    damaged = Run({"x": encode_state({"a": one(9)}), "y": b"no"}, {"x": b"", "y": b""})
    for run, error in ((Gone(), DeviceLost), (damaged, WireError)):
        weights = at_step_4()
        with pytest.raises(error):
            weights.fetch(run, 9)
        assert values(weights.state) == {"a": 4, "b": 5, "mask": 7}
        assert (len(weights.optimizer), weights.step) == (2, 4)
