"""Recurrent layers are split, so that they can be cut, without changing a bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeweave.program import Captured, capture, check
from tests.program.running import Pipeline, assert_same_training, microbatches, train_eagerly

KINDS = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn_tanh": nn.RNN,
    "rnn_relu": lambda *args, **kwargs: nn.RNN(*args, nonlinearity="relu", **kwargs),
}


class Recurrent(nn.Module):
    """Widths are multiples of eight: BLAS may round rows of other strides differently, and what
    crosses a cut loses the gaps between its rows (here, of ``output[:, -1]``)."""

    def __init__(self, kind: str, *, bidirectional: bool = False, final: bool = False) -> None:
        super().__init__()
        self.final = final
        self.layers = KINDS[kind](3, 8, 2, batch_first=True, bidirectional=bidirectional)
        self.out = nn.Linear(16 if bidirectional else 8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output, state = self.layers(x)
        state = state[0] if isinstance(state, tuple) else state
        return self.out(state[-1] if self.final else output[:, -1])


def _batch(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, 4, 3, generator=generator)
    return x, torch.randint(4, (n,), generator=generator)


def _captured(model: nn.Module) -> Captured:
    torch.manual_seed(1)
    return capture(model, F.cross_entropy, *_batch(3))


def _n_recurrent(captured: Captured) -> int:
    return sum(n.op.endswith(".input") for n in captured.program.nodes)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "bidirectional"),
    [
        ("lstm", True),
        ("gru", False),
        pytest.param("lstm", False, marks=SLOW),
        pytest.param("gru", True, marks=SLOW),
        *(pytest.param(f"rnn_{f}", b, marks=SLOW) for f in ("tanh", "relu") for b in (True, False)),
    ],
)
def test_layers_are_split_and_train_bit_for_bit_like_the_whole(
    kind: str, bidirectional: bool
) -> None:
    model = Recurrent(kind, bidirectional=bidirectional)
    captured = _captured(model)
    assert _n_recurrent(captured) == 2
    parts = microbatches(_batch(5), (2, 3))
    expected = train_eagerly(model, F.cross_entropy, parts)
    boundaries = captured.program.unit_numbers[1:]
    assert len(boundaries) >= 2
    assert_same_training(Pipeline(captured, boundaries).train(parts), expected)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_layers_whose_final_state_is_used_stay_whole(kind: str) -> None:
    model = Recurrent(kind, final=True)
    captured = _captured(model)
    assert _n_recurrent(captured) == 1
    parts = [_batch(4)]
    expected = train_eagerly(model, F.cross_entropy, parts)
    assert_same_training(Pipeline(captured).train(parts), expected)


def test_split_layers_pass_the_check() -> None:
    check(_captured(Recurrent("gru", bidirectional=True)).program)
