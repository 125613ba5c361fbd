"""What a stage accepts: everything else is refused before it is allocated, and named."""

from __future__ import annotations

import queue
import re
from collections.abc import Iterator

import pytest
import torch

from edgeweave.core.clock import SystemClock
from edgeweave.core.errors import DeviceTimeout, FleetError, WireError
from edgeweave.core.timeouts import Timeouts
from edgeweave.device.stages.exchange import StageExchange, as_mapping
from edgeweave.device.throttle import Throttle
from edgeweave.net import Frame, MemoryFabric, Transport, frame_key
from tests.device.stages.examples import (
    DEVICES,
    LONG,
    assignment,
    begin,
    frame,
    handed_on,
    mlp_stages,
)
from tests.device.stages.sides import Side, listening_side

NAN, INF = float("nan"), float("inf")
ACTIVATION = next(iter(handed_on(0)))
LATER_ACTIVATION = next(iter(handed_on(1)))


@pytest.fixture
def side() -> Iterator[Side]:
    with listening_side() as made:
        yield made


def test_a_declared_frame_arrives_with_its_tensors(side: Side) -> None:
    side.send(frame("activation", 0, tensors=handed_on(0), samples=4))
    arrived = side.exchange.wait("activation", 0, 0)
    assert torch.equal(as_mapping(arrived)[ACTIVATION], handed_on(0)[ACTIVATION])


def test_a_smaller_microbatch_is_as_welcome(side: Side) -> None:
    side.send(frame("activation", 0, tensors=handed_on(0, 1), samples=1))
    assert side.exchange.wait("activation", 0, 0).header.scalars == {"samples": 1.0}


def last_stage(fabric: MemoryFabric, *, wait_seconds: float) -> StageExchange:
    """Stage 2 of 3, whose only input goes past stage 1."""
    return StageExchange(
        assignment(2, sources={LATER_ACTIVATION: 0}),
        mlp_stages()[2],
        fabric.join("pi-c"),
        fleet="default",
        clock=SystemClock(),
        timeouts=Timeouts(frame=wait_seconds, send=1.0),
        throttle=Throttle(None, SystemClock()),
    )


def test_a_value_that_went_past_a_stage_is_expected_from_where_it_was_made() -> None:
    with MemoryFabric(timeouts=Timeouts(send=1.0)) as fabric:
        stranger: Transport = fabric.join("stranger")
        with last_stage(fabric, wait_seconds=LONG) as exchange:
            key = frame_key("default", "run-1", 0, 2, "activation")
            stranger.send(key, frame("activation", 1, samples=4), device="pi-c")
            stranger.send(
                key, frame("activation", 0, tensors=handed_on(1), samples=4), device="pi-c"
            )
            assert as_mapping(exchange.wait("activation", 1, 0)) == {}
            assert list(as_mapping(exchange.wait("activation", 0, 0))) == [LATER_ACTIVATION]
            stranger.send(
                key,
                frame("activation", 1, tensors=handed_on(1), samples=4, microbatch=1),
                device="pi-c",
            )
            expected = (
                "stage 2 on pi-c expects the tensors [] in 'activation' frames "
                f"(got ['{LATER_ACTIVATION}'] from pi-b)."
            )
            with pytest.raises(WireError, match=f"^{re.escape(expected)}$"):
                exchange.wait("activation", 1, 0, 1)


def test_who_waits_for_a_value_past_stages_names_the_one_that_makes_it() -> None:
    with (
        MemoryFabric(timeouts=Timeouts(send=1.0)) as fabric,
        last_stage(fabric, wait_seconds=0.01) as exchange,
        pytest.raises(DeviceTimeout, match="from stage 0 on pi-a"),
    ):
        exchange.wait("activation", 0, 0)


def test_an_empty_gradient_is_welcome(side: Side) -> None:
    side.send(frame("gradient", 2, samples=4))
    assert as_mapping(side.exchange.wait("gradient", 2, 0)) == {}


ROWS = handed_on(0)[ACTIVATION].shape[1]
BEGIN = {"step": 0.0, "microbatches": 1.0, "train": 1.0, "total_samples": 4.0}
REFUSED = {
    "a kind nobody sends": (
        frame("pickle", 0),
        "stage 1 on pi-b expects no 'pickle' frame from stage 0 (pi-a).",
    ),
    "an activation of a later stage": (
        frame("activation", 2, tensors=handed_on(0), samples=4),
        "stage 1 on pi-b expects no 'activation' frame from stage 2 (pi-c).",
    ),
    "a gradient of an earlier stage": (
        frame("gradient", 0, samples=4),
        "stage 1 on pi-b expects no 'gradient' frame from stage 0 (pi-a).",
    ),
    "a begin of a device": (
        frame("begin", 0, **BEGIN),
        "stage 1 on pi-b expects no 'begin' frame from stage 0 (pi-a).",
    ),
    "an activation under another's name": (
        frame("activation", 0, device="stranger", tensors=handed_on(0), samples=4),
        "stage 1 on pi-b expects no 'activation' frame from stage 0 (stranger).",
    ),
    "a begin of another coordinator": (
        frame("begin", device="coordinator-2", **BEGIN),
        "stage 1 on pi-b expects no 'begin' frame from stage -1 (coordinator-2).",
    ),
    "a reduction with itself": (
        frame("reduce", 1),
        "stage 1 on pi-b expects no 'reduce' frame from stage 1 (pi-b).",
    ),
    "a reduction with nobody": (
        frame("reduce", 3),
        "stage 1 on pi-b expects no 'reduce' frame from stage 3 (stranger).",
    ),
    "an activation without tensors": (
        frame("activation", 0, samples=4),
        f"stage 1 on pi-b expects the tensors ['{ACTIVATION}'] in 'activation' frames "
        "(got [] from pi-a).",
    ),
    "a tensor too many": (
        frame("activation", 0, tensors={**handed_on(0, 1), "x": torch.ones(1)}, samples=1),
        f"stage 1 on pi-b expects the tensors ['{ACTIVATION}'] in 'activation' frames "
        f"(got ['{ACTIVATION}', 'x'] from pi-a).",
    ),
    "a parameter that is not tied": (
        frame("reduce", 0, tensors={"0.weight": torch.ones(12)}),
        "stage 1 on pi-b expects the tensors [] in 'reduce' frames (got ['0.weight'] from pi-a).",
    ),
    "another dtype": (
        frame("activation", 0, tensors={ACTIVATION: handed_on(0)[ACTIVATION].int()}, samples=4),
        f"stage 1 on pi-b expects {ACTIVATION} as float32 (4, {ROWS}) "
        f"(got int32 (4, {ROWS}) from pi-a).",
    ),
    "another shape": (
        frame("activation", 0, tensors={ACTIVATION: torch.ones(4, ROWS - 1)}, samples=4),
        f"stage 1 on pi-b expects {ACTIVATION} as float32 (4, {ROWS}) "
        f"(got float32 (4, {ROWS - 1}) from pi-a).",
    ),
    "another number of rows than samples": (
        frame("activation", 0, tensors=handed_on(0, 3), samples=4),
        f"stage 1 on pi-b expects {ACTIVATION} as float32 (4, {ROWS}) "
        f"(got float32 (3, {ROWS}) from pi-a).",
    ),
    "more samples than a microbatch": (
        frame("activation", 0, tensors=handed_on(0, 4), samples=5),
        "a microbatch has at most 4 samples (got 5 from pi-a).",
    ),
    "no number of samples": (
        frame("activation", 0, tensors=handed_on(0)),
        "stage 1 on pi-b expects a number called samples, 0 or more, in 'activation' frames "
        "(got nan from pi-a).",
    ),
    "a number that is none": (
        frame("activation", 0, tensors=handed_on(0), samples=NAN),
        "stage 1 on pi-b expects a number called samples, 0 or more, in 'activation' frames "
        "(got nan from pi-a).",
    ),
    "an endless number": (
        frame("begin", **(BEGIN | {"microbatches": INF})),
        "stage 1 on pi-b expects a number called microbatches, 0 or more, in 'begin' frames "
        "(got inf from coordinator-1).",
    ),
    "a negative step": (
        frame("begin", **(BEGIN | {"step": -1.0})),
        "stage 1 on pi-b expects a number called step, 0 or more, in 'begin' frames "
        "(got -1.0 from coordinator-1).",
    ),
    "a begin that does not say what begins": (
        frame("begin", step=0),
        "stage 1 on pi-b expects a number called ",
    ),
    "more microbatches than were planned": (
        frame("begin", **(BEGIN | {"microbatches": 3.0})),
        "stage 1 on pi-b trains on 1 to 2 microbatches in a step (got 3 from coordinator-1).",
    ),
    "a step without microbatches": (
        frame("begin", **(BEGIN | {"microbatches": 0.0})),
        "stage 1 on pi-b trains on 1 to 2 microbatches in a step (got 0 from coordinator-1).",
    ),
    "a training step that says not how many samples": (
        frame("begin", step=0, microbatches=1, train=1),
        "stage 1 on pi-b expects a number called ",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_anything_else_is_refused_and_named(side: Side, what: str) -> None:
    sent, message = REFUSED[what]
    side.send(sent)
    refusal = side.refusal()
    assert type(refusal) is WireError
    assert message in str(refusal)
    assert str(refusal).startswith("stage 1 on pi-b")


def test_an_evaluation_may_have_more_microbatches_than_a_step(side: Side) -> None:
    side.send(begin(500, train=0.0))
    assert side.exchange.wait("begin", -1, 0).header.scalars["microbatches"] == 500


def test_a_frame_that_comes_twice_is_refused_and_names_the_stage(side: Side) -> None:
    side.send(frame("gradient", 2, samples=4))
    side.send(frame("gradient", 2, samples=4))
    assert str(side.refusal()) == (
        "stage 1 on pi-b refuses a frame: frame FrameId(kind='gradient', sender=2, round=0, "
        "microbatch=0) came twice from pi-c."
    )


def test_a_flood_of_frames_is_refused(side: Side) -> None:
    for microbatch in range(100):
        side.send(frame("gradient", 2, microbatch=microbatch, samples=4))
    assert re.match(r"stage 1 on pi-b refuses a frame: the inbox is full", str(side.refusal()))


@pytest.mark.parametrize(
    ("attachment", "chunk"),
    [(b"", b""), (b"garbage", b"x" * 100), (b"EW" + bytes(40), b""), (bytes(18), bytes(9))],
)
def test_pieces_that_are_none_are_refused_and_name_the_stage(
    side: Side, attachment: bytes, chunk: bytes
) -> None:
    side.send_raw(attachment, chunk)
    refusal = side.refusal()
    assert isinstance(refusal, WireError)
    assert str(refusal).startswith("stage 1 on pi-b refuses a frame: ")


def test_a_payload_larger_than_any_declared_one_is_refused_before_it_is_allocated(
    side: Side,
) -> None:
    side.send(frame("activation", 0, tensors={ACTIVATION: torch.ones(1 << 20, 4)}, samples=4))
    refusal = str(side.refusal())
    assert "a payload here is at most" in refusal
    assert "16.0 MiB" in refusal


def test_frames_of_another_term_are_not_heard(side: Side) -> None:
    with pytest.raises(FleetError, match="nobody listens"):
        side.stranger.send(frame_key("default", "run-1", 1, 1, "begin"), begin(), device="pi-b")


def test_a_wait_that_lasts_too_long_names_both_sides() -> None:
    with MemoryFabric() as fabric:
        exchange = StageExchange(
            assignment(1),
            mlp_stages()[1],
            fabric.join("pi-b"),
            fleet="default",
            clock=SystemClock(),
            timeouts=Timeouts(frame=0.01, idle=0.01),
            throttle=Throttle(None, SystemClock()),
        )
        with exchange, pytest.raises(DeviceTimeout) as late:
            exchange.wait("gradient", 2, 3, 1)
    assert str(late.value) == (
        "stage 1 on pi-b waited 0 s for the gradient of microbatch 1 (round 3) from stage 2 on "
        "pi-c. Look at that device, or raise Timeouts.frame."
    )
    assert (late.value.device, late.value.stage) == ("pi-b", 1)


def test_what_is_sent_names_its_sender_and_reaches_the_next_stage(side: Side) -> None:
    arrived: queue.SimpleQueue[Frame] = queue.SimpleQueue()
    side.stranger.subscribe(
        frame_key("default", "run-1", 0, 2, "activation"),
        arrived.put,
        on_error=lambda error: None,
        expect=lambda header: None,
        limit_bytes=1 << 20,
    )
    side.exchange.send("activation", 2, 5, 1, handed_on(1), {"samples": 4.0})
    header = arrived.get(timeout=LONG).header
    assert (header.kind, header.device, header.stage) == ("activation", "pi-b", 1)
    assert (header.step, header.microbatch, header.scalars["samples"]) == (5, 1, 4.0)
    assert header.scalars.keys() == {"samples", "sent"}


def test_a_receiver_that_is_gone_ends_the_stage(side: Side) -> None:
    side.exchange.send("activation", 2, 0, 1, handed_on(1))
    assert "nobody listens to ew/default/run/run-1/0/2/activation" in str(side.refusal())


def test_the_devices_of_a_run_are_those_of_its_plan() -> None:
    assert assignment(0).devices == DEVICES
