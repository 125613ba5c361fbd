"""Weights that are kept laid out: the same numbers to rounding, and nobody else's bits change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeweave.program import StageProgram, capture_inference, cut, faster, result_bytes
from edgeweave.program.packing import PackedConvolutions, is_channels_last, packed_weights


def last(weight: torch.Tensor) -> torch.Tensor:
    """The same weight as ``faster`` keeps it and programs see it."""
    kept = weight.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
    return kept.permute(0, 3, 1, 2)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[torch.Tensor, tuple[Any, ...]]:
    """A picture and the arguments of a convolution over it, grouped or not, of any stride."""
    groups = draw(st.sampled_from([1, 2, 4]))
    channels = groups * draw(st.integers(1, 3))
    out = groups * draw(st.integers(1, 3))
    size, edge = draw(st.sampled_from([1, 3])), draw(st.integers(0, 2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x = torch.randn(draw(st.integers(1, 3)), channels, 7, 6, generator=generator)
    weight = torch.randn(out, channels // groups, size, size, generator=generator)
    bias = torch.randn(out, generator=generator) if draw(st.booleans()) else None
    step, gap = draw(st.sampled_from([[1], [2], [2, 1]])), draw(st.sampled_from([[1], [2, 2]]))
    return x, (weight, bias, step, [edge], gap, groups)


@settings(max_examples=60, deadline=None)
@given(asked=convolutions())
def test_a_kept_weight_gives_the_same_convolution(
    asked: tuple[torch.Tensor, tuple[Any, ...]],
) -> None:
    x, (weight, *rest) = asked
    convolution = PackedConvolutions().convolution
    expected = torch.conv2d(x, weight, *rest)
    kept = last(weight)
    for pictures in (x, x.to(memory_format=torch.channels_last), x):
        torch.testing.assert_close(
            convolution(pictures, kept, *rest), expected, rtol=1e-4, atol=1e-5
        )


def test_only_weights_that_lie_channels_last_are_kept() -> None:
    weight = torch.randn(4, 3, 3, 3)
    assert is_channels_last(last(weight))
    for usual in (weight, torch.randn(4, 3, 1, 1), torch.randn(4, 1, 1, 1), torch.randn(4, 3)):
        assert not is_channels_last(usual)
    assert is_channels_last(last(torch.randn(4, 3, 1, 1)))  # though torch takes it for both


@pytest.mark.parametrize("needs", ["gradients", "double"])
def test_what_no_kept_weight_does_is_computed_as_ever(needs: str) -> None:
    convolutions = PackedConvolutions()
    x, weight = torch.randn(1, 3, 5, 5), last(torch.randn(4, 3, 3, 3))
    if needs == "double":
        x, weight = x.double(), weight.double()
    else:
        x.requires_grad_()
    found = convolutions.convolution(x, weight)
    assert torch.equal(found, torch.conv2d(x, weight))
    assert found.requires_grad is (needs == "gradients")
    assert convolutions._packed == {}


def test_models_as_they_are_keep_their_bits_and_fast_ones_keep_each_weight_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Flatten()).eval()
    x = torch.randn(2, 3, 8, 8)
    exact = capture_inference(model, x)
    fast = faster(exact)
    assert packed_weights(exact.program) == {}
    assert sorted(packed_weights(fast.program).values()) == [4 * 64, 4 * 216]
    with torch.inference_mode():
        expected = model(x)
        for inference in (exact, fast):
            stage = StageProgram(cut(inference.program, ())[0], inference.state)
            answers = [stage.evaluate({"input:0": pictures}) for pictures in (x, x[:1], x)]
            kept = stage._evaluation._find.__self__._packed  # type: ignore[attr-defined]
            assert len(kept) == (2 if inference is fast else 0)
            (found,) = answers[-1].outputs.values()
            if inference is exact:
                assert torch.equal(found, expected)
            torch.testing.assert_close(found, expected)


def test_what_is_kept_counts_as_memory() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()).eval()
    exact = capture_inference(model, torch.randn(2, 3, 8, 8))
    made = result_bytes(exact.program, 2)
    assert sum(result_bytes(faster(exact).program, 2).values()) == sum(made.values()) + 4 * 216
