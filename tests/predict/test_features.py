"""Work, bytes and shapes of operators, read off the graph: checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from edgeweave.predict import FAMILIES, FEATURES, unit_features
from edgeweave.predict.features import Floats
from edgeweave.program import Program, capture

LABELS = torch.zeros(4, dtype=torch.long)


def rows_of(model: nn.Module, inputs: torch.Tensor, batch: int = 4) -> list[dict[str, float]]:
    """Every operator as its family and its features, without the logarithm."""
    program = capture(model, cross_entropy, inputs, LABELS).program
    table = np.concatenate(list(unit_features(program, batch).values()))
    rows = [named(row) for row in table]
    return [row for row in rows if family(row) != "pass"]


def named(row: Floats) -> dict[str, float]:
    values = [*np.expm1(row[1:-1]), row[-1]]
    return {"family": float(row[0]), **dict(zip(FEATURES, values, strict=True))}


def family(row: dict[str, float]) -> str:
    return FAMILIES[int(row["family"])]


def test_a_convolution_multiplies_and_adds_for_every_output_kernel_element_and_channel() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(128, 5))
    conv = rows_of(model, torch.zeros(4, 3, 8, 8), batch=2)[0]
    assert family(conv) == "conv"
    assert conv["macs"] == pytest.approx(2 * 8 * 4 * 4 * 9 * 3)
    assert conv["input_bytes"] == pytest.approx(4 * 2 * 3 * 8 * 8)
    assert conv["output_bytes"] == pytest.approx(4 * 2 * 8 * 4 * 4)
    assert conv["weight_bytes"] == pytest.approx(4 * (8 * 3 * 9 + 8))
    assert (conv["kernel"], conv["stride"], conv["groups"]) == pytest.approx((9, 4, 1))
    assert conv["padding"] == pytest.approx(4)
    assert (conv["channels_in"], conv["channels_out"]) == pytest.approx((3, 8))
    assert (conv["positions"], conv["batch"]) == pytest.approx((16, 2))
    assert conv["input_gradient"] == 0


def test_depthwise_convolutions_are_a_family_of_their_own() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 8, 3, groups=2), nn.Flatten()
    )
    depthwise, grouped = rows_of(model, torch.zeros(4, 4, 6, 6))[:2]
    assert (family(depthwise), family(grouped)) == ("depthwise", "conv")
    assert depthwise["macs"] == pytest.approx(4 * 4 * 36 * 9)
    assert grouped["macs"] == pytest.approx(4 * 8 * 16 * 9 * 2)
    assert grouped["input_gradient"] == 1


def test_a_linear_layer_and_its_activation() -> None:
    model = nn.Sequential(nn.Linear(10, 6), nn.GELU(), nn.Linear(6, 3))
    first, gelu, second, loss = rows_of(model, torch.zeros(4, 10))
    assert [family(row) for row in (first, gelu, second, loss)] == [
        "matmul",
        "transcendental",
        "matmul",
        "reduce",
    ]
    assert first["macs"] == pytest.approx(4 * 6 * 10)
    assert gelu["macs"] == pytest.approx(0)
    assert second["macs_per_byte"] == pytest.approx(4 * 18 / (4 * (4 * 6 + 4 * 3 + 18 + 3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = nn.functional.scaled_dot_product_attention(x, x, x)
        return torch.as_tensor(self.out(found.mean((1, 2))))


def test_attention_multiplies_twice_with_every_key() -> None:
    (row,) = [
        row for row in rows_of(Attention(), torch.zeros(4, 2, 5, 8)) if family(row) == "attention"
    ]
    assert row["macs"] == pytest.approx(2 * (4 * 2 * 5 * 8) * 5)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.lstm(x)[0][:, -1])


def test_a_recurrent_layer_works_for_every_position() -> None:
    rows = rows_of(Recurrent(), torch.zeros(4, 7, 3))
    (row,) = [each for each in rows if family(each) == "recurrent"]
    assert row["macs"] == pytest.approx(4 * 7 * (20 * 3 + 20 * 5))
    assert row["steps"] == pytest.approx(7)


def conv_program() -> Program:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    return capture(model, mse_loss, torch.zeros(4, 3, 8, 8), torch.zeros(4, 2)).program


def test_every_unit_has_its_operators_and_larger_microbatches_more_work() -> None:
    program = conv_program()
    small, large = unit_features(program, 2), unit_features(program, 16)
    assert tuple(small) == program.unit_numbers
    macs = FEATURES.index("macs") + 1
    for unit, rows in small.items():
        assert rows.shape == large[unit].shape
        assert rows.shape[0] > 0
        assert np.expm1(large[unit][:, macs]) == pytest.approx(8 * np.expm1(rows[:, macs]))


def test_features_are_finite_and_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    program = conv_program()
    monkeypatch.setattr(torch.nn.functional, "conv2d", None)
    table = np.concatenate(list(unit_features(program, 4).values()))
    assert np.isfinite(table).all()
    assert table.shape[1] == 1 + len(FEATURES)
    assert math.isclose(table[:, -1].min(), 0)


def test_the_last_unit_carries_what_a_pass_takes_beside_its_operators() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    captured = capture(model, mse_loss, torch.zeros(4, 4), torch.zeros(4, 2))
    features = unit_features(captured.program, 4)
    passes = {
        unit: [named(row) for row in rows if FAMILIES[int(row[0])] == "pass"]
        for unit, rows in features.items()
    }
    last = captured.program.unit_numbers[-1]
    assert [len(found) for found in passes.values()] == [0] * (len(passes) - 1) + [1]
    assert passes[last][0]["input_bytes"] == pytest.approx(len(captured.program.updates))


def test_what_lies_before_and_behind_an_operator_counts_less_the_farther_it_is() -> None:
    model = nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 3))
    rows = rows_of(model, torch.zeros(4, 10))
    a, b, c, d = (row["input_bytes"] + row["output_bytes"] + row["weight_bytes"] for row in rows)
    before = [row["bytes_before"] for row in rows]
    assert before == pytest.approx([0, a, a / 2 + b, a / 4 + b / 2 + c])
    behind = [row["bytes_behind"] for row in rows]
    assert behind == pytest.approx([b + c / 2 + d / 4, c + d / 2, d, 0])
    assert [row["bytes_left"] for row in rows] == pytest.approx([b + c + d, c + d, d, 0])
    assert [row["pass_bytes"] for row in rows] == pytest.approx([a + b + c + d] * 4)


def test_a_pool_sees_its_window_and_moves_on_by_its_stride() -> None:
    model = nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    largest, mean = rows_of(model, torch.zeros(4, 3, 8, 8))[:2]
    assert (largest["kernel"], largest["stride"], largest["padding"]) == pytest.approx((9, 4, 4))
    assert (mean["kernel"], mean["stride"], mean["padding"]) == pytest.approx((4, 4, 1))
    assert (largest["variant_1"], mean["variant_1"]) == pytest.approx((0, 1))


def test_a_window_is_no_larger_than_what_it_looks_at() -> None:
    model = nn.Sequential(nn.AvgPool2d(64, ceil_mode=True), nn.Flatten(), nn.Linear(3, 2))
    pool = rows_of(model, torch.zeros(4, 3, 8, 8))[0]
    assert (pool["kernel"], pool["stride"]) == pytest.approx((64, 64))


class Permuted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)
        self.out = nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.out(self.norm(x.permute(0, 2, 1))).mean(1))


def test_what_comes_in_along_permuted_dimensions_is_scattered() -> None:
    rows = rows_of(Permuted(), torch.zeros(4, 12, 7))
    (norm,) = [row for row in rows if family(row) == "norm"]
    assert norm["scattered"] == pytest.approx(1)
    assert rows[0]["scattered"] == pytest.approx(0)


@pytest.mark.parametrize(("channels", "power"), [(12, 4), (7, 1), (64, 32)])
def test_channels_are_aligned_to_powers_of_two(channels: int, power: int) -> None:
    model = nn.Sequential(nn.Linear(channels, 5))
    row = rows_of(model, torch.zeros(4, channels))[0]
    assert (row["aligned_in"], row["aligned_out"]) == pytest.approx((power, 1))


def test_a_transposed_convolution_works_for_every_input() -> None:
    model = nn.Sequential(
        nn.ConvTranspose2d(32, 1, 2, stride=2), nn.ReLU(), nn.ConvTranspose2d(1, 8, 3), nn.Flatten()
    )
    first, _, second, *_ = rows_of(model, torch.zeros(4, 32, 4, 4))
    assert (family(first), family(second)) == ("conv", "conv")
    assert first["groups"] == pytest.approx(1)
    assert first["macs"] == pytest.approx((4 * 32 * 16) * 4 * 1)
    assert second["macs"] == pytest.approx((4 * 1 * 64) * 9 * 8)
