"""Slices with nothing lost compute what the unsplit model computes, and their parts make a whole.

Sums over slices add up in another order: losses agree to 1e-5, gradients to 1e-4 of their scale.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeweave.core.errors import CaptureError, PlanError
from edgeweave.program import (
    Captured,
    Group,
    check,
    gather_entries,
    slice_entries,
    slice_program,
)
from tests.models import ZOO, SensorLSTM, cross_entropy, mlp
from tests.program.sliced import Everybody, captured_of, compare, groups_of

BATCH = 6


def slow(*sizes: int) -> Any:
    """Group sizes that tell little that others do not."""
    return pytest.param(sizes, marks=pytest.mark.slow)


@cache
def zoo(name: str) -> tuple[Captured, tuple[torch.Tensor, torch.Tensor]]:
    example = ZOO[name]
    batch = example.batch(BATCH)
    return captured_of(example.model(), example.loss, batch), batch


@cache
def recurrent() -> Captured:
    model = SensorLSTM()
    batch = torch.randn(BATCH, 9, 4), torch.randint(6, (BATCH,))
    return captured_of(model, cross_entropy, batch)


class ResNetBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.classify = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.classify(F.relu(x + y).mean((2, 3)))


class MobileBlock(nn.Module):
    """An inverted residual: pointwise, depthwise, pointwise; then a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 12, 1, bias=False),
            nn.BatchNorm2d(12),
            nn.Conv2d(12, 12, 3, padding=1, groups=4),
            nn.Hardswish(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 5),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class SmallTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.places = nn.Parameter(torch.randn(1, 7, 16) * 0.1)
        self.norm = nn.LayerNorm(16)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.out = nn.Linear(16, 16)
        self.norm2 = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.classify = nn.Linear(16, 5)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(x.shape[0], 7, 4, 4).transpose(1, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens) + self.places
        y = self.norm(x)
        parts = (self.heads(layer(y)) for layer in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(*parts)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape[0], 7, 16))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.classify(x.mean(1))


IMAGES = (torch.randn(BATCH, 3, 8, 8), torch.randint(5, (BATCH,)))
TOKENS = (torch.randint(50, (BATCH, 7)), torch.randint(5, (BATCH,)))


@pytest.mark.parametrize("mode", ["exchange", "grouped"])
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((1, 1, 1), marks=pytest.mark.slow),
        pytest.param((3,), marks=pytest.mark.slow),
        (2, 1),
        pytest.param((2, 3), marks=pytest.mark.slow),
    ],
)
def test_a_sliced_mlp_computes_what_the_whole_does(sizes: Any, mode: Any) -> None:
    captured, batch = zoo("mlp")
    compare(captured, batch, sizes, mode)


@pytest.mark.parametrize("mode", ["exchange", "grouped"])
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((3,), marks=pytest.mark.slow),
        (2, 2),
        pytest.param((2, 1, 3), marks=pytest.mark.slow),
    ],
)
def test_a_sliced_lenet_computes_what_the_whole_does(sizes: Any, mode: Any) -> None:
    captured, batch = zoo("lenet")
    compare(captured, batch, sizes, mode)


@pytest.mark.slow
def test_more_devices_than_filters_leave_some_without() -> None:
    captured, batch = zoo("lenet")
    sliced = compare(captured, batch, (8,), "exchange")
    assert sliced.segments[0].programs[0] is None


@pytest.mark.parametrize(
    ("build", "batch", "sizes"),
    [
        pytest.param(ResNetBlock, IMAGES, (3,), marks=pytest.mark.slow),
        (ResNetBlock, IMAGES, (2, 3)),
        (MobileBlock, IMAGES, (2,)),
        pytest.param(MobileBlock, IMAGES, (3, 2), marks=pytest.mark.slow),
        (SmallTransformer, TOKENS, (3,)),
        pytest.param(SmallTransformer, TOKENS, (2, 2), marks=pytest.mark.slow),
    ],
)
def test_blocks_of_known_networks_compute_what_the_whole_does(
    build: Any, batch: Any, sizes: Any
) -> None:
    torch.manual_seed(1)
    compare(captured_of(build(), cross_entropy, batch), batch, sizes, "exchange")


@pytest.mark.parametrize("sizes", [(3,), slow(2, 3)])
def test_concatenated_skip_connections_compute_what_the_whole_does(sizes: Any) -> None:
    captured, batch = zoo("unet")
    compare(captured, batch, sizes, "exchange")


def test_dropout_draws_as_the_unsplit_model_does() -> None:
    torch.manual_seed(1)
    batch = ZOO["mlp"].batch(BATCH)
    captured = captured_of(mlp(dropout=0.3), cross_entropy, batch)
    compare(captured, batch, (3,), "exchange")


class Encoder(nn.Module):
    """What a gpt2-like layer needs: one product for query, key and value, and its own softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed = nn.Linear(12, 36)
        self.out = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.mixed(x).split(12, dim=2)
        q, k, v = (part.view(x.shape[0], 7, 3, 4).transpose(1, 2) for part in parts)
        weights = torch.softmax(q @ k.transpose(2, 3) / 2.0, dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(x.shape[0], 7, 12).mean(1))


@pytest.mark.slow
def test_what_no_rule_knows_is_computed_whole_by_everybody() -> None:
    torch.manual_seed(1)
    batch = torch.randn(BATCH, 7, 12), torch.randint(5, (BATCH,))
    sliced = compare(captured_of(Encoder(), cross_entropy, batch), batch, (2,), "exchange")
    first = sliced.segments[0].programs[0]
    assert first is not None
    assert [spec.shape for spec in first.state] == [(18, 12), (18,)]


def test_heads_are_never_cut() -> None:
    """Sixteen neurons of four heads for three devices: 4, 4 and 8, not 5, 5 and 6."""
    torch.manual_seed(1)
    captured = captured_of(SmallTransformer(), cross_entropy, TOKENS)
    sliced = slice_program(captured.program, groups_of(captured.program, (3,)))
    asked = sliced.state["query.weight"][1]
    assert asked[0].spans == (((0, 4),), ((4, 8),), ((8, 16),))


def test_every_fragment_passes_the_check_of_programs_received() -> None:
    captured, _ = zoo("lenet")
    sliced = slice_program(captured.program, groups_of(captured.program, (3, 2)))
    for segment in sliced.segments:
        for program in segment.programs:
            assert program is not None
            check(program)


def test_slices_are_contiguous_and_the_last_have_the_spare_neurons() -> None:
    captured, _ = zoo("mlp")
    sliced = slice_program(captured.program, groups_of(captured.program, (3,)))
    assert sliced.state["0.weight"][1][0].spans == (((0, 10),), ((10, 21),), ((21, 32),))


def test_a_device_alone_has_nothing_to_exchange_inside_its_group() -> None:
    captured, _ = zoo("mlp")
    sliced = slice_program(captured.program, groups_of(captured.program, (1, 1, 1)))
    assert len(sliced.segments) == 3
    ends = {(t.source.segment, t.target.segment) for t in sliced.transfers}
    assert ends == {(0, 1), (1, 2)}


def test_grouped_slices_exchange_nothing_but_at_the_ends_of_groups() -> None:
    """Three devices, six layers and the loss in one group: only the sums of the last layer go."""
    captured, _ = zoo("mlp")
    sliced = slice_program(captured.program, groups_of(captured.program, (3,)), "grouped")
    assert {t.value for t in sliced.transfers if t.source.member != t.target.member} == {"linear_5"}
    weight = sliced.state["3.weight"][1]
    assert [share.dim for share in weight] == [0, 1]


def test_the_last_layer_is_cut_by_outputs_where_that_is_asked() -> None:
    captured, _ = zoo("mlp")
    groups = groups_of(captured.program, (3,))
    sums = slice_program(captured.program, groups)
    neurons = slice_program(captured.program, groups, sums_last=False)
    assert sums.state["15.weight"][1][0].dim == 1
    assert neurons.state["15.weight"][1][0].dim == 0


def test_a_gathered_state_is_the_users_with_what_members_trained() -> None:
    captured, _ = zoo("lenet")
    sliced = slice_program(captured.program, groups_of(captured.program, (3, 2)))
    everybody = Everybody(sliced, captured.state)
    found = everybody.state_dict()
    assert found.keys() == captured.state.keys()
    assert all(torch.equal(found[name], captured.state[name]) for name in found)
    with torch.no_grad():
        for member in everybody.members.values():
            for parameter in member.parameters.values():
                parameter += 1.0
    found = everybody.state_dict()
    assert all(torch.equal(found[name], captured.state[name] + 1) for name in found)


def test_a_recurrent_layer_names_its_line_and_the_way_out() -> None:
    captured = recurrent()
    with pytest.raises(
        CaptureError,
        match=r"aten\.lstm\.input.*\(.*\.py:\d+.*cannot be sliced in width.*one device alone",
    ):
        slice_program(captured.program, groups_of(captured.program, (2, 1)))


def test_a_recurrent_layer_may_be_in_a_group_of_one() -> None:
    captured = recurrent()
    units = captured.program.unit_numbers
    first_linear = next(
        node.unit for node in captured.program.nodes if node.op == "aten.linear.default"
    )
    groups = [Group(0, first_linear, 1), Group(first_linear, units[-1] + 1, 2)]
    sliced = slice_program(captured.program, groups)
    assert [segment.group for segment in sliced.segments][:2] == [0, 1]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.classify = nn.Linear(50, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = F.linear(torch.tanh(self.embed(tokens).mean(1)), self.embed.weight)
        return self.classify(x)


def test_tied_weights_that_two_cuts_would_need_are_refused() -> None:
    torch.manual_seed(1)
    captured = captured_of(Tied(), cross_entropy, TOKENS)
    with pytest.raises(CaptureError, match=r"embed\.weight is used again by .*Untie it"):
        slice_program(captured.program, groups_of(captured.program, (2,)))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "groups of units follow each other and are not empty"),
        ([Group(0, 3, 1), Group(4, 7, 1)], "groups of units follow each other"),
        ([Group(0, 3, 1)], "groups cover units 0 to 6 \\(got 0 to 2\\)"),
        ([Group(0, 7, 0)], "a group has a member or more"),
    ],
)
def test_groups_that_do_not_fit_the_program_are_refused(groups: Any, message: str) -> None:
    captured, _ = zoo("mlp")
    with pytest.raises(PlanError, match=message):
        slice_program(captured.program, groups)


def test_grouped_slices_need_a_neuron_for_every_device() -> None:
    captured, _ = zoo("mlp")
    with pytest.raises(PlanError, match="grouped slices give each of 20 devices a neuron"):
        slice_program(captured.program, groups_of(captured.program, (20,)), "grouped")


def test_what_an_optimizer_keeps_is_cut_and_gathered_as_its_parameters_are() -> None:
    captured, _ = zoo("mlp")
    sliced = slice_program(captured.program, groups_of(captured.program, (2, 3)))
    trained = {spec.name: spec.shape for spec in captured.program.trainable}
    entries = {f"{name}|momentum": torch.randn(shape) for name, shape in trained.items()}
    counters = {f"{name}|step": torch.tensor(7.0) for name in trained}
    parts = {who: slice_entries(sliced, entries | counters, *who) for who in sliced.members}
    whole = gather_entries(sliced, parts)
    assert whole.keys() == entries.keys() | counters.keys()
    for name, tensor in (entries | counters).items():
        assert torch.equal(whole[name], tensor), name
