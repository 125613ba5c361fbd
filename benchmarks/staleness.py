"""What stale weights cost: CIFAR-10 learnt in the order of each schedule, in one process.

accuracy_1f1b              a narrow MobileNetV2 cut in three, 1f1b: test accuracy, %
accuracy_loss_points_...   points of it lost, seed by seed: with async-1f1b, with two more
                           microbatches in flight, with means of versions
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean, median

import torch
from torch.optim.lr_scheduler import OneCycleLR

from benchmarks.convergence_tasks import TASKS, Task, captured
from benchmarks.harness import Result
from benchmarks.stale_stages import Order, StalePipeline

__all__ = ["run"]

_ARMS = {
    "1f1b": Order(is_flushed=True),
    "async": Order(),
    "extra": Order(extra_in_flight=2),
    "aggregation": Order(aggregation=10),
}
_QUICK_STEPS = 12
_QUICK_TESTS = 10


def run(*, quick: bool) -> Result:
    """``quick``: 12 steps and a tenth of the tests, on one seed; what it learns says nothing."""
    torch.set_num_threads(1)
    samples: dict[str, list[float]] = {}
    _learning(samples, quick=quick)
    metrics = {key: median(each) for key, each in samples.items()}
    return Result(
        name="staleness",
        quick=quick,
        metrics=metrics,
        lines=tuple(f"{key:>34} = {value:.3f}" for key, value in metrics.items()),
        samples=samples,
        settings={
            "seed": _seeds(quick=quick)[0],
            "seeds": list(_seeds(quick=quick)),
            "steps": _learning_steps(quick=quick),
        },
    )


def _learning(samples: dict[str, list[float]], *, quick: bool) -> None:
    """Fill in test accuracies, in percent, and points lost seed by seed."""
    task, steps = TASKS["cifar10"], _learning_steps(quick=quick)
    part = _QUICK_TESTS if quick else 1
    found: Mapping[str, list[float]] = {
        arm: [_accuracy(task, order, steps, part, seed=seed) for seed in _seeds(quick=quick)]
        for arm, order in _ARMS.items()
    }
    samples["accuracy_1f1b"] = found["1f1b"]
    for arm in list(_ARMS)[1:]:
        pairs = zip(found["1f1b"], found[arm], strict=True)
        samples[f"accuracy_loss_points_{arm}"] = [exact - stale for exact, stale in pairs]


def _seeds(*, quick: bool) -> tuple[int, ...]:
    seeds = TASKS["cifar10"].seeds
    return seeds[:1] if quick else seeds


def _learning_steps(*, quick: bool) -> int:
    return _QUICK_STEPS if quick else TASKS["cifar10"].steps


def _accuracy(task: Task, order: Order, steps: int, part: int, *, seed: int) -> float:
    """Of the test data's first of so many parts, after training in that order."""
    programs, state = captured(task.name, seed)
    pipeline = StalePipeline(programs, state, task.optimizer, order, seed=seed)
    samples = task.samples(seed)
    batches = ([next(samples) for _ in range(task.microbatches)] for _ in range(steps))
    pipeline.train(batches, _rates(task, steps))
    tests = task.tests()
    tests = tests[: len(tests) // part]
    found = [pipeline.evaluate(batch)["accuracy"] for batch in tests]
    return 100 * fmean(found, [len(target) for _, target in tests])


def _rates(task: Task, steps: int) -> list[float]:
    """As ``convergence`` trains: up for 30 % of the steps, then down along a cosine."""
    optimizer = task.optimizer([torch.nn.Parameter(torch.zeros(1))])
    rule = OneCycleLR(optimizer, optimizer.defaults["lr"], total_steps=steps, cycle_momentum=False)
    found = []
    for _ in range(steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        rule.step()
    return found
