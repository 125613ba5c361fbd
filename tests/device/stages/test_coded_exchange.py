"""Coded frames at a stage: what they decode to is what it expects, or the run ends."""

from __future__ import annotations

import queue
import re
from collections.abc import Iterator

import msgspec
import pytest
import torch

from edgeweave.codec import decode, encode, none, uniform
from edgeweave.core.errors import WireError
from edgeweave.device import as_mapping, coding_names
from edgeweave.device.frames.codec import FrameCoding, encoded_frame
from edgeweave.net import Frame, frame_pattern, payload_bytes
from tests.device.stages.examples import LONG, frame, handed_on
from tests.device.stages.sides import Side, listening_side

ACTIVATION = next(iter(handed_on(0)))
GRADIENT = next(iter(handed_on(1)))
CODING = FrameCoding(uniform(5), 11)
ME = "stage 1 on pi-b"


def made_up(stage: int, n_samples: int = 4) -> dict[str, torch.Tensor]:
    """What a stage hands on, random: no few bits hold it exactly."""
    generator = torch.Generator().manual_seed(n_samples)
    return {
        name: torch.randn(tensor.shape, generator=generator)
        for name, tensor in handed_on(stage, n_samples).items()
    }


SENT = frame("activation", 0, tensors=made_up(0), samples=4)
RAW_BYTES = payload_bytes(SENT.header.tensors)


def called_coded(sent: Frame) -> Frame:
    """A frame that says it is coded."""
    return Frame(msgspec.structs.replace(sent.header, codec="edgeweave"), sent.tensors)


@pytest.fixture
def side() -> Iterator[Side]:
    with listening_side() as made:
        yield made


@pytest.mark.parametrize("n_samples", [4, 1])
@pytest.mark.parametrize(
    "coding", [CODING, FrameCoding(none()), FrameCoding(uniform(3), deflate=True)], ids=str
)
def test_a_coded_frame_arrives_decoded(side: Side, coding: FrameCoding, n_samples: int) -> None:
    tensors = made_up(0, n_samples)
    plain = frame("activation", 0, tensors=tensors, samples=n_samples)
    side.send(encoded_frame(plain, coding))
    arrived = side.exchange.wait("activation", 0, 0)
    assert arrived.header == plain.header
    expected = decode(encode(tensors[ACTIVATION], coding.codec, seed=coding.seed))
    assert torch.equal(as_mapping(arrived)[ACTIVATION], expected)
    assert torch.equal(expected, tensors[ACTIVATION]) == (coding.codec == none())
    assert side.exchange.coding_seconds > 0


def test_coded_gradients_arrive_and_may_be_empty(side: Side) -> None:
    plain = frame("gradient", 2, tensors=made_up(1), samples=4)
    side.send(encoded_frame(plain, CODING))
    side.send(encoded_frame(frame("gradient", 2, microbatch=1, samples=4), CODING))
    expected = decode(encode(plain.tensors[0], CODING.codec, seed=CODING.seed))
    assert torch.equal(as_mapping(side.exchange.wait("gradient", 2, 0))[GRADIENT], expected)
    assert as_mapping(side.exchange.wait("gradient", 2, 0, 1)) == {}


def test_plain_frames_among_coded_ones_are_as_welcome(side: Side) -> None:
    side.send(SENT)
    arrived = as_mapping(side.exchange.wait("activation", 0, 0))
    assert torch.equal(arrived[ACTIVATION], SENT.tensors[0])
    assert side.exchange.coding_seconds == 0


BEGIN = {"step": 0.0, "microbatches": 1.0, "train": 1.0, "total_samples": 4.0}
HALVES = encoded_frame(
    frame("activation", 0, tensors={ACTIVATION: made_up(0)[ACTIVATION].half()}, samples=4), CODING
)
FEWER = encoded_frame(frame("activation", 0, tensors=made_up(0, 3), samples=4), CODING)
CORRUPTED = encoded_frame(SENT, CODING)
CORRUPTED.tensors[0][-1] ^= 1
HUGE = torch.zeros(RAW_BYTES + 1024, dtype=torch.uint8)
REFUSED = {
    "input": (
        called_coded(frame("input", samples=4)),
        f"{ME} expects 'input' frames as they are (got coded ones from coordinator-1).",
    ),
    "begin": (
        called_coded(frame("begin", **BEGIN)),
        f"{ME} expects 'begin' frames as they are (got coded ones from coordinator-1).",
    ),
    "reduce": (
        called_coded(frame("reduce", 0)),
        f"{ME} expects 'reduce' frames as they are (got coded ones from pi-a).",
    ),
    "ping": (
        called_coded(frame("ping", 0)),
        f"{ME} expects 'ping' frames as they are (got coded ones from pi-a).",
    ),
    "result": (
        called_coded(frame("result", 2, samples=4, loss=0.5)),
        f"{ME} expects no 'result' frame from stage 2 (pi-c).",
    ),
    "another dtype": (
        HALVES,
        f"{ME} refuses a frame: {ACTIVATION} in 'activation' from pi-a: ",
    ),
    "another shape": (
        FEWER,
        f"{ME} refuses a frame: {ACTIVATION} in 'activation' from pi-a: ",
    ),
    "a broken byte": (
        CORRUPTED,
        f"{ME} refuses a frame: {ACTIVATION} in 'activation' from pi-a: a coded tensor arrives as "
        "it was sent (its checksum is wrong). Send it again.",
    ),
    "no bytes": (
        called_coded(frame("activation", 0, tensors={ACTIVATION: HUGE[:0].clone()}, samples=4)),
        f"{ME} refuses a frame: {ACTIVATION} in 'activation' from pi-a: a coded tensor has at "
        "least 16 bytes (it has 0). Send it again.",
    ),
    "values that say they are coded": (
        called_coded(SENT),
        f"{ME} expects {ACTIVATION}, which is coded, as bytes in a row (got float32 ",
    ),
    "bytes in rows": (
        called_coded(
            frame("activation", 0, tensors={ACTIVATION: HUGE[:64].reshape(8, 8)}, samples=4)
        ),
        f"{ME} expects {ACTIVATION}, which is coded, as bytes in a row (got uint8 (8, 8) from",
    ),
    "coded tensors that do not say so": (
        frame("activation", 0, tensors={ACTIVATION: CORRUPTED.tensors[0]}, samples=4),
        f"{ME} expects {ACTIVATION} as float32 ",
    ),
    "more bytes than any frame has": (
        called_coded(frame("activation", 0, tensors={ACTIVATION: HUGE}, samples=4)),
        "a payload here is at most",
    ),
    "another tensor": (
        encoded_frame(frame("gradient", 2, tensors={"y": torch.ones(4)}, samples=4), CODING),
        f"{ME} expects the tensors ['{GRADIENT}'] in 'gradient' frames (got ['y'] from pi-c).",
    ),
    "an activation without its tensor": (
        called_coded(frame("activation", 0, samples=4)),
        f"{ME} expects the tensors ['{ACTIVATION}'] in 'activation' frames (got [] from pi-a).",
    ),
    "more samples than a microbatch": (
        encoded_frame(frame("activation", 0, tensors=made_up(0, 4), samples=5), CODING),
        "a microbatch has at most 4 samples (got 5 from pi-a).",
    ),
    "a stage that sends none": (
        encoded_frame(frame("activation", 2, tensors=made_up(0), samples=4), CODING),
        f"{ME} expects no 'activation' frame from stage 2 (pi-c).",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_may_not_be_coded_so_ends_the_run_and_is_named(side: Side, what: str) -> None:
    sent, message = REFUSED[what]
    side.send(sent)
    refusal = side.refusal()
    assert type(refusal) is WireError
    assert message in str(refusal)
    assert str(refusal).startswith(ME)


def test_those_frames_are_refused_for_nothing_else(side: Side) -> None:
    """Without the word ``coded`` a stage takes the same frames."""
    side.send(frame("begin", **BEGIN))
    side.send(frame("reduce", 0))
    side.send(encoded_frame(SENT, CODING))
    assert side.exchange.wait("begin", -1, 0)
    assert side.exchange.wait("reduce", 0, 0)
    assert side.exchange.wait("activation", 0, 0)


def test_nothing_is_taken_for_tensors_that_a_coded_frame_may_not_bring(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    empty = torch.empty

    def noted(*args: object, **kwargs: object) -> torch.Tensor:
        tensor: torch.Tensor = empty(*args, **kwargs)  # type: ignore[call-overload]
        taken.append(tensor.nbytes)
        return tensor

    large = encode(torch.zeros(4, 1 << 16), uniform(8), deflate=True)
    bomb = torch.frombuffer(bytearray(large), dtype=torch.uint8)
    assert len(bomb) < RAW_BYTES
    sent = called_coded(frame("activation", 0, tensors={ACTIVATION: bomb}, samples=4))
    monkeypatch.setattr(torch, "empty", noted)
    side.send(sent)
    assert re.match(f"{ME} refuses a frame: {ACTIVATION} in", str(side.refusal()))
    assert max(taken) == RAW_BYTES


def test_what_is_sent_coded_is_coded_on_its_way_and_pings_are_not(side: Side) -> None:
    arrived: queue.SimpleQueue[Frame] = queue.SimpleQueue()
    side.stranger.subscribe(
        frame_pattern("default", "run-1", 0, 2),
        arrived.put,
        on_error=lambda error: None,
        expect=lambda header: None,
        limit_bytes=1 << 20,
    )
    tensors = made_up(1)
    side.exchange.send("activation", 2, 5, 0, tensors, {"samples": 4.0}, CODING)
    side.exchange.send("activation", 2, 5, 1, tensors, {"samples": 4.0})
    ping, coded, plain = (arrived.get(timeout=LONG) for _ in range(3))
    told = [(each.header.kind, each.header.codec) for each in (ping, coded, plain)]
    assert told == [("ping", "none"), ("activation", "edgeweave"), ("activation", "none")]
    expected = encode(tensors[GRADIENT], CODING.codec, seed=CODING.seed)
    assert bytes(coded.tensors[0].numpy()) == bytes(expected)
    assert torch.equal(plain.tensors[0], tensors[GRADIENT])
    assert ping.tensors == ()
    assert ping.header.scalars["sent"] == coded.header.scalars["sent"]
    assert coded.header.scalars.keys() == {"samples", "sent"}
    assert side.exchange.coding_seconds > 0


def test_begin_calls_bits_and_rates_by_the_stage_they_are_for() -> None:
    assert coding_names(2) == ("bits:2", "link:2")
