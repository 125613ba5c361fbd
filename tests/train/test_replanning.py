"""A training run notices that a device got slow, and moves to another plan if that is worth it."""

from __future__ import annotations

import logging
from statistics import median

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import edgeweave as ew
from edgeweave.cli.documents import report_document
from edgeweave.data.batches import Batch
from edgeweave.net import Links, LinkShape
from edgeweave.program import capture
from edgeweave.train.run import PipelineRun, RunSettings
from tests.fleet.worlds import plan_of
from tests.train import slowed
from tests.train.trained_models import MLP, n_units

SLOWED_AT, N_STEPS, STEPS_AN_EPOCH = 20, 60, 10


@pytest.mark.slow
def test_a_device_slowed_to_a_third_is_planned_around_within_20_steps(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = TensorDataset(*slowed.samples(STEPS_AN_EPOCH * slowed.BATCH_SIZE))
    with slowed.slowed_fleet(at_step=SLOWED_AT) as fleet:
        trainer = ew.PipelineTrainer(
            slowed.model(),
            slowed.loss,
            optimizer=slowed.SGD,
            fleet=fleet,
            n_microbatches=slowed.N_MICROBATCHES,
        )
        plan = trainer.prepare(data, batch_size=slowed.BATCH_SIZE)
        assert slowed.SLOWED in plan.devices
        report = trainer.fit(
            data,
            batch_size=slowed.BATCH_SIZE,
            epochs=N_STEPS // STEPS_AN_EPOCH,
            progress=False,
        )
    found = [each for each in report.replans if each.step >= SLOWED_AT]
    decision = next(each for each in found if each.changes)
    assert decision.step < SLOWED_AT + 20
    assert slowed.SLOWED in [departure.device for departure in decision.departures]
    assert (decision.old, decision.steps_left) == (plan, N_STEPS - 1 - decision.step)
    assert decision.new != plan
    taken = [each.new for each in report.replans if each.changes]
    assert report.plan == taken[-1]  # the run moved: to that plan, or to a later one
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert decision.line() in warned
    shown = report_document(report)["replans"]
    assert isinstance(shown, list)
    assert decision.line() in [each["line"] for each in shown]


def test_every_stage_tells_what_its_microbatches_took_one_step_later(fleet: ew.Fleet) -> None:
    inputs, target = MLP.batch(8)
    captured = capture(MLP.model(), MLP.loss, inputs, target)
    plan = plan_of(("a", "b", "c"), (1, 3), n_units(MLP))
    batch = Batch({"input:0": inputs, "target:0": target}, 8)
    settings = RunSettings(ew.Optimizer("SGD", lr=0.1), microbatch_size=2)
    with PipelineRun(fleet, captured.program, captured.state, plan, settings) as run:
        first = run.train_step(0, batch, {})
        between = run.evaluate(1, batch.microbatches(2), 4)
        second = run.train_step(1, batch, {})
    assert (first.timings, between.timings) == ({}, {})
    assert second.timings.keys() == {"a", "b", "c"}
    assert all(timing.seconds > 0 for timing in second.timings.values())


@pytest.mark.slow
def test_a_link_that_got_slow_tells_its_rate_while_frames_wait_for_it() -> None:
    size, width = 64, 512
    layers = [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(4)]
    inputs, target = torch.randn(4 * size, width), torch.randint(width, (4 * size,))
    captured = capture(nn.Sequential(*layers), slowed.loss, inputs, target)
    n_units = len(captured.program.unit_numbers)
    plan = plan_of(("a", "b"), (n_units // 2,), n_units)
    batch = Batch({"input:0": inputs, "target:0": target}, 4 * size)
    links = Links.of({("a", "b"): LinkShape(3e6, 0.005), ("b", "a"): LinkShape(3e7, 0.005)})
    chaos = ew.Chaos().rate("a", "b", 1e6, at_step=8)
    devices = [ew.Device("a", speed=0.3), ew.Device("b", speed=0.3)]
    with ew.Fleet.local(devices, links=links, chaos=chaos) as fleet:
        settings = RunSettings(slowed.SGD, size)
        with PipelineRun(fleet, captured.program, captured.state, plan, settings) as run:
            told = [run.train_step(n, batch, {}).link_bytes_per_second for n in range(14)]
    fast, slow = (
        median(each[("a", "b")] for each in steps if ("a", "b") in each)
        for steps in (told[:9], told[10:])
    )
    assert 2 < fast / slow < 4  # 3, but for what else the host does
    assert not any(("b", "a") in each for each in told)  # fast enough: nobody waits for it


def test_a_plan_that_was_given_is_not_watched_for_want_of_costs(fleet: ew.Fleet) -> None:
    plan = plan_of(("a", "b", "c"), (1, 3), n_units(MLP))
    trainer = ew.PipelineTrainer(
        MLP.model(), MLP.loss, optimizer=slowed.SGD, fleet=fleet, n_microbatches=4, plan=plan
    )
    data = TensorDataset(*MLP.batch(24))
    report = trainer.fit(data, batch_size=8, epochs=10, progress=False)
    assert (trainer.costs, report.replans) == (None, ())
