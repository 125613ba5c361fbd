"""Slices of devices that stay away, on spare ones: against runs in which the device came back
itself with the same copy at the same step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from edgeweave.cli.super_neurons import report_lines, slice_document
from edgeweave.core.errors import FleetError
from edgeweave.data.batches import Batch
from edgeweave.device import Fault, MemberMoved, Optimizer, Roster, encode_message
from edgeweave.net.remote import encode_error
from edgeweave.plan import SlicePlan
from edgeweave.program import flatten_inputs
from edgeweave.train.slices import trainer
from edgeweave.train.slices.absences import Absence, Move
from edgeweave.train.slices.deployment import SliceSettings
from edgeweave.train.slices.run import SliceRun
from tests.fleet.worlds import MemoryFleet, wait_until
from tests.train.sliced_worlds import (
    HYBRID,
    Samples,
    batches,
    captured,
    lossy_fleet,
    network,
    sliced_world,
    trained,
)

pytestmark = pytest.mark.timeout(120)

N_STEPS = 6
SOON = {"move_after": N_STEPS + 4, "move_after_seconds": 0.0}
"""Not while ``steps`` trains with a mask, but soon afterwards."""
NEVER = 1_000_000
OPTIMIZER = Optimizer("SGD", lr=0.1, momentum=0.9)
State = dict[str, torch.Tensor]


def steps(run: SliceRun, data: Iterator[Samples], first_step: int) -> None:
    trained(run, islice(data, N_STEPS), first_step=first_step)


def idle(run: SliceRun) -> None:
    """A round that teaches nothing."""
    inputs, target = next(batches(1))
    run.evaluate([Batch(flatten_inputs(inputs, target), len(inputs))])


def idle_until(run: SliceRun, true: Callable[[], bool], what: str) -> None:
    def looked() -> bool:
        idle(run)
        return true()

    wait_until(looked, what)


def lose(world: MemoryFleet, run: SliceRun, device: str) -> None:
    n_before = len(run.absences)
    world.fabric.kill(device)
    wait_until(lambda: len(run.absences) > n_before, f"the coordinator sees that {device} is gone")


def lose_sight(_world: MemoryFleet, run: SliceRun, device: str) -> None:
    """The coordinator sees a device no more, which lives on with its slice, as others see."""
    run._crew._on_lost(device)


def learnt_with(
    bring_back: Callable[[MemoryFleet, SliceRun], None],
    leave: Callable[[MemoryFleet, SliceRun, str], None] = lose,
    **options: Any,
) -> State:
    """Six steps whole, six with pi-1 as a mask, and six with its slice at work again."""
    with sliced_world(captured(), HYBRID, optimizer=OPTIMIZER, **options) as (world, run):
        data = batches(3 * N_STEPS)
        steps(run, data, 0)
        run.fetch_state()  # the newest copy is that of the sixth step
        leave(world, run, "pi-1")
        steps(run, data, N_STEPS)
        bring_back(world, run)
        steps(run, data, 2 * N_STEPS)
        return run.fetch_state()[0]


def moved(_world: MemoryFleet, run: SliceRun) -> None:
    idle_until(run, lambda: bool(run.moves), "the slice of pi-1 is at work on a spare")
    assert run.plan.devices == ("pi-0", "spare", "pi-2", "pi-3")
    assert run.moves == (Move("pi-1", "spare", 2 * N_STEPS - 1),)
    assert run.absences == (Absence("pi-1", N_STEPS - 1, 2 * N_STEPS - 1),)
    assert set(run.statistics()) == set(run.plan.devices)


def moved_for_nothing(world: MemoryFleet, run: SliceRun) -> None:
    """The old device had only been cut off from the coordinator, and turns up with its slice."""
    moved(world, run)
    old = world.agents["pi-1"]
    assert old._membership is not None
    idle(run)
    run._on_fault(encode_message(Fault(run._name, 0, "pi-1", 1, encode_error(FleetError("x")))))
    run._crew._on_there("pi-1")
    idle_until(run, lambda: old._membership is None, "what pi-1 has of the run is ended")


def returned(world: MemoryFleet, run: SliceRun) -> None:
    world.start("pi-1")
    idle_until(run, lambda: run.absences[0].stop_step is not None, "pi-1 has a part again")
    assert run.moves == ()


def test_a_slice_on_a_spare_device_learns_what_it_would_have_learnt_on_its_own_one() -> None:
    on_spare = learnt_with(moved, spares=["spare"], **SOON)
    at_home = learnt_with(returned)
    for name, tensor in at_home.items():
        assert torch.equal(on_spare[name], tensor), name


@pytest.mark.slow
def test_a_device_that_was_only_cut_off_disturbs_nothing_when_its_slice_has_moved() -> None:
    cut_off = learnt_with(moved_for_nothing, lose_sight, spares=["spare"], **SOON)
    at_home = learnt_with(returned)
    for name, tensor in at_home.items():
        assert torch.equal(cut_off[name], tensor), name


@pytest.mark.slow
def test_a_slice_that_has_moved_learns() -> None:
    """Or else the test above would hold for a slice that both runs leave out."""
    with sliced_world(captured(), HYBRID, spares=["spare"], **SOON) as (world, run):
        data = batches(2 * N_STEPS)
        lose(world, run, "pi-1")
        steps(run, data, 0)
        idle_until(run, lambda: bool(run.moves), "the slice of pi-1 is at work on a spare")
        before = run.fetch_state()[0]
        steps(run, data, N_STEPS)
        after = run.fetch_state()[0]
        (share,) = run.sliced.state["0.weight"][1]
        heard = run.statistics()["pi-0"].senders
    ((start, stop),) = share.spans[1]
    assert torch.equal(before["0.weight"][start:stop], captured().state["0.weight"][start:stop])
    assert not torch.equal(after["0.weight"][start:stop], before["0.weight"][start:stop])
    assert [each.sender for each in heard if each.arrived] == ["spare", "pi-2", "pi-3"]


@pytest.mark.parametrize(
    ("spares", "options"),
    [
        ((), SOON),
        (("spare",), {**SOON, "move_after": NEVER}),
        (("spare",), {**SOON, "move_after_seconds": NEVER}),
    ],
)
def test_it_stays_a_mask_without_a_spare_and_before_it_could_have_returned(
    spares: Any, options: Any
) -> None:
    with sliced_world(captured(), HYBRID, spares=spares, **options) as (world, run):
        lose(world, run, "pi-1")
        steps(run, batches(N_STEPS), 0)
        for _ in range(N_STEPS):
            idle(run)
        assert run.moves == ()
        returned(world, run)
        assert run.plan.devices == ("pi-0", "pi-1", "pi-2", "pi-3")


def test_a_device_that_returns_after_the_move_is_a_spare_and_gets_the_slice_back_as_one() -> None:
    with sliced_world(captured(), HYBRID, spares=["spare"], **SOON) as (world, run):
        data = batches(4 * N_STEPS)
        lose(world, run, "pi-1")
        idle_until(run, lambda: bool(run.moves), "the slice of pi-1 is at work on a spare")
        world.start("pi-1")
        steps(run, data, 0)
        for _ in range(20):
            idle(run)
        assert run.plan.devices[1] == "spare"
        assert len(run.moves) == 1
        assert world.agents["pi-1"]._membership is None
        lose(world, run, "spare")
        steps(run, data, N_STEPS)
        idle_until(run, lambda: len(run.moves) == 2, "the slice is on pi-1")
        steps(run, data, 2 * N_STEPS)
        run.fetch_state()
        moves, absences, devices = run.moves, run.absences, run.plan.devices
    assert [(each.device, each.to) for each in moves] == [("pi-1", "spare"), ("spare", "pi-1")]
    assert [each.device for each in absences] == ["pi-1", "spare"]
    assert all(each.stop_step is not None for each in absences)
    assert devices == ("pi-0", "pi-1", "pi-2", "pi-3")


def test_a_spare_that_dies_as_a_member_comes_back_as_one() -> None:
    with sliced_world(captured(), HYBRID, spares=["spare"], **SOON) as (world, run):
        data = batches(3 * N_STEPS)
        lose(world, run, "pi-1")
        idle_until(run, lambda: bool(run.moves), "the slice of pi-1 is at work on a spare")
        steps(run, data, 0)
        lose(world, run, "spare")
        steps(run, data, N_STEPS)
        world.start("spare")
        idle_until(run, lambda: run.absences[-1].stop_step is not None, "spare is at work again")
        steps(run, data, 2 * N_STEPS)
        run.fetch_state()
        assert [each.to for each in run.moves] == ["spare"]
        assert run.plan.devices[1] == "spare"


@pytest.mark.slow
def test_two_slices_move_to_two_spares() -> None:
    """Who moved first is told where the other one is, and both hear each other."""
    spares = ["spare-a", "spare-b"]
    with sliced_world(captured(), HYBRID, spares=spares, **SOON) as (world, run):
        data = batches(2 * N_STEPS)
        lose(world, run, "pi-1")
        lose(world, run, "pi-2")
        steps(run, data, 0)
        idle_until(run, lambda: len(run.moves) == 2, "both slices are at work")
        steps(run, data, N_STEPS)
        run.fetch_state()
        assert run.plan.devices == ("pi-0", "spare-a", "spare-b", "pi-3")
        for device, told in run.statistics().items():
            heard = [each.sender for each in told.senders if each.arrived]
            assert heard == [each for each in run.plan.devices if each != device]


def test_a_member_that_is_not_told_has_no_part_until_it_was_deployed_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with sliced_world(captured(), HYBRID, spares=["spare"], **SOON) as (world, run):
        ask, refused = world.fleet.ask, []

        def asked(device: str, verb: str, message: Any, *, timeout_seconds: float) -> bytes:
            if (device, verb) == ("pi-2", "moved"):
                refused.append(message)
                raise FleetError("pi-2 does not answer")
            return ask(device, verb, message, timeout_seconds=timeout_seconds)

        monkeypatch.setattr(world.fleet, "ask", asked)
        lose(world, run, "pi-1")
        idle_until(run, lambda: bool(run.moves), "the slice of pi-1 is at work on a spare")
        idle_until(run, lambda: run.absences[-1].stop_step is not None, "pi-2 is at work again")
        steps(run, batches(N_STEPS), 0)
        heard = run.statistics()["pi-2"].senders
        assert [each.device for each in run.absences] == ["pi-1", "pi-2"]
    assert [(each.stage, each.device) for each in refused] == [(1, "spare")]
    assert [each.sender for each in heard if each.arrived] == ["pi-0", "spare", "pi-3"]


def test_a_member_is_told_of_others_that_move_to_devices_without_one() -> None:
    with sliced_world(captured(), HYBRID) as (world, run):
        for stage, device, rule in ((1, "x", "of others"), (2, "pi-0", "to a device without one")):
            message = MemberMoved(run._name, stage, device)
            with pytest.raises(FleetError, match=rule):
                world.fleet.ask("pi-1", "moved", message, timeout_seconds=5.0)


def test_a_roster_knows_who_was_where() -> None:
    roster = Roster(("a", "b"))
    assert roster.note("c", there=True) is None
    roster.move(1, "c")
    assert roster.devices == ("a", "c")
    known = [(rank, name) for rank in (0, 1, 2) for name in "abc" if roster.has_been(rank, name)]
    assert known == [(0, "a"), (1, "b"), (1, "c")]
    assert (roster.note("b", there=True), roster.note("c", there=False)) == (None, 1)
    assert [roster.is_there(name) for name in "bc"] == [True, False]
    with pytest.raises(FleetError, match=r"^a member moves to a device without one \(member 2 "):
        roster.move(2, "d")


def test_the_report_and_the_trainers_plan_have_the_device_that_a_slice_moved_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    soon = functools.partial(SliceSettings, move_after=4, move_after_seconds=0.0)
    monkeypatch.setattr(trainer, "SliceSettings", soon)
    inputs = torch.randn(480, 8, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(inputs, inputs[:, :3].argmax(1))
    with lossy_fleet("pi-0", "pi-1", "pi-2", "pi-3", "spare") as world:
        used = trainer.SuperNeuronTrainer(
            network(),
            nn.functional.cross_entropy,
            optimizer=OPTIMIZER,
            fleet=world.fleet,
            delivery="tolerant",
            plan=SlicePlan(HYBRID, ("pi-0", "pi-1", "pi-2", "pi-3")),
        )

        def begin(step: int) -> None:
            if step == 5:
                world.fabric.kill("pi-1")
            if step == 20:
                spare = world.agents["spare"]
                wait_until(lambda: spare._membership is not None, "the spare is asked")

        monkeypatch.setattr(world.fleet, "step_begins", begin)
        report = used.fit(data, batch_size=8, epochs=1, progress=False)
        evaluated = used.evaluate(data, batch_size=64)
    assert report.plan == used.plan == SlicePlan(HYBRID, ("pi-0", "spare", "pi-2", "pi-3"))
    assert [each.device for each in report.members] == ["pi-0", "spare", "pi-2", "pi-3"]
    assert all(each.statistics is not None for each in report.members)
    assert evaluated.n_samples == 480
    ((move,), (absence,)) = report.moves, report.absences
    assert (move.device, move.to, absence.device) == ("pi-1", "spare", "pi-1")
    assert absence.stop_step == move.step
    assert slice_document(report)["moves"] == (
        {"device": "pi-1", "to": "spare", "step": move.step},
    )
    assert {absence.line(), move.line()} <= set(report_lines(report))
    assert move.line().startswith("the slice of pi-1 moved to spare, which has a part from step ")
