"""A comparison of gradients through the whole pipeline: right, and it leaves no trace."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

import edgeweave as ew
from edgeweave.codec import uniform
from edgeweave.data.batches import Batch
from edgeweave.device import Agreement
from edgeweave.plan import LinkCodec
from edgeweave.program import capture, flatten_inputs
from edgeweave.train.run import PipelineRun, RunSettings
from tests.fleet.worlds import plan_of
from tests.models import Example
from tests.train.trained_models import CNN, MLP, n_units

DEVICES = ("a", "b", "c")
BOUNDARIES = {"mlp": (2, 5), "cnn": (1, 3)}


def codecs(bits: int) -> tuple[LinkCodec, ...]:
    ends = [("a", "b"), ("b", "a"), ("b", "c"), ("c", "b")]
    return tuple(LinkCodec(*each, bits) for each in ends)


def batch_of(example: Example, n_samples: int, seed: int) -> Batch:
    return Batch(flatten_inputs(*example.batch(n_samples, seed=seed)), n_samples)


def trained(
    fleet: ew.Fleet, example: Example, used: Sequence[LinkCodec], *, compared: bool
) -> tuple[list[float], dict[str, bytes], list[Agreement]]:
    """Losses and weights of three steps, with a comparison before each or without."""
    torch.manual_seed(0)
    model = example.build()
    captured = capture(model, example.loss, *example.batch(4, seed=0))
    plan = plan_of(DEVICES, BOUNDARIES[example.name], n_units(example), n_microbatches=2)
    settings = RunSettings(ew.Optimizer("SGD", lr=0.05), 6, seed=1, codec=uniform(16))
    losses, found = [], []
    with PipelineRun(fleet, captured.program, captured.state, plan, settings) as run:
        run.codecs = used
        for step in range(3):
            if compared:
                found.append(run.compare(step, batch_of(example, 5, seed=100 + step)))
            losses.append(run.train_step(step, batch_of(example, 12, step), {"lr": 0.05}).loss)
        weights, _ = run.fetch_state()
    return losses, weights, found


@pytest.mark.parametrize("example", [MLP, CNN], ids=lambda example: example.name)
def test_training_goes_on_as_if_nothing_had_been_compared(
    fleet: ew.Fleet, example: Example
) -> None:
    losses, weights, _ = trained(fleet, example, codecs(8), compared=False)
    again, same, found = trained(fleet, example, codecs(8), compared=True)
    assert (losses, weights) == (again, same)
    assert len(found) == 3


@pytest.mark.slow
def test_exact_links_agree_exactly_and_fewer_bits_agree_less(fleet: ew.Fleet) -> None:
    cosines = []
    for bits in (16, 8, 4, 2):
        _, _, found = trained(fleet, MLP, codecs(bits), compared=True)
        cosines.append(min(each.cosine for each in found))
    _, _, exact = trained(fleet, MLP, (), compared=True)
    assert {each.norm_ratio for each in exact} == {1.0}
    assert min(each.cosine for each in exact) == pytest.approx(1.0)
    assert cosines == sorted(cosines, reverse=True)
    assert 0.999 < cosines[0] < 1
    assert cosines[-1] < 0.99
