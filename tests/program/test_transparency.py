"""The promise: a cut model trains with the same numbers as the user's own module, bit for bit."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeweave.program import Captured, shared_parameters, without_outputs
from tests.models import ZOO, gpt2
from tests.program.running import (
    Pipeline,
    Trained,
    assert_same_training,
    differing,
    microbatches,
    train_eagerly,
)

Capture = Callable[[str], Captured]

SIZES = (3, 3, 2)
"""Three microbatches, the last one smaller."""


@functools.cache
def _eager(name: str) -> Trained:
    example = ZOO[name]
    parts = microbatches(example.batch(sum(SIZES)), SIZES)
    return train_eagerly(example.model(), example.loss, parts)


@functools.cache
def _eager_with_uses_apart(name: str) -> Trained:
    """The two uses of a tied weight are summed over the microbatches first, then added."""
    example = ZOO[name]
    untied = gpt2(tied=False)
    untied.load_state_dict(example.model().state_dict())
    parts = microbatches(example.batch(sum(SIZES)), SIZES)
    trained = train_eagerly(untied, example.loss, parts)
    for alias, first in example.tied.items():
        trained.gradients[first] = trained.gradients[first] + trained.gradients.pop(alias)
    return trained


def _boundaries(captured: Captured, n_stages: int, where: str) -> tuple[int, ...]:
    units = without_outputs(captured.program).unit_numbers
    n_cuts = n_stages - 1
    if where == "early":
        return units[1:n_stages]
    if where == "late":
        return units[-n_cuts:]
    if where == "even":
        return tuple(units[len(units) * (i + 1) // n_stages] for i in range(n_cuts))
    drawn = random.Random(f"{where} {n_stages} {len(units)}").sample(units[1:], n_cuts)
    return tuple(sorted(drawn))


def _assert_trains_alike(
    captured: Captured, name: str, boundaries: tuple[int, ...], *, direct: bool = False
) -> None:
    pipeline = Pipeline(captured, boundaries, direct=direct)
    apart = shared_parameters([stage.program for stage in pipeline.stages])
    expected = _eager_with_uses_apart(name) if apart else _eager(name)
    parts = microbatches(ZOO[name].batch(sum(SIZES)), SIZES)
    assert_same_training(pipeline.train(parts), expected)


@pytest.mark.parametrize("where", ["even", "early", "late", "random 1", "random 2"])
@pytest.mark.parametrize("n_stages", [2, 3, 5])
@pytest.mark.parametrize("name", ZOO)
def test_a_cut_model_trains_bit_for_bit_like_the_users_module(
    captured: Capture, name: str, n_stages: int, where: str
) -> None:
    boundaries = _boundaries(captured(name), n_stages, where)
    _assert_trains_alike(captured(name), name, boundaries)


@pytest.mark.parametrize("name", ZOO)
def test_a_model_cut_at_every_unit_trains_bit_for_bit_like_the_users_module(
    captured: Capture, name: str
) -> None:
    units = without_outputs(captured(name).program).unit_numbers
    _assert_trains_alike(captured(name), name, units[1:])


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "unet", "vit"])
def test_values_that_go_past_stages_train_bit_for_bit_like_the_users_module(
    captured: Capture, name: str
) -> None:
    units = without_outputs(captured(name).program).unit_numbers
    _assert_trains_alike(captured(name), name, units[1:], direct=True)


@pytest.mark.parametrize("boundaries", [(2, 4), (2, 3, 4), (2, 3, 4, 5)])
def test_a_skip_connection_past_stages_trains_bit_for_bit_like_the_users_module(
    captured: Capture, boundaries: tuple[int, ...]
) -> None:
    pipeline = Pipeline(captured("unet"), boundaries, direct=True)
    assert list(pipeline.ways[0].targets.values()) == [boundaries.index(4) + 1]
    _assert_trains_alike(captured("unet"), "unet", boundaries, direct=True)


@pytest.mark.parametrize("name", ZOO)
def test_an_uncut_program_trains_bit_for_bit_like_the_users_module(
    captured: Capture, name: str
) -> None:
    _assert_trains_alike(captured(name), name, ())


@pytest.mark.parametrize("name", ["mlp", "lenet", "unet", "vit"])
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_choice_of_cuts_trains_like_the_users_module(
    captured: Capture, name: str, data: st.DataObject
) -> None:
    units = without_outputs(captured(name).program).unit_numbers
    boundaries = tuple(sorted(data.draw(st.sets(st.sampled_from(units[1:])))))
    _assert_trains_alike(captured(name), name, boundaries)


def test_the_skip_connections_of_the_unet_cross_two_cuts(captured: Capture) -> None:
    stages = Pipeline(captured("unet"), _boundaries(captured("unet"), 3, "even")).stages
    middle = stages[1].program
    relayed = {value.name for value in middle.inputs} & set(middle.outputs)
    assert relayed
    made_first = {v.name for node in stages[0].program.nodes for v in node.results}
    read_last = {name for node in stages[2].program.nodes for name in node.inputs()}
    assert relayed <= made_first & read_last


def test_tied_weights_over_one_microbatch_train_like_the_eager_model(captured: Capture) -> None:
    example = ZOO["gpt2"]
    parts = [example.batch(5)]
    expected = train_eagerly(example.model(), example.loss, parts)
    for n_stages in (1, 2, 3, 5):
        boundaries = _boundaries(captured("gpt2"), n_stages, "even") if n_stages > 1 else ()
        found = Pipeline(captured("gpt2"), boundaries).train(parts)
        assert_same_training(found, expected)


def test_tied_weights_over_several_microbatches_train_closely_like_the_eager_model(
    captured: Capture,
) -> None:
    example = ZOO["gpt2"]
    parts = microbatches(example.batch(sum(SIZES)), SIZES)
    expected = train_eagerly(example.model(), example.loss, parts)
    found = Pipeline(captured("gpt2"), _boundaries(captured("gpt2"), 3, "even")).train(parts)
    tied = set(ZOO["gpt2"].tied.values())
    assert set(differing(found.gradients, expected.gradients)) <= tied
    for name in tied:
        torch.testing.assert_close(found.gradients[name], expected.gradients[name])
