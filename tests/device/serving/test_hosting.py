"""A device that answers requests: stages of two terms, what it keeps, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from edgeweave.core.errors import DeviceBusy, FleetError, FormatError, PlanError, WireError
from edgeweave.device import (
    COORDINATOR,
    Place,
    ProbeRequest,
    Release,
    Retire,
    Serve,
    Served,
    ServingStatistics,
    as_mapping,
    decode_message,
    tensor_frame,
)
from edgeweave.device.timings import told_forwards
from edgeweave.net import Frame, frame_key, frame_pattern
from edgeweave.net.remote import decode_error
from edgeweave.program import Inference, capture_inference, cut, encode_program, encode_state
from tests.fleet.worlds import MemoryFleet, memory_fleet, wait_until

RUN = "serve-1"


class Rows(nn.Module):
    """Looks rows up; an index out of range is the operator's to refuse."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows = nn.Embedding(10, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, which: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(self.rows(which))
        return found


MODEL = Rows().eval()


@pytest.fixture(scope="module")
def captured() -> Inference:
    return capture_inference(MODEL, torch.tensor([1, 2]))


@dataclass
class Other:
    """The coordinator's side, by hand."""

    world: MemoryFleet
    captured: Inference
    results: list[Frame] = field(default_factory=list)

    def place(self, term: int, devices: Sequence[str], stage: int) -> Place:
        return Place(
            run=RUN,
            term=term,
            coordinator=self.world.fleet.transport.name,
            stage=stage,
            devices=tuple(devices),
            microbatch_size=4,
            max_microbatches=8,
        )

    def serve(
        self,
        term: int,
        devices: Sequence[str],
        stage: int,
        *,
        own: Sequence[str] = (),
        graph: bytes | None = b"",
        tensors: bytes | None = None,
        makes_room: bool = False,
    ) -> Served:
        program = self.captured.program
        first_units = (1,) if len(devices) == 2 else ()
        own_stage = cut(program, first_units)[stage]
        names = [spec.name for spec in own_stage.state if spec.name not in own]
        state = {name: self.captured.state[name] for name in names}
        message = Serve(
            self.place(term, devices, stage),
            first_units,
            encode_program(program) if graph == b"" else graph,
            memoryview(encode_state(state) if tensors is None else tensors),
            2,
            tuple(own),
            makes_room=makes_room,
        )
        return decode_message(self.tell(devices[stage], "serve", message), Served)

    def tell(self, device: str, verb: str, message: Any) -> bytes:
        return self.world.fleet.ask(device, verb, message, timeout_seconds=20.0)

    def listen(self, term: int) -> None:
        self.world.fleet.transport.subscribe(
            frame_pattern("default", RUN, term, COORDINATOR),
            self.results.append,
            on_error=lambda error: None,
            expect=lambda header: None,
            limit_bytes=1 << 20,
        )

    def send(self, term: int, number: int, which: list[int], device: str) -> None:
        transport = self.world.fleet.transport
        frame = tensor_frame(
            "input",
            transport.name,
            COORDINATOR,
            term,
            round=0,
            microbatch=number,
            tensors={"input:0": torch.tensor(which)},
            scalars={"samples": float(len(which))},
        )
        transport.send(frame_key("default", RUN, term, 0, "input"), frame, device=device)

    def wait_results(self, n_results: int) -> list[Frame]:
        wait_until(lambda: len(self.results) >= n_results, f"{n_results} results")
        return self.results

    def statistics(self, device: str) -> ServingStatistics:
        return decode_message(self.tell(device, "serving", Release(RUN)), ServingStatistics)


@contextmanager
def other_side(captured: Inference, *devices: str, **limits: int) -> Iterator[Other]:
    with memory_fleet(*devices, memory_limits=limits) as world:
        yield Other(world, captured)


def answered(frame: Frame) -> torch.Tensor:
    (tensor,) = as_mapping(frame).values()
    return tensor


def expected(which: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = MODEL(torch.tensor(which))
    return found


def test_two_stages_answer_in_the_order_of_numbers(captured: Inference) -> None:
    with other_side(captured, "a", "b") as other:
        for stage in (0, 1):
            other.serve(0, "ab", stage)
        other.listen(0)
        for number in (1, 0, 2):  # as a network may deliver them
            other.send(0, number, [number, number + 1], "a")
        frames = other.wait_results(3)
        assert [frame.header.microbatch for frame in frames] == [0, 1, 2]
        for number, frame in enumerate(frames):
            assert torch.equal(answered(frame), expected([number, number + 1]))
        assert other.statistics("a").requests == 3
        told = [told_forwards(frame.header.scalars, 2) for frame in frames]
        assert all(set(each) == {0, 1} and min(each.values()) > 0 for each in told)


def test_only_requests_of_the_usual_size_tell_what_they_took(captured: Inference) -> None:
    with other_side(captured, "a") as other:
        other.serve(0, "a", 0)
        other.listen(0)
        for number, which in enumerate(([1], [1, 2], [1, 2, 3])):
            other.send(0, number, which, "a")
        frames = other.wait_results(3)
        assert [0 in told_forwards(f.header.scalars, 1) for f in frames] == [False, True, False]


def test_a_refused_request_is_told_of_and_the_next_is_answered(captured: Inference) -> None:
    with other_side(captured, "a", "b") as other:
        for stage in (0, 1):
            other.serve(0, "ab", stage)
        other.listen(0)
        other.send(0, 0, [99], "a")
        other.send(0, 1, [3], "a")
        other.wait_results(3)
        kinds = {(f.header.kind, f.header.microbatch): f for f in other.results}
        reason = decode_error(bytes(answered(kinds["refused", 0]).numpy()), "a")
        assert "stage 0 on a failed: IndexError: index out of range" in str(reason)
        assert kinds["result", 0].header.scalars["refused"] == 1.0
        assert kinds["result", 0].tensors == ()
        assert torch.equal(answered(kinds["result", 1]), expected([3]))
        assert other.statistics("a").refused == 1


def test_the_stage_before_answers_until_it_is_retired(captured: Inference) -> None:
    with other_side(captured, "a", "b") as other:
        other.serve(0, "a", 0)
        other.listen(0)
        names = tuple(spec.name for spec in cut(captured.program, (1,))[0].state)
        other.serve(1, "ab", 0, own=names, graph=None, tensors=encode_state({}))
        other.serve(1, "ab", 1)
        other.listen(1)
        other.send(0, 0, [4], "a")
        other.send(1, 0, [5], "a")
        found = {frame.header.term: answered(frame) for frame in other.wait_results(2)}
        assert torch.equal(found[0], expected([4]))
        assert torch.equal(found[1], expected([5]))
        other.tell("a", "retire", Retire(RUN, 1))
        with pytest.raises(FleetError, match="nobody listens"):
            other.send(0, 1, [4], "a")
        other.send(1, 1, [6], "a")
        assert torch.equal(answered(other.wait_results(3)[2]), expected([6]))


def test_what_a_device_does_not_hold_has_to_come_along(captured: Inference) -> None:
    with other_side(captured, "a") as other:
        with pytest.raises(FleetError, match=r"a does not hold last\.bias of run serve-1"):
            other.serve(0, "a", 0, own=["last.bias"])
        with pytest.raises(FleetError, match="a does not hold the program of run serve-1"):
            other.serve(0, "a", 0, graph=None)
        assert other.world.agents["a"].greeting().run is None  # and is free again


@pytest.mark.parametrize(
    ("graph", "tensors", "error"),
    [
        (b"{}", None, FormatError),
        (b"", b"no safetensors", FormatError),
        (b"", encode_state({"last.weight": torch.zeros(1)}), FormatError),
    ],
)
def test_what_is_no_stage_is_refused_and_the_device_stays_free(
    captured: Inference, graph: bytes, tensors: bytes | None, error: type[Exception]
) -> None:
    with other_side(captured, "a") as other:
        with pytest.raises(error):
            other.serve(0, "a", 0, graph=graph, tensors=tensors)
        assert other.world.agents["a"].greeting().run is None
        other.serve(0, "a", 0)


def test_a_stage_that_does_not_fit_is_refused(captured: Inference) -> None:
    with (
        other_side(captured, "a", a=100) as other,
        pytest.raises(
            PlanError, match=r"stage 0 on a needs .* to answer 4 samples at once \(limit: 100 B\)"
        ),
    ):
        other.serve(0, "a", 0)


def test_without_room_for_two_stages_the_old_one_stops_if_it_may(captured: Inference) -> None:
    rows_and_work, last_and_work = 160 + 64, 40 + 32
    limit = rows_and_work + 4
    assert last_and_work + 160 > limit
    with other_side(captured, "a", "b", a=limit) as other:
        assert other.serve(0, "ab", 0) == Served(is_ready=True)
        assert other.serve(0, "ab", 1) == Served(is_ready=True)
        other.listen(0)
        assert other.serve(1, "ba", 1) == Served(is_ready=False)
        other.send(0, 0, [1], "a")
        assert torch.equal(answered(other.wait_results(1)[0]), expected([1]))
        found = other.serve(1, "ba", 1, makes_room=True)
        assert found == Served(is_ready=True, has_ended_stages=True)
        with pytest.raises(FleetError, match="nobody listens"):
            other.send(0, 1, [1], "a")


def test_a_device_serves_one_run(captured: Inference) -> None:
    with other_side(captured, "a") as other:
        other.serve(0, "a", 0)
        with pytest.raises(DeviceBusy, match="a already works for serve-1"):
            other.tell("a", "probe", ProbeRequest())
        with pytest.raises((FleetError, WireError)):
            other.tell("a", "statistics", Release(RUN))  # those of training
        other.tell("a", "release", Release(RUN))
        assert other.world.agents["a"].greeting().run is None


def test_a_coordinator_that_vanishes_leaves_the_device_free(captured: Inference) -> None:
    with other_side(captured, "a") as other:
        other.serve(0, "a", 0)
        other.world.fabric.kill(other.world.fleet.transport.name)
        agent = other.world.agents["a"]
        wait_until(lambda: agent.greeting().run is None, "it is free")
