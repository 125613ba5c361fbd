"""A run's place on a device: terms follow each other, and what was computed outlives them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from edgeweave.core.errors import DeviceBusy, FleetError
from edgeweave.device import (
    Agent,
    AgentSettings,
    Deploy,
    Fetch,
    Greeting,
    Halt,
    Holdings,
    Release,
    Replicate,
    StageStatistics,
    StateRequest,
    decode_message,
    encode_message,
)
from edgeweave.device.tasks import tasks
from edgeweave.net import control_key
from edgeweave.program import encode
from tests.device.stages.examples import LONG, assignment, begin, captured_mlp, frame
from tests.device.test_agent import TIMEOUTS, Bench, bench_of, mlp_first_of_two
from tests.fleet.worlds import wait_until

TRAINED = tuple(sorted(mlp_first_of_two().trained))
SETTINGS = AgentSettings("pi-a", threads=1)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with bench_of(SETTINGS) as made:
        yield made


def train(bench: Bench, step: int = 0, *, snapshot: bool = True) -> None:
    """One step of one microbatch; the stage after answers with gradients of ones."""
    header = begin(step=step).header
    scalars = {**header.scalars, "snapshot": float(snapshot)}
    bench.frames.clear()
    bench.send(frame("begin", number=step, **scalars))
    inputs = {"input:0": torch.full((4, 12), 1.0 + step)}
    bench.send(frame("input", tensors=inputs, number=step, samples=4))
    activation = bench.next_frame("activation")
    gradients = {spec.name: torch.ones(spec.shape) for spec in activation.header.tensors}
    bench.send(frame("gradient", 1, tensors=gradients, number=step, samples=4))


def halt(bench: Bench, device: str = "pi-a", **options: int) -> Holdings:
    message = Halt("run-1", "coordinator-1", **options)
    return decode_message(bench.ask("halt", message, device), Holdings)


def state_of(bench: Bench, rounds: int, device: str = "pi-a") -> dict[str, torch.Tensor]:
    """Weights and the optimizer's part, as the stage at work gives them."""
    found = {}
    for part in ("weights", "optimizer"):
        answer = bench.ask("state", StateRequest("run-1", rounds, part), device)
        found.update(safetensors.torch.load(answer))
    return found


def fetched(bench: Bench, step: int, *names: str, device: str = "pi-a") -> dict[str, torch.Tensor]:
    return safetensors.torch.load(bench.ask("fetch", Fetch("run-1", step, names), device))


def deploy_later(
    bench: Bench,
    *,
    device: str = "pi-a",
    term: int = 1,
    step: int = 1,
    own: tuple[str, ...] = (),
    elsewhere: dict[str, tuple[str, ...]] | None = None,
) -> None:
    """The same stage in a later term; what is somewhere does not come along."""
    absent = {*own, *(name for names in (elsewhere or {}).values() for name in names)}
    graph, tensors = encode(mlp_first_of_two(), captured_mlp().state, without=absent)
    message = Deploy(
        assignment(0, devices=(device, "pi-z"), term=term),
        graph,
        memoryview(tensors),
        None,
        step=step,
        own=own,
        elsewhere=elsewhere or {},
    )
    bench.ask("deploy", message, device)


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_a_halted_device_tells_what_it_keeps_and_gives_it(bench: Bench) -> None:
    bench.deploy()
    for step in range(3):
        train(bench, step)
    expected = state_of(bench, 3)
    assert halt(bench) == Holdings({2: TRAINED, 3: TRAINED}, ())
    assert_equal(fetched(bench, 3, *TRAINED), expected)
    first = fetched(bench, 3, TRAINED[0])
    assert first.keys() == {TRAINED[0], f"{TRAINED[0]}|momentum_buffer"}
    assert not torch.equal(fetched(bench, 2, TRAINED[0])[TRAINED[0]], first[TRAINED[0]])
    assert bench.greeting().run == "run-1"  # it is still taken
    assert halt(bench) == Holdings({2: TRAINED, 3: TRAINED}, ())  # and may be asked again


def test_every_byte_of_a_copy_that_was_sent_is_counted(bench: Bench) -> None:
    bench.deploy()
    train(bench)
    answers = [bench.ask("replicate", Replicate("run-1", 0, 1)) for _ in range(2)]
    told = decode_message(bench.ask("statistics", Release("run-1")), StageStatistics)
    assert told.copy_bytes_out == sum(len(answer) for answer in answers) > 0


def test_a_halted_device_has_no_stage_at_work(bench: Bench) -> None:
    bench.deploy()
    halt(bench)
    for verb, message in (
        ("state", StateRequest("run-1", 0, "weights")),
        ("statistics", Release("run-1")),
        ("replicate", Replicate("run-1", 0, 1)),
    ):
        with pytest.raises(FleetError) as halted:
            bench.ask(verb, message)
        assert str(halted.value) == (
            "pi-a has no stage of run run-1 at work (it was halted). Deploy one."
        )


def test_a_device_that_knows_nothing_of_a_run_keeps_nothing_of_it(bench: Bench) -> None:
    assert halt(bench) == Holdings({}, ())
    bench.deploy(run="run-2")
    assert halt(bench) == Holdings({}, ())
    assert bench.greeting().run == "run-2"
    with pytest.raises(FleetError) as refused:
        bench.ask("fetch", Fetch("run-1", 1, TRAINED))
    assert str(refused.value) == "pi-a does not work for run run-1 (it works for run-2)."


def test_with_rounds_a_stage_finishes_them_and_keeps_what_came_of_them(bench: Bench) -> None:
    bench.deploy()
    train(bench, snapshot=False)
    assert halt(bench, rounds=1, step=41) == Holdings({41: TRAINED}, ())
    bench.ask("release", Release("run-1"))
    bench.run = "run-2"
    bench.deploy()
    train(bench, snapshot=False)
    answer = bench.ask("state", StateRequest("run-2", 1, "weights"))
    expected = safetensors.torch.load(answer)
    bench.ask("halt", Halt("run-2", "coordinator-1", 1, 41))
    message = Fetch("run-2", 41, TRAINED)
    found = safetensors.torch.load(bench.ask("fetch", message))
    assert_equal({name: found[name] for name in expected}, expected)


def test_without_room_for_snapshots_the_state_of_a_finished_round_is_kept_all_the_same() -> None:
    """The stage's own memory is free by then, and a plan that moves has its state nowhere else."""
    limit = 1 << 20
    own_tasks = {**tasks(SETTINGS), "weigh": lambda _data: limit.to_bytes(8, "big")}
    settings = replace(SETTINGS, memory_limit_bytes=limit)
    with bench_of(settings, run_task=lambda name, data: own_tasks[name](data)) as bench:
        bench.deploy()
        train(bench)
        expected = state_of(bench, 1)
        assert halt(bench) == Holdings({}, ())  # no room beside the stage
        bench.ask("release", Release("run-1"))
        bench.run = "run-2"
        bench.deploy()
        train(bench)
        bench.ask("halt", Halt("run-2", "coordinator-1", 1, 1))
        found = safetensors.torch.load(bench.ask("fetch", Fetch("run-2", 1, TRAINED)))
    assert_equal(found, expected)


def test_a_later_term_begins_with_what_the_device_keeps(bench: Bench) -> None:
    bench.deploy()
    train(bench)
    expected = state_of(bench, 1)
    halt(bench)
    deploy_later(bench, own=TRAINED)
    assert_equal(state_of(bench, 0), expected)
    answer = bench.ask("replicate", Replicate("run-1", 1, 1))
    assert_equal(safetensors.torch.load(answer), expected)  # it can be copied from there too


def test_a_later_term_goes_back_and_forgets_what_came_after(bench: Bench) -> None:
    bench.deploy()
    train(bench, 0)
    expected = state_of(bench, 1)
    train(bench, 1)
    state_of(bench, 2)
    assert set(halt(bench).steps) == {1, 2}
    deploy_later(bench, step=1, own=TRAINED)
    assert_equal(state_of(bench, 0), expected)
    assert set(halt(bench).steps) == {1}


def test_a_later_term_takes_over_from_a_stage_at_work(bench: Bench) -> None:
    bench.deploy()
    train(bench)
    expected = state_of(bench, 1)
    deploy_later(bench, own=TRAINED)  # nobody halted it
    assert_equal(state_of(bench, 0), expected)


@contextlib.contextmanager
def second_device(bench: Bench) -> Iterator[None]:
    settings = AgentSettings("pi-b", threads=1)
    with Agent(settings, bench.fabric.join("pi-b"), timeouts=TIMEOUTS):
        yield


def test_a_later_term_fetches_what_others_keep(bench: Bench) -> None:
    bench.deploy()
    train(bench)
    expected = state_of(bench, 1)
    halt(bench)
    with second_device(bench):
        deploy_later(bench, device="pi-b", elsewhere={"pi-a": TRAINED})
        assert_equal(state_of(bench, 0, "pi-b"), expected)
        bench.ask("release", Release("run-1"), "pi-b")


def test_states_come_from_here_from_others_and_with_the_message_at_once(bench: Bench) -> None:
    bench.deploy()
    train(bench)
    expected = state_of(bench, 1)
    halt(bench)
    with second_device(bench):
        first, second, *along = TRAINED
        deploy_later(bench, device="pi-b", elsewhere={"pi-a": (first,)})
        bench.ask("halt", Halt("run-1", "coordinator-1"), "pi-b")
        deploy_later(bench, device="pi-b", term=2, own=(first,), elsewhere={"pi-a": (second,)})
        found = state_of(bench, 0, "pi-b")
    for name in (first, second):
        assert torch.equal(found[name], expected[name])
        assert torch.equal(found[f"{name}|momentum_buffer"], expected[f"{name}|momentum_buffer"])
    for name in along:
        assert torch.equal(found[name], captured_mlp().state[name])


def test_a_state_that_is_not_where_it_should_be_ends_the_deployment_and_not_the_run(
    bench: Bench,
) -> None:
    bench.deploy()
    train(bench)
    expected = state_of(bench, 1)
    halt(bench)
    error = r"^pi-a does not keep the state of .+ after step 9\. Ask who holds it\.$"
    with pytest.raises(FleetError, match=error):
        deploy_later(bench, step=9, own=TRAINED)
    assert bench.greeting().run == "run-1"
    with second_device(bench), pytest.raises(FleetError, match="pi-b"):
        deploy_later(bench, elsewhere={"pi-b": TRAINED})
    deploy_later(bench, term=2, own=TRAINED)
    assert_equal(state_of(bench, 0), expected)


def test_a_replica_is_of_the_term_at_work_only(bench: Bench) -> None:
    bench.deploy()
    train(bench)
    with pytest.raises(FleetError) as refused:
        bench.ask("replicate", Replicate("run-1", 7, 1))
    assert str(refused.value) == (
        "pi-a works in term 0 of run run-1 (a state of term 7 was asked for). It is another's now."
    )
    answer = bench.ask("replicate", Replicate("run-1", 0, 1))
    assert_equal(safetensors.torch.load(answer), state_of(bench, 1))


def test_a_run_whose_coordinator_is_there_is_halted_by_nobody_else(bench: Bench) -> None:
    bench.deploy()
    with pytest.raises(DeviceBusy) as busy:
        bench.ask("halt", Halt("run-1", "coordinator-2"))
    assert str(busy.value) == (
        "pi-a works for run run-1 of coordinator-1, which is there. Stop that process first."
    )
    assert busy.value.device == "pi-a"
    train(bench)  # and goes on


def test_a_device_that_was_let_go_takes_part_in_later_terms_again(bench: Bench) -> None:
    bench.deploy()
    bench.ask("release", Release("run-1", before=2))
    assert bench.greeting().run is None
    with pytest.raises(FleetError, match=r"^run run-1 was released before it was ready\.$"):
        deploy_later(bench, term=1)
    deploy_later(bench, term=2)
    assert bench.greeting().run == "run-1"
    bench.ask("release", Release("run-1"))
    with pytest.raises(FleetError, match=r"^run run-1 was released before it was ready\.$"):
        deploy_later(bench, term=3)


class Successor:
    """Another coordinator, which comes when the first is gone."""

    def __init__(self, bench: Bench) -> None:
        self._transport = bench.fabric.join("coordinator-2")
        self._token = self._transport.announce(control_key("default", "coordinator-2", "alive"))

    def ask(self, verb: str, message: object) -> bytes:
        return self._transport.request(
            control_key("default", "pi-a", verb),
            encode_message(message),  # type: ignore[type-var]
            device="pi-a",
            timeout_seconds=LONG,
        )

    def run(self) -> str | None:
        return decode_message(self.ask("hello", Release("")), Greeting).run

    def halt(self) -> Holdings:
        return decode_message(self.ask("halt", Halt("run-1", "coordinator-2")), Holdings)

    def deploy(self, run: str, **options: object) -> None:
        changes = {"run": run, "coordinator": "coordinator-2", "devices": ("pi-a", "pi-z")}
        message = assignment(0, **changes, term=options.pop("term", 0))
        own = options.get("own", ())
        graph, tensors = encode(mlp_first_of_two(), captured_mlp().state, without=set(own))
        self.ask("deploy", Deploy(message, graph, memoryview(tensors), None, **options))


def orphaned(bench: Bench) -> Successor:
    """The first coordinator trains a step and vanishes."""
    bench.deploy()
    train(bench)
    state_of(bench, 1)
    successor = Successor(bench)
    bench.fabric.kill("coordinator-1")
    wait_until(lambda: successor.run() is None, "the device is free")
    return successor


def test_a_device_whose_coordinator_is_gone_is_free_and_keeps_what_it_had(bench: Bench) -> None:
    successor = orphaned(bench)
    assert successor.halt() == Holdings({1: TRAINED}, ())
    found = safetensors.torch.load(successor.ask("fetch", Fetch("run-1", 1, TRAINED)))
    assert set(TRAINED) < found.keys()
    successor.deploy("run-1", term=1, step=1, own=TRAINED)
    assert successor.run() == "run-1"
    answer = successor.ask("state", StateRequest("run-1", 0, "weights"))
    went_on = safetensors.torch.load(answer)
    assert_equal(went_on, {name: found[name] for name in went_on})
    successor.ask("release", Release("run-1"))
    assert successor.halt() == Holdings({}, ())


def test_another_run_takes_the_place_of_one_without_a_coordinator(bench: Bench) -> None:
    successor = orphaned(bench)
    successor.deploy("run-9")
    assert successor.run() == "run-9"
    assert successor.halt() == Holdings({}, ())
    with pytest.raises(FleetError, match="pi-a does not work for run run-1"):
        successor.ask("fetch", Fetch("run-1", 1, TRAINED))


def test_what_nobody_comes_for_is_forgotten_after_a_while() -> None:
    with bench_of(SETTINGS, replace(TIMEOUTS, keep=0.05)) as bench:
        successor = orphaned(bench)
        wait_until(lambda: successor.halt() == Holdings({}, ()), "it is forgotten")
        assert successor.run() is None
        successor.deploy("run-9")


def test_what_somebody_came_for_is_not_forgotten() -> None:
    with bench_of(SETTINGS, replace(TIMEOUTS, keep=0.5)) as bench:
        successor = orphaned(bench)
        successor.deploy("run-1", term=1, step=1, own=TRAINED)
        agent_timers = [t for t in threading_timers() if t.is_alive() and not t.finished.is_set()]
        assert agent_timers == []
        assert successor.run() == "run-1"


def threading_timers() -> list[threading.Timer]:
    return [each for each in threading.enumerate() if isinstance(each, threading.Timer)]
