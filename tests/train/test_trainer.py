"""The trainer's own rules: what it refuses, what it plans, and how a run ends when a part fails."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import edgeweave as ew
from edgeweave.device.messages import StateRequest
from edgeweave.net import frame_key
from edgeweave.net._ears import Role
from edgeweave.program import capture
from edgeweave.train import measure_costs
from tests.device.stages.examples import frame
from tests.fleet.worlds import MemoryFleet, memory_fleet, plan_of, wait_until
from tests.models import Example
from tests.train.interrupted import Interrupted
from tests.train.reference import job_of, train_eagerly
from tests.train.trained_models import CNN, MLP, TIED, n_units

SGD = ew.Optimizer("SGD", lr=0.05, momentum=0.9)


def trainer_of(fleet: ew.Fleet, example: Example = MLP, **options: Any) -> ew.PipelineTrainer:
    options.setdefault("optimizer", SGD)
    options.setdefault("plan", plan_of(("a", "b", "c"), (1, 3), n_units(example)))
    options.setdefault("n_microbatches", 4)
    return ew.PipelineTrainer(example.model(), example.loss, fleet=fleet, **options)


def fit(trainer: ew.PipelineTrainer, data: Any, **options: Any) -> ew.Report:
    options = {"batch_size": 12, "epochs": 2, "progress": False, **options}
    return trainer.fit(data, **options)


def data_of(n_samples: int, example: Example = MLP) -> TensorDataset:
    return TensorDataset(*example.batch(n_samples))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"schedule": "zero"},
            "unknown schedule 'zero' (known: 1f1b, gpipe, async-1f1b). Choose one.",
        ),
        ({"measure": "guess"}, "unknown measure 'guess' (known: profile, probe). Choose one."),
        ({"clip_grad_norm": 0}, "clip_grad_norm is positive (got 0)."),
        ({"clip_grad_norm": -1.5}, "clip_grad_norm is positive (got -1.5)."),
    ],
)
def test_options_that_mean_nothing_are_refused(
    fleet: ew.Fleet, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ew.ConfigError) as refused:
        trainer_of(fleet, **options)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("n_samples", "options", "message"),
    [
        (0, {}, "training needs at least one sample, batch_size >= 1 and epochs >= 1 (got 0,"),
        (8, {"epochs": 0}, "training needs at least one sample"),
        (8, {"batch_size": 0}, "training needs at least one sample"),
        (8, {"batch_size": 3}, "n_microbatches is at least 1 and at most batch_size (got 4 for 3)"),
        (8, {"validate": []}, "evaluation needs at least one sample (the data set has none)."),
    ],
)
def test_training_that_cannot_be_is_refused(
    fleet: ew.Fleet, n_samples: int, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ew.ConfigError) as refused:
        fit(trainer_of(fleet), data_of(n_samples), **options)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(("data", "size"), [([], 12), (data_of(8), 0)])
def test_evaluation_that_cannot_be_is_refused(fleet: ew.Fleet, data: Any, size: int) -> None:
    with pytest.raises(ew.ConfigError):
        trainer_of(fleet, n_microbatches=None).evaluate(data, batch_size=size)


def test_an_optimizer_that_torch_lacks_is_refused_before_anything_is_deployed(
    fleet: ew.Fleet,
) -> None:
    with pytest.raises(ew.ConfigError, match=r"^torch\.optim has no optimizer 'Sdg'"):
        fit(trainer_of(fleet, optimizer=ew.Optimizer("Sdg", lr=1.0)), data_of(12))


def test_a_plan_for_other_devices_is_refused(fleet: ew.Fleet) -> None:
    plan = plan_of(("a", "x"), (2,), n_units(MLP))
    with pytest.raises(ew.PlanError) as refused:
        fit(trainer_of(fleet, plan=plan), data_of(12))
    assert str(refused.value) == (
        "the plan is for another fleet or model (it uses a, x and 7 units; the fleet has a, b, c, "
        "the model 7 units). Plan again."
    )


def test_a_plan_for_another_model_is_refused(fleet: ew.Fleet) -> None:
    plan = plan_of(("a", "b"), (2,), 99)
    with pytest.raises(ew.PlanError, match="it uses a, b and 99 units"):
        fit(trainer_of(fleet, plan=plan), data_of(12))


def test_a_plan_for_fewer_microbatches_is_refused(fleet: ew.Fleet) -> None:
    plan = plan_of(("a", "b"), (2,), n_units(MLP), n_microbatches=2)
    with pytest.raises(ew.PlanError) as refused:
        fit(trainer_of(fleet, plan=plan), data_of(12))
    assert str(refused.value) == (
        "the plan is for 2 microbatches a step, the batch has 4. Plan again."
    )


def test_evaluation_takes_larger_batches_than_training_was_planned_for(fleet: ew.Fleet) -> None:
    trainer = trainer_of(fleet, n_microbatches=None)
    fit(trainer, data_of(16), batch_size=8)
    found = trainer.evaluate(data_of(90), batch_size=64)
    assert found.n_samples == 90


def test_a_trainer_measures_and_plans_by_itself(fleet: ew.Fleet) -> None:
    job = job_of(MLP, 32, seed=0)
    trainer = trainer_of(fleet, plan=None)
    plan = trainer.prepare(job.data, batch_size=12)
    assert trainer.prepare(job.data, batch_size=12) is plan is trainer.plan
    assert trainer.costs is not None
    report = fit(trainer, job.data)
    expected = train_eagerly(
        job, lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    )
    assert list(report.step_losses) == expected.step_losses
    assert report.plan is plan


def test_costs_have_a_number_for_each_unit_device_and_link(fleet: ew.Fleet) -> None:
    captured = capture(CNN.model(), CNN.loss, *CNN.batch(4))
    costs = measure_costs(
        fleet, captured, microbatch_size=4, optimizer=ew.Optimizer("Adam"), repetitions=1
    )
    n = n_units(CNN)
    assert (len(costs.units), len(costs.cuts)) == (n, n - 1)
    assert [device.device for device in costs.devices] == ["a", "b", "c"]
    assert {s: sorted(links) for s, links in costs.links.items()} == {
        "coordinator": ["a", "b", "c"],
        "a": ["b", "c", "coordinator"],
        "b": ["a", "c", "coordinator"],
        "c": ["a", "b", "coordinator"],
    }
    assert {feed.name: feed.units for feed in costs.feeds} == {
        "input:0": (0,),
        "target:0": (n - 1,),
    }
    assert costs.optimizer_bytes_per_trainable_byte == 2
    trainable = sum(p.nbytes for p in CNN.model().parameters())
    assert sum(unit.trainable_bytes for unit in costs.units) == trainable
    some = measure_costs(
        fleet, captured, microbatch_size=4, optimizer=SGD, repetitions=1, devices=["c"]
    )
    assert [device.device for device in some.devices] == ["c"]


def test_a_report_tells_where_time_and_bytes_went(fleet: ew.Fleet) -> None:
    report = fit(trainer_of(fleet), data_of(40))
    assert [(d.device, d.stage) for d in report.devices] == [("a", 0), ("b", 1), ("c", 2)]
    assert len(report.step_seconds) == 6  # the smaller steps are left out
    assert report.n_samples == 80
    assert report.samples_per_second == pytest.approx(80 / report.seconds)
    last = report.devices[-1]
    for device in report.devices:
        kinds = [event.kind for event in device.events]
        assert kinds.count("update") == 8
        assert kinds.count("forward") == kinds.count("backward") == 2 * (3 * 4 + 2)
        assert min(device.compute_seconds, device.peak_memory_bytes) > 0
    assert last.bytes_in > last.bytes_out > 0


def test_bytes_of_a_run_do_not_include_those_of_the_run_before(fleet: ew.Fleet) -> None:
    reports = [fit(trainer_of(fleet), data_of(24)) for _ in range(2)]
    moved = [[(d.bytes_in, d.bytes_out) for d in report.devices] for report in reports]
    assert moved[0] == moved[1]


def test_training_goes_on_from_the_weights_it_has(fleet: ew.Fleet) -> None:
    trainer = trainer_of(fleet, optimizer=ew.Optimizer("SGD", lr=0.05))
    data = data_of(12)
    first = fit(trainer, data, epochs=1, batch_size=12)
    second = fit(trainer, data, epochs=1, batch_size=12)
    assert second.step_losses[0] < first.step_losses[0]


def test_a_failure_in_the_data_set_leaves_as_it_is_and_frees_the_devices(fleet: ew.Fleet) -> None:
    def fail() -> None:
        raise OSError("the card was pulled out")

    with pytest.raises(OSError, match="the card was pulled out"):
        fit(trainer_of(fleet), Interrupted(data_of(48), at=3, act=fail))
    assert {fleet.greet(device).run for device in fleet.devices} == {None}
    fit(trainer_of(fleet), data_of(12))


# From here on something fails, on purpose.


def wait_until_free(fleet: ew.Fleet) -> None:
    """A device that was still being deployed learns a moment later that its run is over."""
    wait_until(lambda: {fleet.greet(device).run for device in fleet.present()} == {None}, "free")


def poisoned(n_samples: int, at: int) -> TensorDataset:
    """Token 99 is beyond an embedding of 40."""
    tokens, target = TIED.batch(n_samples)
    tokens[at, 0] = 99
    return TensorDataset(tokens, target)


@pytest.mark.parametrize("boundaries", [(1, 3), (2, 4)])
def test_an_error_on_a_device_names_it_its_stage_and_shows_its_traceback(
    fleet: ew.Fleet, boundaries: tuple[int, int]
) -> None:
    plan = plan_of(("b", "c", "a"), boundaries, n_units(TIED))
    with pytest.raises(ew.DeviceFailed) as failed:
        fit(trainer_of(fleet, TIED, plan=plan), poisoned(48, 30))
    error = failed.value
    assert (error.device, error.stage) == ("b", 0)
    assert str(error).startswith("stage 0 on b failed: IndexError: index out of range in self")
    assert "--- traceback on b ---" in str(error)
    assert "in _forward" in error.remote_traceback
    fit(trainer_of(fleet, TIED), data_of(12, TIED))


def test_a_target_that_the_loss_refuses_is_an_error_of_the_last_stage(fleet: ew.Fleet) -> None:
    inputs, target = MLP.batch(24)
    target[13] = 77
    with pytest.raises(ew.DeviceFailed) as failed:
        fit(trainer_of(fleet), TensorDataset(inputs, target))
    assert (failed.value.device, failed.value.stage) == ("c", 2)
    assert "Target 77 is out of bounds" in str(failed.value)


def test_samples_of_another_shape_are_refused_by_the_stage_that_takes_them(
    fleet: ew.Fleet,
) -> None:
    trainer = trainer_of(fleet)
    fit(trainer, data_of(12), epochs=1)
    other = TensorDataset(torch.randn(12, 13), torch.zeros(12, dtype=torch.int64))
    with pytest.raises(ew.WireError) as refused:
        trainer.evaluate(other, batch_size=12)
    assert str(refused.value).startswith("stage 0 on a ")


@pytest.fixture
def world() -> Any:
    """A fleet that may be broken."""
    with memory_fleet("a", "b", "c") as made:
        yield made


def run_of(world: MemoryFleet) -> str:
    """The run in progress, as any member of the fleet can learn it."""
    run = world.fleet.greet("b").run
    assert run is not None
    return run


INTRUSIONS = {
    "unexpected kind": (
        lambda: frame("pickle", 0, device="a"),
        "stage 1 on b expects no 'pickle' frame from stage 0 (a).",
    ),
    "too large": (
        lambda: frame("activation", 0, tensors={"x": torch.ones(1 << 20)}, samples=4),
        "stage 1 on b refuses a frame: frame 'activation' from 'pi-a': a payload here is at most ",
    ),
    "a stranger": (
        lambda: frame("gradient", 2, device="stranger", samples=4),
        "stage 1 on b expects no 'gradient' frame from stage 2 (stranger).",
    ),
    "undeclared": (
        lambda: frame("gradient", 2, device="c", tensors={"x": torch.ones(1)}, samples=4),
        "stage 1 on b expects the tensors [",
    ),
    "not a number": (
        lambda: frame("gradient", 2, device="c", samples=float("nan")),
        "stage 1 on b expects a number called samples",
    ),
}


@pytest.mark.parametrize("what", INTRUSIONS)
def test_a_frame_that_does_not_belong_ends_the_run_with_a_clear_error(
    world: MemoryFleet, what: str
) -> None:
    make, message = INTRUSIONS[what]
    stranger = world.fabric.join("stranger")

    def intrude() -> None:
        sent = make()
        stranger.send(frame_key("default", run_of(world), 0, 1, sent.header.kind), sent, device="b")

    with pytest.raises(ew.WireError) as refused:
        fit(trainer_of(world.fleet), Interrupted(data_of(96), at=4, act=intrude), epochs=20)
    assert str(refused.value).startswith(message)
    fit(trainer_of(world.fleet), data_of(12))


@pytest.mark.parametrize("attachment", [b"", b"garbage", b"EW" + bytes(60)])
def test_bytes_that_are_no_frame_end_the_run_with_a_clear_error(
    world: MemoryFleet, attachment: bytes
) -> None:
    def intrude() -> None:
        key = frame_key("default", run_of(world), 0, 1, "activation")
        for ear in world.fabric.hearing(Role.FRAMES, key):
            world.fabric.post(ear, [(attachment, b"chunk")])

    with pytest.raises(ew.WireError) as refused:
        fit(trainer_of(world.fleet), Interrupted(data_of(96), at=4, act=intrude), epochs=20)
    assert str(refused.value).startswith("stage 1 on b refuses a frame: ")


def test_the_coordinator_refuses_results_of_anybody_but_the_last_stage(world: MemoryFleet) -> None:
    stranger = world.fabric.join("stranger")

    def intrude() -> None:
        stranger.send(
            frame_key("default", run_of(world), 0, -1, "result"),
            frame("result", 0, device="a"),
            device=world.fleet.transport.name,
        )

    with pytest.raises(ew.WireError) as refused:
        fit(trainer_of(world.fleet), Interrupted(data_of(96), at=4, act=intrude), epochs=20)
    assert str(refused.value) == (
        "the coordinator expects results of stage 2 (got 'result' from stage 0 on a)."
    )


@pytest.mark.parametrize(
    ("victim", "stage"),
    [("b", 1), *(pytest.param(*at, marks=pytest.mark.slow) for at in (("a", 0), ("c", 2)))],
)
def test_a_device_that_vanishes_is_named_with_its_stage(
    world: MemoryFleet, victim: str, stage: int
) -> None:
    kill = Interrupted(data_of(96), at=4, act=lambda: world.fabric.kill(victim))
    with pytest.raises(ew.DeviceLost) as lost:
        fit(trainer_of(world.fleet, recover=False), kill, epochs=20)
    assert (lost.value.device, lost.value.stage) == (victim, stage)
    message = str(lost.value)
    assert message.startswith(f"stage {stage} on {victim} was lost in round ")
    assert message.endswith(
        "(its process or its link is gone). Bring it back or leave it out, and resume from the "
        "last checkpoint."
    )
    survivors = [device for device in world.fleet.devices if device != victim]
    assert {world.fleet.greet(device).run for device in survivors} == {None}


@pytest.mark.parametrize(
    "link", [("a", "b"), pytest.param(("c", "b"), marks=pytest.mark.slow)], ids="->".join
)
def test_a_link_that_loses_everything_ends_the_run_by_its_deadline(link: tuple[str, str]) -> None:
    timeouts = ew.Timeouts(request=2.0, work=4.0, frame=1.0, send=1.0, idle=20.0, stop=2.0)
    with memory_fleet("a", "b", "c", timeouts=timeouts) as world:
        drop = Interrupted(data_of(96), at=4, act=lambda: world.fabric.drop(*link))
        with pytest.raises(ew.DeviceTimeout) as late:
            fit(trainer_of(world.fleet), drop, epochs=20)
    assert late.value.device in ("a", "b", "c")
    assert "waited 1 s for the " in str(late.value) or "no result of microbatch" in str(late.value)


def test_a_device_lost_while_the_state_is_fetched_ends_the_wait_of_the_others(
    world: MemoryFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage 0 waits for a gradient that never comes, and its state is asked for meanwhile."""
    ask = ew.Fleet.ask
    asked = threading.Barrier(3)

    def ask_and_kill(self: ew.Fleet, device: str, verb: str, message: Any, **options: Any) -> bytes:
        if isinstance(message, StateRequest):
            if asked.wait(20.0) == 0:
                world.fabric.kill("b")
            message = StateRequest(message.run, message.rounds + 1, message.part)
        return ask(self, device, verb, message, **options)

    monkeypatch.setattr(ew.Fleet, "ask", ask_and_kill)
    with pytest.raises(ew.DeviceLost) as lost:
        fit(trainer_of(world.fleet, recover=False), data_of(12), epochs=1)
    assert (lost.value.device, lost.value.stage) == ("b", 1)


def test_a_device_lost_while_stages_are_deployed_is_named(
    world: MemoryFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ew.Fleet.ask

    def ask_or_kill(self: ew.Fleet, device: str, verb: str, message: Any, **options: Any) -> bytes:
        if verb == "deploy" and device == "b":
            world.fabric.kill("b")
        return ask(self, device, verb, message, **options)

    monkeypatch.setattr(ew.Fleet, "ask", ask_or_kill)
    with pytest.raises(ew.DeviceLost) as lost:
        fit(trainer_of(world.fleet), data_of(12))
    assert str(lost.value).startswith("stage 1 on b was lost before the first round (")
    wait_until_free(world.fleet)


def test_a_device_that_works_for_another_run_is_refused_and_keeps_working(
    world: MemoryFleet,
) -> None:
    refused: list[ew.DeviceBusy] = []

    def second_run() -> None:
        with pytest.raises(ew.DeviceBusy) as busy:
            fit(trainer_of(world.fleet, plan=plan_of(("c",), (), n_units(MLP))), data_of(12))
        refused.append(busy.value)

    report = fit(trainer_of(world.fleet), Interrupted(data_of(48), at=4, act=second_run))
    assert len(report.step_losses) == 8
    assert refused[0].device == "c"
    assert str(refused[0]).startswith("c already works for run-")


def test_a_state_that_is_no_safetensors_is_an_error_of_the_wire(
    world: MemoryFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ew.Fleet.ask
    monkeypatch.setattr(
        ew.Fleet,
        "ask",
        lambda self, device, verb, message, **options: (
            b"pickle" if verb == "state" else ask(self, device, verb, message, **options)
        ),
    )
    with pytest.raises(ew.WireError, match=r"^the state that a sent is not safetensors"):
        fit(trainer_of(world.fleet), data_of(12), epochs=1)


def test_a_stage_that_does_not_fit_is_refused_with_numbers() -> None:
    with memory_fleet("a", "b", "c", memory_limits={"b": 4000}) as world:
        with pytest.raises(ew.PlanError) as refused:
            fit(trainer_of(world.fleet), data_of(12))
        wait_until_free(world.fleet)
    message = str(refused.value)
    assert message.startswith("stage 1 on b needs ")
    assert message.endswith("(limit: 3.9 KiB). Lower batch_size or add a device.")


def test_the_planner_puts_on_a_device_only_what_fits() -> None:
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(6)])
    data = TensorDataset(torch.randn(16, 64), torch.randn(16, 64))
    whole = sum(parameter.nbytes for parameter in model.parameters())
    limit = 4 * whole  # Adam needs four times the weights, and activations come on top

    def prepare(world: MemoryFleet) -> ew.Plan:
        trainer = ew.PipelineTrainer(
            model,
            nn.functional.mse_loss,
            optimizer=ew.Optimizer("Adam"),
            fleet=world.fleet,
            n_microbatches=4,
        )
        plan = trainer.prepare(data, batch_size=8)
        fit(trainer, data, batch_size=8, epochs=1)
        return plan

    with memory_fleet("a", "b", memory_limits={"a": limit, "b": limit}) as world:
        plan = prepare(world)
    assert len(plan.stages) == 2
    assert all(stage.memory_bytes <= limit for stage in plan.stages)


def test_a_model_that_fits_nowhere_is_refused_with_what_it_lacks() -> None:
    with memory_fleet("a", "b", memory_limits={"a": 40_000, "b": 40_000}) as world:
        model = nn.Sequential(nn.Linear(64, 40), nn.Linear(40, 4))
        trainer = ew.PipelineTrainer(
            model,
            nn.functional.mse_loss,
            optimizer=ew.Optimizer("Adam"),
            fleet=world.fleet,
            n_microbatches=4,
        )
        data = TensorDataset(torch.randn(16, 64), torch.randn(16, 4))
        with pytest.raises(ew.PlanError, match="fits the memory of 2 devices"):
            trainer.prepare(data, batch_size=8)


def test_a_device_too_small_to_measure_is_named(world: MemoryFleet) -> None:
    with memory_fleet("a", "b", memory_limits={"b": 1000}) as small:
        trainer = trainer_of(small.fleet, plan=None)
        with pytest.raises(ew.PlanError, match=r"^b: profiling needs about "):
            trainer.prepare(data_of(12), batch_size=12)


def test_a_model_that_cannot_be_captured_is_refused_before_any_device_is_asked(
    fleet: ew.Fleet,
) -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    trainer = ew.PipelineTrainer(
        Branching(), MLP.loss, optimizer=SGD, fleet=fleet, n_microbatches=4
    )
    with pytest.raises(ew.CaptureError):
        fit(trainer, data_of(12))
