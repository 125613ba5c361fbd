"""What one message lost arrives with the next ones."""

from __future__ import annotations

import pytest
import torch

from edgeweave.codec import Codec, blockfloat, decode, encode_with_feedback, truncate, uniform


@pytest.mark.parametrize("codec", [truncate(2), uniform(2), blockfloat(2)], ids=str)
@pytest.mark.parametrize("at_random", [False, True])
def test_what_was_received_and_the_residual_are_what_was_meant(
    codec: Codec, at_random: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    residual, received, meant = torch.zeros(3, 700)
    for number in range(30):
        step = torch.randn(700, generator=generator)
        meant += step
        seed = number if at_random else None
        coded, residual = encode_with_feedback(step, residual, codec, seed=seed)
        received += decode(coded)
    assert torch.allclose(received + residual, meant, atol=1e-4)
    if not at_random:
        assert float(residual.abs().max()) < 8


def test_neither_argument_is_changed() -> None:
    tensor, residual = torch.ones(300), torch.full((300,), 0.5)
    encode_with_feedback(tensor, residual, blockfloat(3))
    assert torch.equal(tensor, torch.ones(300))
    assert torch.equal(residual, torch.full((300,), 0.5))
