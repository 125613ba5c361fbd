"""The agent, driven by requests and frames over a fabric in this process."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import safetensors.torch
import torch

from edgeweave.core.errors import (
    ConfigError,
    DeviceBusy,
    DeviceFailed,
    EdgeweaveError,
    FleetError,
    FormatError,
    PlanError,
    WireError,
)
from edgeweave.core.timeouts import Timeouts
from edgeweave.device import (
    Agent,
    AgentSettings,
    Deploy,
    Emulate,
    Fault,
    Greeting,
    LinkProbe,
    LinkTimings,
    Optimizer,
    Profile,
    Release,
    StageStatistics,
    StateRequest,
    UnitTimings,
    decode_message,
    encode_message,
)
from edgeweave.net import (
    Frame,
    Links,
    LinkShape,
    MemoryFabric,
    control_key,
    frame_key,
    frame_pattern,
)
from edgeweave.net.pieces import PIECE_BYTES
from edgeweave.net.remote import decode_error
from edgeweave.program import (
    Program,
    cut,
    encode,
    encode_program,
    encode_state,
    without_outputs,
)
from tests.device.stages.examples import LONG, assignment, begin, captured_mlp, frame, mlp_stages
from tests.fleet.worlds import wait_until

TIMEOUTS = Timeouts(request=5.0, work=10.0, frame=10.0, send=0.5, idle=20.0, stop=3.0)


class Bench:
    """One agent, called pi-a, and everybody else played by the test."""

    def __init__(self, fabric: MemoryFabric) -> None:
        self.fabric = fabric
        self.me = fabric.join("coordinator-1")
        self.token = self.me.announce(control_key("default", "coordinator-1", "alive"))
        self.faults: list[EdgeweaveError] = []
        self.fault_came = threading.Event()
        self.frames: list[Frame] = []
        self.frame_came = threading.Condition()
        self.me.serve(control_key("default", "coordinator-1", "fault"), self._on_fault)
        self.run = "run-1"
        for run, stage in itertools.product(("run-1", "run-2"), (-1, 1)):
            self.me.subscribe(
                frame_pattern("default", run, 0, stage),
                self._on_frame,
                on_error=lambda error: None,
                expect=lambda header: None,
                limit_bytes=1 << 24,
            )

    def ask(self, verb: str, message: msgspec.Struct, device: str = "pi-a") -> bytes:
        return self.me.request(
            control_key("default", device, verb),
            encode_message(message),
            device=device,
            timeout_seconds=LONG,
        )

    def greeting(self) -> Greeting:
        return decode_message(self.ask("hello", Release("")), Greeting)

    def deploy(self, *, stages: int = 2, tensors: bytes | None = None, **changes: object) -> None:
        """The first of two stages, or the whole model as a single one."""
        names = ("pi-a", "pi-b")[:stages]
        program = whole_mlp() if stages == 1 else mlp_first_of_two()
        graph, encoded = encode(program, captured_mlp().state)
        message = assignment(0, devices=names, **({"run": self.run} | changes))
        self.ask("deploy", Deploy(message, graph, memoryview(tensors or encoded), None))

    def send(self, sent: Frame, stage: int = 0) -> None:
        key = frame_key("default", self.run, 0, stage, sent.header.kind)
        self.me.send(key, sent, device="pi-a")

    def next_frame(self, kind: str, microbatch: int = 0) -> Frame:
        def found() -> Frame | None:
            for each in self.frames:
                if (each.header.kind, each.header.microbatch) == (kind, microbatch):
                    return each
            return None

        with self.frame_came:
            assert self.frame_came.wait_for(lambda: found() is not None, LONG), self.frames
            result = found()
        assert result is not None
        return result

    def fault(self) -> EdgeweaveError:
        assert self.fault_came.wait(LONG)
        return self.faults[0]

    def _on_fault(self, payload: bytes) -> bytes:
        fault = decode_message(payload, Fault)
        self.faults.append(decode_error(fault.error, fault.device))
        self.fault_came.set()
        return b""

    def _on_frame(self, arrived: Frame) -> None:
        with self.frame_came:
            self.frames.append(arrived)
            self.frame_came.notify_all()


def whole_mlp() -> Program:
    return cut(without_outputs(captured_mlp().program), ())[0]


def mlp_first_of_two() -> Program:
    return mlp_stages()[0]


@contextlib.contextmanager
def bench_of(
    settings: AgentSettings, timeouts: Timeouts = TIMEOUTS, **options: Callable[..., Any]
) -> Iterator[Bench]:
    with MemoryFabric(timeouts=timeouts) as fabric:
        made = Bench(fabric)
        with Agent(settings, fabric.join(settings.name), timeouts=timeouts, **options):
            yield made


@pytest.fixture
def bench() -> Iterator[Bench]:
    with bench_of(AgentSettings("pi-a", threads=1)) as made:
        yield made


def train_one_microbatch(bench: Bench) -> None:
    """One step of one microbatch of ones; the stage after answers with gradients of ones."""
    bench.send(begin())
    bench.send(frame("input", tensors={"input:0": torch.ones(4, 12)}, samples=4))
    activation = bench.next_frame("activation")
    gradients = {spec.name: torch.ones(spec.shape) for spec in activation.header.tensors}
    bench.send(frame("gradient", 1, tensors=gradients, samples=4))


def test_a_greeting_tells_the_facts_of_a_device() -> None:
    settings = AgentSettings("pi-a", speed=0.5, memory_limit_bytes=1 << 20)
    with bench_of(settings) as bench:
        found = bench.greeting()
    assert found.hello.device == "pi-a"
    assert (found.speed, found.memory_limit_bytes, found.run) == (0.5, 1 << 20, None)
    assert found.threads == "threads=1 (emulated: a fraction of one core)"
    assert found.device == "cpu"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (AgentSettings("x", threads=3), (3, "threads=3 (as asked)")),
        (AgentSettings("x", speed=0.5, threads=3), (1, "threads=1 (emulated: ")),
    ],
)
def test_threads_are_chosen_with_a_reason(
    settings: AgentSettings, expected: tuple[int, str]
) -> None:
    n_threads, reason = settings.choose_threads()
    assert n_threads == expected[0]
    assert reason.startswith(expected[1])


def test_a_device_that_torch_lacks_is_refused() -> None:
    with MemoryFabric() as fabric, pytest.raises(ConfigError) as refused:
        Agent(AgentSettings("pi-a", device="warp"), fabric.join("pi-a"))
    assert str(refused.value).startswith("torch cannot compute on 'warp' here (")
    assert str(refused.value).endswith("Choose cpu, cuda or mps.")


def test_a_deployed_stage_trains_and_gives_its_state(bench: Bench) -> None:
    bench.deploy()
    assert bench.greeting().run == "run-1"
    train_one_microbatch(bench)
    state = safetensors.torch.load(bench.ask("state", StateRequest("run-1", 1, "weights")))
    before = captured_mlp().state
    assert state.keys() == {spec.name for spec in mlp_first_of_two().state}
    assert not torch.equal(state["0.bias"], before["0.bias"])
    optimizer = safetensors.torch.load(bench.ask("state", StateRequest("run-1", 1, "optimizer")))
    assert sorted(optimizer)[0] == "0.bias|momentum_buffer"


def test_statistics_count_from_deployment_and_not_from_birth(bench: Bench) -> None:
    for run in ("run-1", "run-2"):
        bench.run = run
        bench.frames.clear()
        bench.deploy()
        train_one_microbatch(bench)
        bench.ask("state", StateRequest(run, 1, "weights"))
        found = decode_message(bench.ask("statistics", Release(run)), StageStatistics)
        bench.ask("release", Release(run))
        sent = sum(tensor.nbytes for tensor in bench.next_frame("activation").tensors)
        assert (found.bytes_in, found.bytes_out) == (4 * 12 * 4 + sent, sent)
        assert found.rounds == 1
        kinds = [event.kind for event in found.events if event.kind != "wait"]
        assert kinds == ["idle", "forward", "backward", "update"]
        assert found.compute_seconds > 0


def test_a_released_device_takes_the_next_run(bench: Bench) -> None:
    bench.deploy()
    bench.ask("release", Release("run-1"))
    assert bench.greeting().run is None
    bench.deploy(run="run-2")
    assert bench.greeting().run == "run-2"


def test_a_run_that_was_released_before_it_was_deployed_never_begins(bench: Bench) -> None:
    """A coordinator that gave up may be overtaken by its own request to deploy."""
    bench.ask("release", Release("run-1"))
    with pytest.raises(FleetError) as ended:
        bench.deploy()
    assert str(ended.value) == "run run-1 was released before it was ready."
    assert bench.greeting().run is None


def test_releasing_another_run_or_twice_is_harmless(bench: Bench) -> None:
    bench.deploy()
    bench.ask("release", Release("run-2"))
    assert bench.greeting().run == "run-1"
    bench.ask("release", Release("run-1"))
    bench.ask("release", Release("run-1"))
    assert bench.greeting().run is None


def test_a_busy_device_refuses_a_second_run(bench: Bench) -> None:
    bench.deploy()
    with pytest.raises(DeviceBusy) as busy:
        bench.deploy(run="run-2")
    assert str(busy.value) == (
        "pi-a already works for run-1. Wait until it is done, or use another device."
    )
    assert busy.value.device == "pi-a"


def test_a_busy_device_refuses_to_be_profiled(bench: Bench) -> None:
    bench.deploy()
    with pytest.raises(DeviceBusy, match="pi-a already works for run-1"):
        profile(bench)


def profile(bench: Bench, optimizer: Optimizer | None = None) -> UnitTimings:
    program = captured_mlp().program
    graph, tensors = encode_program(program), encode_state({})
    message = Profile(graph, tensors, 4, 2, optimizer or Optimizer("Adam", lr=0.1))
    return decode_message(bench.ask("profile", message), UnitTimings)


def test_profiling_gives_a_time_for_each_unit_and_frees_the_device(bench: Bench) -> None:
    timings = profile(bench)
    n_units = len(captured_mlp().program.unit_numbers)
    assert len(timings.forward_seconds) == len(timings.backward_seconds) == n_units
    assert min(timings.forward_seconds) > 0
    assert timings.update_seconds_per_byte > 0
    bench.deploy()


def test_profiling_beyond_the_memory_limit_is_refused_with_numbers() -> None:
    with (
        bench_of(AgentSettings("pi-a", threads=1, memory_limit_bytes=1000)) as bench,
        pytest.raises(PlanError) as refused,
    ):
        profile(bench)
    assert "profiling needs about 20.0 KiB (limit: 1000 B)" in str(refused.value)


def test_a_stage_beyond_the_memory_limit_is_refused_with_numbers() -> None:
    with bench_of(AgentSettings("pi-a", threads=1, memory_limit_bytes=5000)) as bench:
        with pytest.raises(PlanError) as refused:
            bench.deploy()
        assert bench.greeting().run is None
    message = str(refused.value)
    assert message.startswith("stage 0 on pi-a needs ")
    assert message.endswith("(limit: 4.9 KiB). Lower batch_size or add a device.")


def test_damaged_weights_are_refused_and_leave_the_device_free(bench: Bench) -> None:
    with pytest.raises(FormatError, match="the tensors are damaged"):
        bench.deploy(tensors=b"not safetensors")
    assert bench.greeting().run is None
    bench.deploy()


@pytest.mark.parametrize("verb", ["deploy", "profile", "measure", "state", "statistics", "release"])
def test_a_request_that_is_no_message_is_refused(bench: Bench, verb: str) -> None:
    with pytest.raises(WireError, match=r"^not a "):
        bench.me.request(
            control_key("default", "pi-a", verb), b"\x00", device="pi-a", timeout_seconds=LONG
        )
    bench.deploy()


@pytest.mark.parametrize("verb", ["state", "statistics"])
def test_a_run_that_is_not_there_has_no_state(bench: Bench, verb: str) -> None:
    bench.deploy()
    message = StateRequest("run-2", 0, "weights") if verb == "state" else Release("run-2")
    with pytest.raises(FleetError) as refused:
        bench.ask(verb, message)
    assert str(refused.value) == "pi-a does not work for run run-2 (it works for run-1)."


def test_a_link_is_measured_by_asking_the_other_device(bench: Bench) -> None:
    other = Agent(AgentSettings("pi-b", threads=1), bench.fabric.join("pi-b"))
    with other:
        answer = bench.ask("measure", LinkProbe("pi-b", 1 << 16))
    found = decode_message(answer, LinkTimings)
    assert found.latency_seconds > 0
    assert found.bytes_per_second > 0


@pytest.mark.parametrize("size_bytes", [0, -1, 1, PIECE_BYTES + 1, (16 << 20) + 1])
def test_a_probe_of_another_size_is_refused(bench: Bench, size_bytes: int) -> None:
    with pytest.raises(WireError) as refused:
        bench.ask("measure", LinkProbe("pi-b", size_bytes))
    assert str(refused.value) == (
        f"a link is probed with 2 to 16777216 bytes, and not with 64001 (asked for {size_bytes})."
    )


def test_a_stage_that_fails_says_where_and_why(bench: Bench) -> None:
    bench.deploy()
    bench.send(begin())
    bench.send(frame("input", tensors={"input:0": torch.ones(4, 12)}, samples=4))
    bench.next_frame("activation")
    gradients = {"nonsense": torch.ones(1)}
    fault = bench_fault_after(bench, frame("gradient", 1, tensors=gradients, samples=4))
    assert isinstance(fault, WireError)
    assert str(fault).startswith("stage 0 on pi-a expects the tensors ")


def bench_fault_after(bench: Bench, sent: Frame) -> EdgeweaveError:
    bench.send(sent)
    return bench.fault()


def test_a_gradient_of_another_size_than_the_forward_names_the_stage(bench: Bench) -> None:
    bench.deploy()
    bench.send(begin())
    bench.send(frame("input", tensors={"input:0": torch.ones(4, 12)}, samples=4))
    activation = bench.next_frame("activation")
    gradients = {s.name: torch.ones(2, *s.shape[1:]) for s in activation.header.tensors}
    fault = bench_fault_after(bench, frame("gradient", 1, tensors=gradients, samples=2))
    assert isinstance(fault, WireError)
    assert str(fault).startswith("stage 0 on pi-a: the gradient of ")


def test_an_error_of_torch_travels_with_its_traceback(bench: Bench) -> None:
    bench.deploy(stages=1)
    bench.send(begin())
    inputs = {"input:0": torch.ones(4, 12), "target:0": torch.full((4,), 99)}
    fault = bench_fault_after(bench, frame("input", tensors=inputs, samples=4))
    assert isinstance(fault, DeviceFailed)
    assert str(fault).startswith("stage 0 on pi-a failed: IndexError: Target 99 is out of bounds.")
    assert "--- traceback on pi-a ---" in str(fault)
    assert "in _forward" in fault.remote_traceback
    assert (fault.device, fault.stage) == ("pi-a", 0)


def test_waiting_for_the_state_of_a_stage_that_failed_ends_at_once(bench: Bench) -> None:
    bench.deploy(stages=1)
    bench.send(begin())
    inputs = {"input:0": torch.ones(4, 12), "target:0": torch.full((4,), 99)}
    bench_fault_after(bench, frame("input", tensors=inputs, samples=4))
    with pytest.raises(FleetError) as ended:
        bench.ask("state", StateRequest("run-1", 1, "weights"))
    assert str(ended.value) == "stage 0 on pi-a ended after 0 of 1 rounds."


def test_a_device_is_free_once_its_coordinator_is_gone(bench: Bench) -> None:
    bench.deploy()
    other = bench.fabric.join("other")
    hello = control_key("default", "pi-a", "hello")
    bench.fabric.kill("coordinator-1")

    def run() -> str | None:
        answer = other.request(hello, b"", device="pi-a", timeout_seconds=LONG)
        return decode_message(answer, Greeting).run

    wait_until(lambda: run() is None, "the agent noticed that its coordinator is gone")


def test_a_coordinator_that_is_gone_before_it_is_watched_leaves_no_busy_device(
    bench: Bench,
) -> None:
    bench.token.close()
    with pytest.raises(FleetError) as refused:
        bench.deploy()
    assert str(refused.value) == (
        "pi-a works for coordinators that it sees (coordinator-1 is not there). "
        "Announce it before deploying."
    )
    assert bench.greeting().run is None


def test_an_agent_that_stops_ends_its_run_and_its_threads() -> None:
    before = set(threading.enumerate())
    with bench_of(AgentSettings("pi-a", threads=1)) as bench:
        bench.deploy()
        assert "edgeweave-stage-0" in {thread.name for thread in threading.enumerate()}
    assert set(threading.enumerate()) <= before


def test_an_emulated_device_changes_its_speed_and_says_so() -> None:
    with bench_of(AgentSettings("pi-a", speed=0.9)) as bench:
        assert bench.ask("emulate", Emulate(speed=0.3)) == b""
        assert bench.greeting().speed == 0.3
        assert bench.ask("emulate", Emulate()) == b""
        assert bench.greeting().speed == 0.3


def test_a_profile_after_a_change_of_speed_is_that_of_the_slower_device() -> None:
    n_units = len(without_outputs(whole_mlp()).unit_numbers)
    timings = UnitTimings((1.0,) * n_units, (3.0,) * n_units, 5.0)
    message = Profile(encode_program(whole_mlp()), b"", 4, 1, assignment(0).optimizer)
    tasks = {"profile": lambda _: encode_message(timings)}
    settings = AgentSettings("pi-a", speed=0.8)
    with bench_of(settings, run_task=lambda name, data: tasks[name](data)) as bench:
        bench.ask("emulate", Emulate(speed=0.2))
        found = decode_message(bench.ask("profile", message), UnitTimings)
    assert found == UnitTimings((4.0,) * n_units, (12.0,) * n_units, 20.0)


def test_an_emulated_device_takes_over_what_another_of_its_host_measured() -> None:
    n_units = len(without_outputs(whole_mlp()).unit_numbers)
    full_speed = UnitTimings((1.0,) * n_units, (3.0,) * n_units, 5.0)
    graph = encode_program(whole_mlp())
    message = Profile(graph, b"", 4, 1, assignment(0).optimizer, full_speed)
    with bench_of(AgentSettings("pi-a", speed=0.25), run_task=no_task) as bench:
        found = decode_message(bench.ask("profile", message), UnitTimings)
    assert found == UnitTimings((4.0,) * n_units, (12.0,) * n_units, 20.0)


def no_task(name: str, _data: bytes) -> bytes:
    raise AssertionError(f"{name} was run")


def test_a_real_device_measures_itself(bench: Bench) -> None:
    full_speed = UnitTimings((1.0,), (1.0,), 0.0)
    graph = encode_program(whole_mlp())
    message = Profile(graph, b"", 4, 1, assignment(0).optimizer, full_speed)
    with pytest.raises(ConfigError, match=r"pi-a is a real one.*Let it measure"):
        bench.ask("profile", message)


def test_a_device_of_an_emulated_fleet_changes_its_links() -> None:
    reshaped: list[Links] = []
    links = Links(LinkShape(bytes_per_second=1e6), seed=3)
    with bench_of(AgentSettings("pi-a", threads=1), reshape=reshaped.append) as bench:
        bench.ask("emulate", Emulate(links=links))
    assert reshaped == [links]


def test_a_real_device_refuses_to_be_another(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="only an emulated device changes its speed"):
        bench.ask("emulate", Emulate(speed=0.5))
    with pytest.raises(ConfigError) as refused:
        bench.ask("emulate", Emulate(links=Links()))
    assert str(refused.value) == (
        "only a device of an emulated fleet changes its links (pi-a has real ones). "
        "Start it with Fleet.local(links=...)."
    )


def test_a_request_larger_than_its_verb_needs_is_refused(bench: Bench) -> None:
    key = control_key("default", "pi-a", "hello")
    with pytest.raises(WireError, match=r"a request to .*/hello is at most 1\.0 MiB"):
        bench.me.request(key, bytes((1 << 20) + 1), device="pi-a", timeout_seconds=LONG)


def test_an_emulated_device_rehearses_and_changes_nothing_by_it() -> None:
    with bench_of(AgentSettings("pi-a", speed=0.9)) as bench:
        bench.deploy()
        state = safetensors.torch.load(bench.ask("state", StateRequest("run-1", 0, "weights")))
    before = captured_mlp().state
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())
