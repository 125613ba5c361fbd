"""The models that ship: their shapes, and that the first one learns what the demo shows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeweave.data.sources import DataPair, load_source
from edgeweave.program import capture
from edgeweave.train.metrics import accuracy
from edgeweave.train.models import digits_cnn, lenet, mlp


@pytest.mark.parametrize(
    ("model", "shape", "n_classes"),
    [
        (digits_cnn(), (1, 8, 8), 10),
        (digits_cnn(4, in_channels=3), (3, 32, 32), 4),
        (lenet(), (1, 28, 28), 10),
        (lenet(7, in_channels=2), (2, 28, 28), 7),
        (mlp(64, 5), (1, 8, 8), 5),
        (mlp(9, 2, hidden=()), (9,), 2),
    ],
)
def test_a_model_gives_one_number_for_each_class(
    model: nn.Module, shape: tuple[int, ...], n_classes: int
) -> None:
    assert model(torch.zeros(3, *shape)).shape == (3, n_classes)


def test_the_digits_model_has_enough_layers_to_cut_into_three() -> None:
    with_weights = [m for m in digits_cnn() if any(True for _ in m.parameters())]
    assert len(with_weights) == 15


def test_the_widths_of_an_mlp_are_those_asked_for() -> None:
    widths = [m.out_features for m in mlp(8, 3, hidden=(16, 4)) if isinstance(m, nn.Linear)]
    assert widths == [16, 4, 3]


def test_accuracy_is_the_share_of_right_classes() -> None:
    outputs = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert accuracy(outputs, torch.tensor([1, 0, 0, 0])) == 0.75


def train_plainly(model: nn.Module, pair: DataPair, *, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for indices in torch.randperm(len(pair.train)).split(64):
            inputs, targets = pair.train.batch(indices)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()


def test_the_digits_model_reaches_97_percent_in_five_epochs() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pair, model = load_source("digits", path=None), digits_cnn()
        train_plainly(model, pair, epochs=5)
    model.eval()
    inputs, targets = pair.test.batch(torch.arange(len(pair.test)))
    with torch.no_grad():
        assert accuracy(model(inputs), targets) >= 0.97


@pytest.mark.parametrize(
    ("model", "shape"), [(digits_cnn(), (1, 8, 8)), (lenet(), (1, 28, 28)), (mlp(64, 10), (64,))]
)
def test_a_model_is_captured_with_its_metric(model: nn.Module, shape: tuple[int, ...]) -> None:
    captured = capture(
        model,
        nn.functional.cross_entropy,
        torch.zeros(4, *shape),
        torch.zeros(4, dtype=torch.int64),
        metrics={"accuracy": accuracy},
    )
    assert set(model.state_dict()) == set(captured.state)
