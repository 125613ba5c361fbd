"""Small models that once went wrong, or could: relays, regions without gradients, buffers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgeweave.program import Captured, Moment, capture, cut, without_outputs
from tests.models import Example, llama, next_token
from tests.program.running import Pipeline, assert_same_training, microbatches, train_eagerly

SIZES = (3, 3, 2)


def _batch(n: int, width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, width, generator=generator)
    return x, torch.randint(4, (n,), generator=generator)


class Layers(nn.Module):
    """Three linear layers to be wired in odd ways."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)
        self.c = nn.Linear(8, 4)


class NoGradRegion(Layers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.a(x)
        with torch.no_grad():
            scale = self.b(hidden).abs().mean(1, keepdim=True)
        return self.c(hidden / scale)


class GradWithinNoGrad(Layers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.a(x)
        with torch.no_grad():
            scale = hidden.std() + 1
            with torch.enable_grad():
                trained = self.b(hidden)
        return self.c(trained / scale)


class Detached(Layers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.a(x)
        return self.c(self.b(hidden.detach()) + hidden * hidden.detach())


class InPlaceResidual(Layers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu_(self.a(x))
        out = self.b(hidden)
        out += hidden
        out.mul_(0.5)
        return self.c(out)


class UsedEverywhere(Layers):
    """One value is summed four times, in four units."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = torch.tanh(self.a(x))
        out = torch.tanh(self.b(skip)) + skip
        out = torch.tanh(self.b(out)) * skip
        return self.c(out + skip) + self.c(skip)


class SharedLayer(Layers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.a(self.b(self.a(x))))


class Permuted(nn.Module):
    """Values are transposed and sliced right before the next layer, so before a cut."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 12)
        self.b = nn.Linear(3, 6)
        self.c = nn.Conv1d(6, 4, 1)
        self.d = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).view(-1, 3, 4).transpose(1, 2)
        x = self.b(x).permute(0, 2, 1)
        x = self.c(x[:, :, ::2])
        return self.d(x.transpose(1, 2).flatten(1)[:, :4])


class Expanded(Permuted):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).view(-1, 3, 4).transpose(1, 2)
        x = self.b(x).permute(0, 2, 1)
        x = self.c(x[:, :, ::2].expand(-1, -1, 2))
        return self.d(x.transpose(1, 2)).mean(1)


class ChannelsLast(nn.Module):
    """Asks for channels-last memory."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.c = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x.view(-1, 1, 2, 4)).contiguous(memory_format=torch.channels_last)
        return self.c(torch.relu(self.b(x)).flatten(1))


class CentredOnTheBatch(Layers):
    """Between the layers only a mean over the batch is alive, which tells no batch size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centre = self.b(self.a(x).mean(0, keepdim=True))
        return self.c(centre.expand(x.shape[0], -1))


class WeightNormed(Layers):
    """A parameter is computed from parameters, and depends on no data."""

    def __init__(self) -> None:
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.b)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(x)))


class PositionsAdded(nn.Module):
    """A trained value that depends on no data is used in two units."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(8, 1)
        self.a = nn.Linear(8, 8)
        self.c = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        place = self.positions(torch.arange(x.shape[1])).T
        return self.c(self.a(x + place) * place)


class FrozenStart(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.a.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(x)))


class FrozenMiddle(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.b.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(x)))


class Counting(Layers):
    """Buffers of every kind: counted, zeroed, averaged, kept from the state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("dirty", torch.ones(3))
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("ruler", torch.arange(8.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.a(x) + self.ruler
        if self.training:
            self.seen += 1
            self.dirty.zero_()
            self.mean.mul_(0.9).add_(hidden.detach().mean(0), alpha=0.1)
        return self.c(self.b(hidden))


class Normed(nn.Module):
    """BatchNorm, a shared BatchNorm, one of cumulative average and one without statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.shared = nn.BatchNorm1d(8)
        self.b = nn.Linear(8, 8)
        self.bare = nn.BatchNorm1d(8, track_running_stats=False, affine=False)
        self.c = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.shared(self.a(x))
        x = self.shared(self.b(x))
        return self.c(self.bare(x))


MODELS = (
    NoGradRegion,
    GradWithinNoGrad,
    Detached,
    InPlaceResidual,
    UsedEverywhere,
    SharedLayer,
    Permuted,
    ChannelsLast,
    CentredOnTheBatch,
    WeightNormed,
    PositionsAdded,
    FrozenStart,
    FrozenMiddle,
    Counting,
    Normed,
)


@functools.cache
def _captured(build: Callable[[], nn.Module]) -> tuple[nn.Module, Captured]:
    torch.manual_seed(1)
    model = build()
    return model, capture(model, F.cross_entropy, *_batch(4))


@pytest.mark.parametrize("build", MODELS)
def test_every_way_to_cut_trains_like_eager(build: type[nn.Module]) -> None:
    model, captured = _captured(build)
    parts = microbatches(_batch(sum(SIZES)), SIZES)
    expected = train_eagerly(model, F.cross_entropy, parts)
    starts = without_outputs(captured.program).unit_numbers[1:]
    assert starts
    shared = build is SharedLayer or build is UsedEverywhere
    for n_cuts in range(len(starts) + 1):
        for boundaries in combinations(starts, n_cuts):
            found = Pipeline(captured, boundaries).train(parts)
            if not (shared and boundaries):
                assert_same_training(found, expected)
                continue
            for name, gradient in expected.gradients.items():
                torch.testing.assert_close(found.gradients[name], gradient)


@pytest.mark.parametrize("build", [SharedLayer, UsedEverywhere])
def test_a_layer_used_twice_trains_bit_for_bit_over_one_microbatch(build: type[nn.Module]) -> None:
    model, captured = _captured(build)
    expected = train_eagerly(model, F.cross_entropy, [_batch(5)])
    boundaries = captured.program.unit_numbers[1:]
    assert_same_training(Pipeline(captured, boundaries).train([_batch(5)]), expected)


def test_a_relayed_value_keeps_its_gradient_order() -> None:
    model, captured = _captured(UsedEverywhere)
    stages = cut(without_outputs(captured.program), captured.program.unit_numbers[1:])
    relays = [{v.name for v in stage.inputs} & set(stage.outputs) for stage in stages]
    assert any(relays)
    expected = train_eagerly(model, F.cross_entropy, [_batch(6)]).gradients["a.weight"]
    found = Pipeline(captured, captured.program.unit_numbers[1:]).train([_batch(6)])
    assert torch.equal(found.gradients["a.weight"], expected)


def test_expanded_values_that_cross_a_cut_change_gradients_by_rounding_only() -> None:
    """A gradient of an expanded value lies in memory as no frame and no order can say."""
    model, captured = _captured(Expanded)
    parts = microbatches(_batch(sum(SIZES)), SIZES)
    expected = train_eagerly(model, F.cross_entropy, parts)
    found = Pipeline(captured, captured.program.unit_numbers[1:]).train(parts)
    assert [float(x) for x in found.losses] == [float(x) for x in expected.losses]
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(found.gradients[name], gradient)


def test_no_cut_lies_where_nothing_tells_the_batch_size() -> None:
    _, captured = _captured(CentredOnTheBatch)
    for stage in cut(captured.program, captured.program.unit_numbers[1:]):
        sizes = [size for value in stage.inputs for size in value.shape]
        assert any(not isinstance(size, int) for size in sizes)


def test_frozen_parameters_get_no_gradient() -> None:
    _, captured = _captured(FrozenMiddle)
    gradients = Pipeline(captured).train([_batch(4)]).gradients
    assert gradients.keys() == {"a.weight", "a.bias", "c.weight", "c.bias"}


def test_no_gradient_travels_where_nothing_upstream_trains() -> None:
    _, captured = _captured(FrozenStart)
    pipeline = Pipeline(captured, (captured.program.unit_numbers[1],))
    assert [v.requires_grad for v in pipeline.stages[1].program.inputs] == [False, False]
    trained = pipeline.train([_batch(4)])
    assert trained.forward_bytes > 0
    assert trained.backward_bytes == 0


def test_integer_values_that_cross_a_cut_carry_no_gradient() -> None:
    class Chooses(Layers):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            best = self.a(x).argmax(1)
            return self.c(self.b(F.one_hot(best, 8).float()))

    _, captured = _captured(Chooses)
    parts = [_batch(4)]
    pipeline = Pipeline(captured, captured.program.unit_numbers[1:])
    found = pipeline.train(parts)
    assert found.gradients.keys() == {"b.weight", "b.bias", "c.weight", "c.bias"}


def test_buffers_take_their_new_values_in_the_order_of_the_microbatches() -> None:
    model, captured = _captured(Counting)
    parts = microbatches(_batch(8), SIZES)
    found = Pipeline(captured, captured.program.unit_numbers[1:]).train(parts).buffers
    expected = train_eagerly(model, F.cross_entropy, parts).buffers
    assert int(found["seen"]) == 3
    assert torch.equal(found["dirty"], torch.zeros(3))
    assert torch.equal(found["mean"], expected["mean"])
    assert "ruler" not in found


def test_batch_norm_counts_its_batches() -> None:
    _, captured = _captured(Normed)
    pipeline = Pipeline(captured)
    pipeline.train(microbatches(_batch(8), SIZES))
    assert int(pipeline.stages[0].state_dict()["shared.num_batches_tracked"]) == 6


def test_two_steps_with_an_optimizer_equal_two_eager_steps() -> None:
    model, captured = _captured.__wrapped__(Normed)  # trained below, so not shared
    pipeline = Pipeline(captured, captured.program.unit_numbers[1:])
    parameters = [p for stage in pipeline.stages for p in stage.parameters.values()]
    optimizers = [
        torch.optim.SGD(ps, lr=0.1, momentum=0.9) for ps in (parameters, list(model.parameters()))
    ]
    for step in range(2):
        x, y = _batch(4 + step)
        pipeline.forward((x, y), Moment(step, 0))
        pipeline.backward(0, 1.0)
        F.cross_entropy(model(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    state = {n: t for stage in pipeline.stages for n, t in stage.state_dict().items()}
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_the_trained_state_loads_into_the_users_model() -> None:
    model, captured = _captured(Counting)
    pipeline = Pipeline(captured, captured.program.unit_numbers[1:])
    pipeline.train([_batch(4)])
    state = {n: t for stage in pipeline.stages for n, t in stage.state_dict().items()}
    assert model.load_state_dict(state, strict=True).missing_keys == []


@pytest.mark.slow
def test_grouped_query_attention_with_padding_trains_bit_for_bit() -> None:
    """Without a mask, transformers groups heads inside the kernel when eager and repeats them
    when traced: equal losses, gradients equal to rounding. With one, both repeat."""

    def padded(n: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        mask = (torch.arange(12) < torch.randint(4, 12, (n, 1))).long()
        inputs = {"input_ids": torch.randint(100, (n, 12)), "attention_mask": mask}
        return inputs, torch.randint(100, (n, 12))

    example = Example("gqa", lambda: llama(n_key_value_heads=2), next_token, padded)
    captured = capture(example.model(), example.loss, *example.batch(4))
    parts = microbatches(example.batch(8), SIZES)
    expected = train_eagerly(example.model(), example.loss, parts)
    boundaries = captured.program.unit_numbers[1::4]
    assert_same_training(Pipeline(captured, boundaries).train(parts), expected)
