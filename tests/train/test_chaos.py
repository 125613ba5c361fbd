"""Scripts of trouble, each of which ends with the numbers of a run in which nothing happened."""

from __future__ import annotations

import contextlib
import copy
import functools
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import edgeweave as ew
from edgeweave.net import NetSettings
from tests.fleet.worlds import plan_of
from tests.train.random_scenarios import drawn
from tests.train.reference import Job, Reference, assert_equal_runs, job_of, train_eagerly
from tests.train.scenarios import SCENARIOS, Scenario
from tests.train.test_trainer_equality import SGD, torch_optimizer
from tests.train.trained_models import CNN, MLP, UNET, n_units
from tests.train.troubled import (
    PATIENT,
    Act,
    Scripted,
    Troubled,
    at_request,
    both,
    kill,
    start,
    troubled_fleet,
)

EXAMPLES = {example.name: example for example in (MLP, CNN, UNET)}
N_SAMPLES = 40  # four steps an epoch, the last of fewer samples


@functools.cache
def expected_of(name: str, epochs: int) -> tuple[Job, Reference]:
    """Trained once for all scripts; validation changes nothing."""
    job = job_of(EXAMPLES[name], N_SAMPLES, epochs=epochs)
    torch.set_num_threads(1)  # as agents do: more threads add up in another order
    return job, train_eagerly(job, torch_optimizer(SGD))


def trainer_of(troubled: Troubled, scenario: Scenario, job: Job) -> ew.PipelineTrainer:
    """Equal cuts, whose states are copied often."""
    names, n = tuple(scenario.devices), n_units(scenario.example)
    boundaries = [n * stage // len(names) for stage in range(1, len(names))]
    plan = plan_of(names, boundaries, n, schedule=scenario.schedule)
    return ew.PipelineTrainer(
        copy.deepcopy(job.model),
        job.loss,
        optimizer=SGD,
        fleet=troubled.world.fleet,
        plan=replace(plan, replication=scenario.replication),
        n_microbatches=job.n_microbatches,
        seed=job.seed,
    )


def fit(
    troubled: Troubled,
    scenario: Scenario,
    trainer: ew.PipelineTrainer,
    job: Job,
    **options: Any,
) -> ew.Report:
    if scenario.validation:
        options["validate"] = Scripted(job.data, scenario.validation, troubled)
    return trainer.fit(
        Scripted(job.data, scenario.script, troubled),
        batch_size=job.batch_size,
        epochs=job.epochs,
        progress=False,
        **options,
    )


def as_undisturbed(scenario: Scenario, folder: Path | None = None) -> ew.Report:
    """Act a script out. Everybody is free at the end, and the numbers are bit for bit the same."""
    job, expected = expected_of(scenario.example.name, scenario.epochs)
    options: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        if scenario.checkpoint_every is not None:
            folder = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            options = {"checkpoint": folder, "checkpoint_every": scenario.checkpoint_every}
        troubled = stack.enter_context(troubled_fleet(*scenario.devices))
        trainer = trainer_of(troubled, scenario, job)
        report = fit(troubled, scenario, trainer, job, **options)
        cut = troubled.resume_all()
        troubled.wait_all_free(besides=cut)
    assert_equal_runs(report, trainer.state_dict(), expected)
    return report


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(each, id=name, marks=[pytest.mark.slow] if each.is_slow else [])
        for name, each in SCENARIOS.items()
    ],
)
def test_the_numbers_are_those_of_an_undisturbed_run(scenario: Scenario, tmp_path: Path) -> None:
    report = as_undisturbed(scenario, tmp_path)
    lost = {device for recovery in report.recoveries for device in recovery.lost}
    assert lost == set(scenario.lost)
    at_end = scenario.at_end or sorted(set(scenario.devices) - lost)
    assert set(report.plan.devices) == set(at_end)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_random_trouble_changes_no_number_either(seed: int, tmp_path: Path) -> None:
    as_undisturbed(drawn(seed), tmp_path)


def broken_off(troubled: Troubled, scenario: Scenario, left: Path) -> None:
    """Train until the coordinator is killed; ``left`` is what its disk had then."""
    job, _ = expected_of(scenario.example.name, scenario.epochs)
    kept = left.with_name(f"{left.name}-living")

    def kill_coordinator(troubled: Troubled) -> None:
        shutil.copytree(kept, left)  # a killed process has no time to clean up
        kill(troubled.world.fleet.transport.name)(troubled)

    script = {n: end_of_life(act, kill_coordinator) for n, act in scenario.script.items()}
    dying = replace(scenario, script=script)
    with pytest.raises(ew.EdgeweaveError):
        fit(troubled, dying, trainer_of(troubled, scenario, job), job, checkpoint=kept)
    troubled.wait_all_free()


def end_of_life(act: Act, kill_coordinator: Act) -> Act:
    return kill_coordinator if act is COORDINATOR else act


COORDINATOR: Act = kill()
"""Stands for the death of the coordinator in a script."""


@pytest.mark.parametrize(
    ("script", "meanwhile"),
    [
        ({14: COORDINATOR}, kill()),
        pytest.param({14: COORDINATOR}, kill("b"), marks=pytest.mark.slow),
        pytest.param({6: kill("a"), 16: COORDINATOR}, kill(), marks=pytest.mark.slow),
        pytest.param({14: COORDINATOR}, both(kill("c"), start("c")), marks=pytest.mark.slow),
        pytest.param({14: COORDINATOR}, kill("a", "b"), marks=pytest.mark.slow),
    ],
    ids=["all are there", "one is lost", "one was lost before", "one came anew", "one is left"],
)
@pytest.mark.parametrize(
    "schedule", ["1f1b", pytest.param("gpipe", marks=pytest.mark.slow)], ids=str
)
def test_a_coordinator_that_was_killed_is_resumed(
    schedule: str, script: Mapping[int, Act], meanwhile: Act, tmp_path: Path
) -> None:
    scenario = Scenario(script, "", schedule=schedule, epochs=6, example=UNET)
    job, expected = expected_of(scenario.example.name, scenario.epochs)
    left = tmp_path / "left"
    with troubled_fleet("a", "b", "c") as troubled:
        broken_off(troubled, scenario, left)
        meanwhile(troubled)
        there = tuple(n for n in "abc" if troubled.is_there(n))
        net = NetSettings(timeouts=PATIENT)
        with ew.Fleet.over(troubled.world.fabric.join, net, devices=there) as fleet:
            again = replace(troubled, world=replace(troubled.world, fleet=fleet))
            resumed = replace(scenario, script={}, devices="".join(there))
            trainer = trainer_of(again, resumed, job)
            report = fit(again, resumed, trainer, job, checkpoint=left, resume=True)
            again.wait_all_free()
    assert_equal_runs(report, trainer.state_dict(), expected)


CLEAR_ENDS: dict[str, tuple[Scenario, type[ew.EdgeweaveError], str]] = {
    "nobody is left": (
        Scenario({6: kill("a", "b", "c")}, "abc"),
        ew.DeviceLost,
        "was lost in round",
    ),
    "only one is left that the plan does not know": (
        Scenario({4: start("d"), 8: kill("a", "b", "c")}, "abc"),
        ew.DeviceLost,
        "was lost in round",
    ),
    "one is lost before it had its first stage": (
        Scenario({0: kill("b")}, "b"),
        ew.DeviceLost,
        "stage 1 on b was lost before the first round",
    ),
}


@pytest.mark.parametrize(
    ("scenario", "error", "words"),
    [pytest.param(*each, id=name, marks=pytest.mark.slow) for name, each in CLEAR_ENDS.items()],
)
def test_where_nothing_can_go_on_the_error_says_why(
    scenario: Scenario, error: type[ew.EdgeweaveError], words: str
) -> None:
    job, _ = expected_of(scenario.example.name, scenario.epochs)
    with troubled_fleet(*scenario.devices) as troubled:
        with pytest.raises(error, match=words):
            fit(troubled, scenario, trainer_of(troubled, scenario, job), job)
        troubled.wait_all_free()


STALE: dict[str, dict[int, Act]] = {
    "two at once": {11: kill("a", "b")},
    "one after another": {8: kill("c"), 18: kill("a")},
    "one while the others recover": {11: both(at_request("a", "halt", kill("a")), kill("b"))},
}


@pytest.mark.slow
@pytest.mark.parametrize("script", STALE.values(), ids=STALE.keys())
def test_without_a_flush_the_steps_before_the_first_loss_are_kept(script: Any) -> None:
    """After it gradients are of other versions, and the losses go down all the same."""
    job = job_of(UNET, 120, epochs=3)
    found = []
    for trouble in ({}, script):
        scenario = Scenario(trouble, "", example=UNET, schedule="async-1f1b")
        with troubled_fleet(*scenario.devices) as troubled:
            trainer = trainer_of(troubled, scenario, job)
            found.append(fit(troubled, scenario, trainer, job))
            troubled.wait_all_free()
    undisturbed, report = found
    kept = min(recovery.resumed_step for recovery in report.recoveries)
    assert report.step_losses[:kept] == undisturbed.step_losses[:kept]
    assert len(report.step_losses) == len(undisturbed.step_losses) == 30
    assert sum(report.step_losses[20:]) < sum(report.step_losses[:10])
