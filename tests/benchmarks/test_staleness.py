"""The pipeline in one process learns what the schedule says; flushed, what plain training does."""

from __future__ import annotations

import copy

import pytest
import torch

from benchmarks.convergence_tasks import TASKS
from benchmarks.stale_stages import Order, StalePipeline
from benchmarks.staleness import _rates
from edgeweave.program import capture, cut, without_outputs
from tests.train.reference import Job, Reference, differing, epoch_indices, job_of, train_eagerly
from tests.train.stale_reference import Staleness, train_with_stale_weights
from tests.train.trained_models import CNN

_RATE = 0.05


def make_optimizer(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=_RATE, momentum=0.9)


def learnt(job: Job, order: Order) -> tuple[StalePipeline, list[float], dict[str, int]]:
    captured = capture(copy.deepcopy(job.model), job.loss, *job.data[:4])
    stages = cut(without_outputs(captured.program), (1, 3))
    pipeline = StalePipeline(stages, captured.state, make_optimizer, order, seed=job.seed)
    steps = [
        [job.data[part] for part in indices.split(job.microbatch_size)]
        for indices in epoch_indices(job, 0)
    ]
    losses = pipeline.train(steps, [_RATE] * len(steps))
    held = {spec.name: index for index, each in enumerate(stages) for spec in each.trainable}
    return pipeline, losses, held


def job() -> Job:
    return job_of(CNN, 48, batch_size=6, n_microbatches=2, epochs=1)


def assert_same(pipeline: StalePipeline, losses: list[float], expected: Reference) -> None:
    assert losses == pytest.approx(expected.step_losses, rel=1e-6)
    assert differing(pipeline.state_dict(), expected.state) == []


def test_flushed_it_is_plain_training() -> None:
    pipeline, losses, _ = learnt(job(), Order(is_flushed=True))
    assert_same(pipeline, losses, train_eagerly(job(), make_optimizer))


@pytest.mark.parametrize("order", [Order(), Order(extra_in_flight=2), Order(aggregation=2)])
def test_in_a_stream_it_uses_the_versions_that_the_schedule_says(order: Order) -> None:
    pipeline, losses, held = learnt(job(), order)
    rule = Staleness(held, 3, extra=order.extra_in_flight, aggregation=order.aggregation)
    assert_same(pipeline, losses, train_with_stale_weights(job(), make_optimizer, rule))


def test_learning_rates_are_those_of_the_convergence_benchmark() -> None:
    rates = _rates(TASKS["cifar10"], 100)
    assert rates[0] == pytest.approx(0.1 / 25)
    assert max(rates) == pytest.approx(0.1, rel=1e-2)
    assert rates[-1] < 1e-4
