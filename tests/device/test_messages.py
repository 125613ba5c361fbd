"""Messages: what is sent arrives, and bytes that are none are refused as such."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeweave.codec import blockfloat, uniform
from edgeweave.core.errors import WireError
from edgeweave.device import (
    Assignment,
    CodingProbe,
    CodingSeconds,
    Deploy,
    Emulate,
    Fault,
    Greeting,
    LinkProbe,
    LinkTimings,
    Optimizer,
    ProbeRequest,
    Profile,
    Pulse,
    Relay,
    Release,
    RunStatus,
    ServiceLevel,
    StageStatistics,
    StateRequest,
    TraceEvent,
    UnitTimings,
    decode_message,
    encode_message,
)
from edgeweave.device.messages import COORDINATOR
from edgeweave.device.probes.messages import ProbeWork
from edgeweave.net import Links, LinkShape, hello_of
from tests.predict.probes import FACTS, made_up_probe

ASSIGNMENT = Assignment(
    run="run-1",
    term=0,
    coordinator="coordinator-1",
    stage=1,
    devices=("pi-a", "pi-b", "pi-c"),
    schedule="1f1b",
    extra_in_flight=1,
    microbatch_size=4,
    max_microbatches=8,
    seed=3,
    optimizer=Optimizer("AdamW", lr=0.01, betas=(0.9, 0.99), foreach=None, maximize=False),
    clip_grad_norm=None,
    parameter_order=("weight", "bias"),
    tied={"embed.weight": (0, 2)},
)

DIRECT = msgspec.structs.replace(ASSIGNMENT, sources={"a": 0}, targets={"b": 2})

CODED = msgspec.structs.replace(ASSIGNMENT, codec=uniform(8))

MESSAGES = [
    DIRECT,
    CODED,
    Greeting(
        hello_of("pi-a"), "Linux", 4, "threads=3", "cpu", 0.5, 1 << 33, None, None, 1.5, FACTS
    ),
    ASSIGNMENT,
    Deploy(ASSIGNMENT, b"graph", memoryview(b"\x00tensors\xff"), None),
    Deploy(ASSIGNMENT, b"", memoryview(b""), memoryview(b"state")),
    Profile(b"graph", b"tensors", 8, 5, Optimizer("SGD", lr=0.1)),
    UnitTimings((0.1, 0.2), (0.3, 0.4), 1e-9),
    LinkProbe("pi-b", 1 << 20),
    Emulate(0.5, Links.of({("pi-a", "pi-b"): LinkShape(1e6, 0.02, loss=0.1)}, seed=3)),
    ProbeRequest(),
    ProbeRequest(made_up_probe(2)),
    ProbeWork(FACTS, None),
    Emulate(),
    LinkTimings(0.001, 1e7, 0.01),
    StateRequest("run-1", 7, "weights"),
    Release("run-1"),
    Pulse("run-1", 3, "computes", "the forward of microbatch 2", 0.5, 9, 0.1),
    Pulse(None),
    Relay("pi-b", 0.5),
    CodingProbe(blockfloat(16), (16, 8)),
    CodingSeconds(1e-9, 5e-10),
    StageStatistics(
        1.0, 2.0, 3.0, 4.0, 4.5, 0.25, 5, 6, 7, 8, 9.0, (TraceEvent("forward", 0, 1, 0.5, 0.6),)
    ),
    RunStatus("run-1", 2, 40, ("pi-a",), 3, 12, ("a sentence",), ServiceLevel(1, 0.5, 2.0, 3)),
    ServiceLevel(2, 0.5, 2.0, 3, 4, 11),
    Fault("run-1", 0, "pi-b", 1, b"error"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_message_arrives_as_it_was_sent(message: msgspec.Struct) -> None:
    assert decode_message(encode_message(message), type(message)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_messages_are_refused_or_are_of_their_kind(message: Any, data: Any) -> None:
    encoded = bytearray(encode_message(message))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(encoded) - 1))
        encoded[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(encoded)))
    try:
        found = decode_message(bytes(encoded[:end]), type(message))
    except WireError as error:
        assert str(error).startswith(f"not a {type(message).__name__} message (")  # noqa: PT017
    else:
        assert isinstance(found, type(message))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_are_an_assignment(data: bytes) -> None:
    try:
        assert isinstance(decode_message(data, Assignment), Assignment)
    except WireError:
        return


def test_a_message_of_another_kind_is_named() -> None:
    with pytest.raises(WireError, match=r"^not a Deploy message \(.*assignment"):
        decode_message(encode_message(Release("run-1")), Deploy)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(WireError, match=r"^not a Release message"):
        decode_message(b"\x81\xa3run" + b"\x91" * 100_000, Release)


def test_an_optimizer_with_options_that_are_no_values_is_refused() -> None:
    assert isinstance(ASSIGNMENT.optimizer.options["betas"], tuple)
    payload = msgspec.msgpack.encode({"name": "SGD", "options": {"lr": {"nested": 1}}})
    with pytest.raises(WireError, match=r"^not a Optimizer message"):
        decode_message(payload, Optimizer)


def test_an_assignment_names_its_peers_as_people_read_them() -> None:
    assert ASSIGNMENT.device == "pi-b"
    assert ASSIGNMENT.n_stages == 3
    assert ASSIGNMENT.peer(2) == "stage 2 on pi-c"
    assert ASSIGNMENT.peer(COORDINATOR) == "the coordinator (coordinator-1)"


def test_a_stage_exchanges_with_its_neighbours_and_those_it_reaches_past_stages() -> None:
    wide = msgspec.structs.replace(
        ASSIGNMENT,
        stage=2,
        devices=("a", "b", "c", "d", "e"),
        sources={"skipped": 0},
        targets={"out": 4},
    )
    assert (wide.senders, wide.receivers) == ((1, 0), (3, 4))
    assert (wide.source("skipped"), wide.source("other")) == (0, 1)
    assert (wide.target("out"), wide.target("other")) == (4, 3)
    ends = [msgspec.structs.replace(ASSIGNMENT, stage=stage) for stage in (0, 2)]
    assert [(end.senders, end.receivers) for end in ends] == [((), (1,)), ((1,), ())]


@pytest.mark.parametrize(
    "wrong",
    [{"sources": {"a": 1}}, {"sources": {"a": -1}}, {"targets": {"a": 1}}, {"targets": {"a": 3}}],
)
def test_values_come_from_stages_before_and_go_to_stages_behind(wrong: dict[str, Any]) -> None:
    raw = msgspec.msgpack.encode({**msgspec.to_builtins(ASSIGNMENT), **wrong})
    with pytest.raises(WireError, match="sources are stages before stage 1"):
        decode_message(raw, Assignment)


FIRST_MESSAGES = """
import sys, threading
import msgspec
from edgeweave.device.messages import decode_message, encode_message
from tests.device.test_messages import MESSAGES

encoded = [(encode_message(message), type(message)) for message in MESSAGES]
together = threading.Barrier(4)

def decode():
    together.wait()
    for data, kind in encoded:
        decode_message(data, kind)

sys.setswitchinterval(1e-6)
threads = [threading.Thread(target=decode) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.slow
def test_threads_may_decode_the_first_messages_of_a_kind_at_once() -> None:
    """msgspec 0.22 alone crashed in ten of twelve such processes."""
    for _ in range(3):
        subprocess.run([sys.executable, "-c", FIRST_MESSAGES], check=True, timeout=60)
