"""Runs that move between plans while they train, and copies that come when they are not awaited."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest
import safetensors.torch

import edgeweave as ew
from edgeweave.core.errors import EdgeweaveError
from edgeweave.data.batches import Batch, Cursor, epoch_batches
from edgeweave.device import Deploy, Halt, Pulse
from edgeweave.plan import Plan, Replication, taken_over
from edgeweave.program import Captured, capture, cut, without_outputs
from edgeweave.train import crew
from edgeweave.train.failures.elastic import ElasticRun
from edgeweave.train.run import RunSettings
from edgeweave.train.weights import Weights
from tests.fleet.worlds import QUICK, MemoryFleet, memory_fleet, plan_of, wait_until
from tests.models import Example
from tests.train.reference import Job, differing, job_of, train_eagerly
from tests.train.test_trainer_equality import SGD, torch_optimizer
from tests.train.trained_models import CNN, MLP, UNET, n_units

OFTEN = Replication(chain_every=2, whole_every=4)
NEVER = Replication(1000, 1000)


@pytest.fixture
def world() -> Iterator[MemoryFleet]:
    with memory_fleet("a", "b", "c", "d") as made:
        yield made


def plan(
    example: Example, devices: str, boundaries: tuple[int, ...], replication: Replication = OFTEN
) -> Plan:
    made = plan_of(tuple(devices), boundaries, n_units(example))
    return replace(made, replication=replication)


@dataclass
class Trained:
    """A run driven step by step, as ``fit`` drives it, without its epochs and files."""

    elastic: ElasticRun
    weights: Weights
    job: Job
    captured: Captured
    batches: list[Batch]
    losses: list[float] = field(default_factory=list)

    @property
    def step(self) -> int:
        return len(self.losses)

    def until(self, step: int) -> None:
        while self.step < step:
            result = self.elastic.train_step(self.step, self.batches[self.step], {"lr": 0.05})
            self.losses.append(result.loss)

    def recover(self, error: ew.DeviceLost) -> int:
        """Go on with those left of the plan; the step it goes on from."""
        found = self.elastic.recover(
            self.step, error, lambda left: taken_over(self.elastic.plan, left)
        )
        del self.losses[found.resumed_step :]
        return found.resumed_step

    def finish(self) -> None:
        """Train to the end, and compare with one device."""
        self.until(len(self.batches))
        self.weights.fetch(self.elastic, self.step)
        expected = train_eagerly(self.job, torch_optimizer(SGD))
        assert self.losses == expected.step_losses
        found = {name: self.weights.state[name] for name in expected.state}
        assert differing(found, expected.state) == []


@contextmanager
def training(world: MemoryFleet, job: Job, first: Plan, **options: Any) -> Iterator[Trained]:
    captured = capture(job.model, job.loss, *job.data[:4])
    state = {name: tensor.detach().clone() for name, tensor in captured.state.items()}
    weights = Weights(state)
    settings = RunSettings(SGD, job.microbatch_size, job.seed)
    batches = [
        batch
        for epoch in range(job.epochs)
        for batch in epoch_batches(job.data, job.batch_size, seed=job.seed, cursor=Cursor(epoch))
    ]
    with ElasticRun(world.fleet, captured.program, weights, first, settings, **options) as elastic:
        yield Trained(elastic, weights, job, captured, batches)
    let_go = {world.fleet.greet(name).run for name in world.fleet.present()}
    assert elastic._name not in let_go


def watch(monkeypatch: pytest.MonkeyPatch, act: Callable[[str, str, Any], None]) -> None:
    """``act(device, verb, message)`` comes before every request of the coordinator."""
    ask = ew.Fleet.ask

    def act_and_ask(self: ew.Fleet, device: str, verb: str, message: Any, **options: Any) -> bytes:
        act(device, verb, message)
        return ask(self, device, verb, message, **options)

    monkeypatch.setattr(ew.Fleet, "ask", act_and_ask)


def deployments(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Deploy]]:
    """All that are asked for from now on."""
    found: list[tuple[str, Deploy]] = []

    def note(device: str, _verb: str, message: Any) -> None:
        if isinstance(message, Deploy):
            found.append((device, message))

    watch(monkeypatch, note)
    return found


def random_plan(rng: random.Random, example: Example) -> Plan:
    devices = rng.sample("abcd", rng.randint(1, 4))
    boundaries = sorted(rng.sample(range(1, n_units(example)), len(devices) - 1))
    often = Replication(rng.randint(1, 4), rng.randint(1, 6))
    return plan(example, "".join(devices), tuple(boundaries), often)


@pytest.mark.parametrize("example", [MLP, CNN, UNET], ids=lambda example: example.name)
@pytest.mark.parametrize("seed", range(3))
def test_a_run_moves_about_as_it_likes_and_its_numbers_stay(
    world: MemoryFleet, example: Example, seed: int
) -> None:
    rng, job = random.Random(seed), job_of(example, 40, epochs=3)
    plans = [random_plan(rng, example) for _ in range(4)]
    plans.append(plans[0])  # and back
    steps = sorted(rng.choices(range(12), k=4))
    with training(world, job, plans[0]) as run:
        for step, new in zip(steps, plans[1:], strict=True):
            run.until(step)
            run.elastic.move(run.step, new)
            assert run.elastic.plan == new
        run.finish()


def owners(made: Plan, captured: Captured) -> dict[str, set[str]]:
    """By device, what training changes of the units it holds."""
    firsts = [stage.first_unit for stage in made.stages[1:]]
    stages = cut(without_outputs(captured.program), firsts)
    return {device: set(stage.trained) for device, stage in zip(made.devices, stages, strict=True)}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("abc", (2, 5)), ("abc", (3, 5))),
        (("abc", (2, 5)), ("abd", (2, 5))),
        (("abc", (2, 5)), ("cab", (2, 5))),
        (("ab", (3,)), ("abcd", (1, 3, 5))),
        (("abcd", (1, 3, 5)), ("a", ())),
        (("abc", (2, 5)), ("abc", (2, 5))),
    ],
    ids=str,
)
def test_only_units_that_change_hands_travel_and_only_once(
    world: MemoryFleet,
    monkeypatch: pytest.MonkeyPatch,
    before: tuple[str, tuple[int, ...]],
    after: tuple[str, tuple[int, ...]],
) -> None:
    job = job_of(MLP, 40)
    old, new = plan(MLP, *before, NEVER), plan(MLP, *after, NEVER)
    with training(world, job, old) as run:
        run.until(3)
        run.weights.step = 0  # nothing was copied here
        sent = deployments(monkeypatch)
        run.elastic.move(3, new)
        had, has = owners(old, run.captured), owners(new, run.captured)
        assert {device for device, _ in sent} == set(new.devices)
        for device, message in sent:
            stays = has[device] & had.get(device, set())
            assert set(message.own) == stays
            fetched = [(n, d) for d, names in message.elsewhere.items() for n in names]
            assert {name for name, _ in fetched} == has[device] - stays
            assert len(fetched) == len(has[device] - stays)
            assert all(name in had[holder] for name, holder in fetched)
            along = safetensors.torch.load(bytes(message.tensors))
            assert along.keys() & has[device] == set()
            assert message.step == 3
        run.finish()


def test_frozen_parameters_stay_where_they_are(
    world: MemoryFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with training(world, frozen_job(), plan(CNN, "ab", (2,), NEVER)) as run:
        run.until(3)
        sent = deployments(monkeypatch)
        run.elastic.move(3, plan(CNN, "ab", (1,), NEVER))
        run.finish()
    assert "conv1.weight" in dict(sent)["a"].own


def frozen_job() -> Job:
    job = job_of(CNN, 40)
    for parameter in (*job.model.conv1.parameters(), *job.model.conv2.parameters()):
        parameter.requires_grad_(False)
    return job


@pytest.mark.parametrize("refuses", ["a", "b", "c"])
@pytest.mark.parametrize("error", [ew.PlanError("no room"), ew.FleetError("not ready")], ids=repr)
def test_a_move_that_cannot_be_deployed_leaves_the_run_with_the_plan_it_had(
    world: MemoryFleet,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    refuses: str,
    error: EdgeweaveError,
) -> None:
    """Also those devices that had begun with the new one, whose stages held other constants."""

    def act(device: str, _verb: str, message: Any) -> None:
        if isinstance(message, Deploy) and (message.assignment.term, device) == (1, refuses):
            wait_until(
                lambda: {d for d, m in sent if m.assignment.term == 1} >= set("abc") - {refuses},
                "the others are asked",
            )
            raise error

    monkeypatch.setattr(crew, "_BLAME_SECONDS", 0.0)
    old, new = plan(CNN, "abc", (1, 2)), plan(CNN, "cba", (1, 2))
    with training(world, frozen_job(), old) as run:
        run.until(3)
        watch(monkeypatch, act)
        sent = deployments(monkeypatch)
        assert not run.elastic.move(3, new)
        assert f"the plan stays, because another cannot be deployed: {error}" in caplog.text
        assert run.elastic.plan == old
        run.until(5)
        assert run.elastic.move(5, new)
        assert run.elastic.plan == new
        run.finish()


def test_a_device_lost_while_the_others_end_their_step_for_a_move_is_noticed_there(
    world: MemoryFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its neighbour would wait ``Timeouts.frame`` for the last gradient before it could halt."""
    job, pulse = job_of(UNET, 40, epochs=3), ew.Fleet.pulse

    killed = threading.Event()

    def late(self: ew.Fleet, device: str, **options: Any) -> Pulse:
        if not killed.is_set():
            killed.set()
            world.fabric.kill("b")
        return msgspec.structs.replace(pulse(self, device, **options), rounds=0)

    with training(world, job, plan(UNET, "abc", (2, 5))) as run:
        run.until(5)
        monkeypatch.setattr(ew.Fleet, "pulse", late)
        with pytest.raises(ew.DeviceLost) as lost:
            run.elastic.move(5, plan(UNET, "cba", (1, 3)))
        assert lost.value.device == "b"
        assert 0 <= run.recover(lost.value) <= 5
        run.finish()


@pytest.mark.parametrize(
    "victim", ["a", *(pytest.param(each, marks=pytest.mark.slow) for each in ("c", "d"))]
)
def test_a_device_lost_during_a_move_is_recovered_from(
    world: MemoryFleet, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    """``a`` goes, ``c`` stays and ``d`` comes."""

    def act(device: str, _verb: str, message: Any) -> None:
        if isinstance(message, Deploy) and (message.assignment.term, device) == (1, victim):
            world.fabric.kill(victim)

    job = job_of(UNET, 40, epochs=3)
    with training(world, job, plan(UNET, "abc", (2, 5))) as run:
        run.until(5)
        watch(monkeypatch, act)
        new = plan(UNET, "cbad" if victim == "a" else "cbd", (1, 3, 5)[: 3 if victim == "a" else 2])
        with pytest.raises(ew.DeviceLost) as lost:
            run.elastic.move(5, new)
        assert lost.value.device == victim
        assert 0 <= run.recover(lost.value) <= 5
        assert victim not in run.elastic.plan.devices
        run.finish()


def test_a_device_lost_while_a_move_halts_it_is_recovered_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The one before it waits for a gradient until its deadline for frames is over."""

    def act(device: str, _verb: str, message: Any) -> None:
        if isinstance(message, Halt) and message.rounds is not None and device == "b":
            world.fabric.kill("b")

    job = job_of(UNET, 40, epochs=3)
    with (
        memory_fleet("a", "b", "c", timeouts=replace(QUICK, frame=5.0)) as world,
        training(world, job, plan(UNET, "abc", (2, 5))) as run,
    ):
        run.until(5)
        watch(monkeypatch, act)
        with pytest.raises(ew.DeviceLost) as lost:
            run.elastic.move(5, plan(UNET, "acb", (2, 5)))
        assert lost.value.device == "b"
        run.recover(lost.value)
        run.finish()


def test_a_device_that_does_not_halt_for_a_move_counts_as_lost(
    world: MemoryFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have halted by then: to go on as before is not possible any more."""

    def act(device: str, _verb: str, message: Any) -> None:
        if isinstance(message, Halt) and message.rounds is not None and device == "b":
            raise ew.DeviceTimeout("b did not answer in 30 s.", device="b")

    monkeypatch.setattr(crew, "_BLAME_SECONDS", 0.0)
    job = job_of(UNET, 40, epochs=3)
    with training(world, job, plan(UNET, "abc", (2, 5))) as run:
        run.until(5)
        watch(monkeypatch, act)
        with pytest.raises(ew.DeviceLost) as lost:
            run.elastic.move(5, plan(UNET, "acb", (2, 5)))
        assert str(lost.value).startswith("b did not stop for another plan, and counts as lost (b ")
        assert lost.value.device == "b"
        run.recover(lost.value)
        assert run.elastic.plan.devices == ("a", "c")
        run.finish()


def test_a_copy_that_comes_after_the_run_went_back_is_not_taken_for_the_present(
    world: MemoryFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole states reach the coordinator in parts; the last part may come when a device is lost."""
    let, held = threading.Event(), threading.Event()
    request = type(world.fleet.transport).request

    def slow(self: Any, key: str, payload: Any, **options: Any) -> bytes:
        answer = request(self, key, payload, **options)
        if self is world.fleet.transport and key.endswith("/a/replicate") and not let.is_set():
            held.set()
            assert let.wait(30.0)
        return answer

    monkeypatch.setattr(type(world.fleet.transport), "request", slow)
    job = job_of(UNET, 40, epochs=3)
    only_whole = Replication(chain_every=1000, whole_every=4)
    with training(world, job, plan(UNET, "abc", (2, 5), only_whole)) as run:
        run.until(4)
        assert held.wait(30.0)
        wait_until(lambda: run.elastic._copies._coming is not None, "it is on its way")
        others = [f for d, f in run.elastic._copies._coming[1].items() if d != "a"]
        wait_until(lambda: all(each.done() for each in others), "b and c have answered")
        world.fabric.kill("c")
        with pytest.raises(ew.DeviceLost) as lost:
            run.until(12)
        assert run.recover(lost.value) == 0  # c's part of step 4 was nowhere but on its way
        let.set()
        run.until(2)
        assert run.weights.step <= 2
        world.fabric.kill("b")
        with pytest.raises(ew.DeviceLost) as lost:
            run.until(12)
        assert run.recover(lost.value) <= 2
        run.finish()


def test_without_replication_a_loss_is_raised_as_it_is(world: MemoryFleet) -> None:
    job = job_of(MLP, 40)
    with training(world, job, plan(MLP, "abc", (2, 5)), replicates=False) as run:
        run.until(5)
        assert not any(run.elastic.has_snapshot(step) for step in range(1, 6))
        world.fabric.kill("b")
        with pytest.raises(ew.DeviceLost) as lost:
            run.until(8)
        with pytest.raises(ew.DeviceLost) as again:
            run.recover(lost.value)
        assert again.value is lost.value
        assert run.elastic.plan.devices == ("a", "b", "c")


def test_a_spare_device_that_works_for_another_run_is_left_out(world: MemoryFleet) -> None:
    job = job_of(MLP, 40)
    other = training(world, job, plan(MLP, "a", ()))
    with training(world, job, plan(MLP, "b", ())) as run:
        run.until(5)
        with other as busy:
            world.fabric.kill("b")
            with pytest.raises(ew.DeviceLost) as lost:
                run.until(8)
            found = run.elastic.recover(run.step, lost.value, lambda left: plan(MLP, left[0], ()))
            assert (found.lost, found.left) == (("b",), ("c", "d"))
            del run.losses[found.resumed_step :]
            run.finish()
            busy.finish()


def test_a_recovery_says_what_happened_in_a_line(world: MemoryFleet) -> None:
    job = job_of(MLP, 40)
    with training(world, job, plan(MLP, "abc", (2, 5))) as run:
        run.until(5)
        world.fabric.kill("b")
        with pytest.raises(ew.DeviceLost) as lost:
            run.until(8)
        at = run.step
        found = run.elastic.recover(at, lost.value, lambda left: taken_over(run.elastic.plan, left))
    assert (found.step, found.lost, found.left) == (at, ("b",), ("a", "c", "d"))
    assert found.recomputed_steps == at - found.resumed_step
    assert min(found.silent_seconds, found.seconds) >= 0
    assert found.line() == (
        f"step {at}: b lost (noticed after {found.silent_seconds:.2f} s); goes on after step "
        f"{found.resumed_step} with a, c, {found.seconds:.2f} s later."
    )


def test_devices_that_have_no_part_any_more_are_let_go(world: MemoryFleet) -> None:
    job = job_of(MLP, 40)
    with training(world, job, plan(MLP, "abc", (2, 5))) as run:
        run.until(2)
        run.elastic.move(2, plan(MLP, "bd", (3,)))
        runs: Mapping[str, str | None] = {n: world.fleet.greet(n).run for n in "abcd"}
        assert [name for name, at_work in runs.items() if at_work is None] == ["a", "c"]
        run.finish()


def test_the_first_term_is_told_of_before_it_is_deployed(world: MemoryFleet) -> None:
    told: list[int] = []
    job = job_of(MLP, 24)
    with training(
        world, job, plan(MLP, "ab", (3,)), on_term=lambda _run, number: told.append(number)
    ) as run:
        run.until(1)
        run.elastic.move(1, plan(MLP, "ba", (3,)))
        run.finish()
    assert told == [0, 1]
