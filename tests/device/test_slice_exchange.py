"""What a member refuses before anything is allocated for it, and what it sends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from edgeweave.codec import uniform
from edgeweave.core.clock import SystemClock
from edgeweave.core.errors import ConfigError, WireError
from edgeweave.core.timeouts import Timeouts
from edgeweave.device import COORDINATOR, Optimizer, SliceAssignment
from edgeweave.device.parcels import ParcelId
from edgeweave.device.slice_exchange import SliceExchange
from edgeweave.net import FrameHeader, MemoryFabric, TensorSpec
from edgeweave.program import Group, Sliced, capture, slice_program, without_outputs

BATCH = 16
TIMEOUTS = Timeouts(send=2.0, stop=2.0)


def sliced(n_members: int) -> Sliced:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
    example = torch.randn(3, 8), torch.randn(3, 48)
    captured = capture(model, nn.functional.mse_loss, *example)
    program = without_outputs(captured.program)
    units = program.unit_numbers
    return slice_program(program, [Group(units[0], units[-1] + 1, n_members)])


def exchange(
    fabric: MemoryFabric, rank: int, names: tuple[str, ...], **options: Any
) -> SliceExchange:
    cut_up = sliced(len(names))
    assignment = SliceAssignment(
        run="r",
        term=0,
        coordinator="me",
        stage=rank,
        devices=names,
        microbatch_size=BATCH,
        max_microbatches=1,
        groups=cut_up.groups,
        mode="exchange",
        seed=0,
        optimizer=Optimizer("SGD", lr=0.1),
        least_wait_seconds=1.0,
        **options,
    )
    transport = fabric.join(names[rank])
    return SliceExchange(
        assignment, cut_up, transport, fleet="default", clock=SystemClock(), timeouts=TIMEOUTS
    )


@pytest.fixture
def member() -> Iterator[SliceExchange]:
    with MemoryFabric(timeouts=TIMEOUTS) as fabric:
        yield exchange(fabric, 0, ("a", "b", "c"))


def incoming(member: SliceExchange) -> int:
    """The number of a message that ``b`` sends ``a``."""
    return next(m.transfer for m in member.messages if (m.sender, m.receiver) == (1, 0))


def header(member: SliceExchange, **changes: Any) -> FrameHeader:
    """A datagram as ``b`` sends it, but for the changes."""
    number = incoming(member)
    message = member.messages[number]
    count = message.n_datagrams(BATCH)
    told = {"of": float(count), "part": 0.0, "samples": float(BATCH), **changes.pop("told", {})}
    fields = {
        "kind": "values",
        "device": "b",
        "stage": 1,
        "term": 0,
        "step": 0,
        "microbatch": number,
        "tensors": (message.part(0, count, BATCH),),
        "scalars": told,
        **changes,
    }
    return FrameHeader(**fields)


def test_what_a_member_may_hear_is_accepted(member: SliceExchange) -> None:
    member._checks.expect(header(member))
    member._checks.expect(header(member, tensors=()))
    number = next(m.transfer for m in member.messages if (m.sender, m.receiver) == (0, 1))
    member._checks.expect(header(member, kind="gradients", microbatch=number))


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "result"},
        {"kind": "gradients"},
        {"microbatch": 10_000},
        {"microbatch": -1},
        {"stage": 2},
        {"stage": 7},
        {"device": "c"},
        {"told": {"of": 3.0}},
        {"told": {"of": 0.5}},
        {"told": {"part": 99.0}},
        {"told": {"part": float("nan")}},
        {"told": {"samples": 17.0}},
        {"told": {"samples": 1.5}},
        {"tensors": (TensorSpec("x", "float32", (1 << 30,)),)},
        {"tensors": (TensorSpec("x", "int8", (4,)),)},
        {"tensors": (TensorSpec("y", "float32", (4,)),)},
        {"kind": "input", "told": {"train": 1.0, "step": 0.0}},
    ],
)
def test_anything_else_is_refused_by_name(member: SliceExchange, changes: dict[str, Any]) -> None:
    with pytest.raises(WireError, match=r"stage 0 on a "):
        member._checks.expect(header(member, **changes))


def test_an_input_of_the_coordinator_has_the_programs_tensors(member: SliceExchange) -> None:
    told = {"train": 1.0, "step": 0.0, "samples": 4.0}
    good = FrameHeader(
        "input", "me", COORDINATOR, 0, 0, 0, (TensorSpec("input:0", "float32", (4, 8)),), told
    )
    member._checks.expect(good)
    for tensors in (
        (TensorSpec("input:0", "float32", (5, 8)),),
        (TensorSpec("input:9", "float32", (4, 8)),),
    ):
        wrong = FrameHeader("input", "me", COORDINATOR, 0, 0, 0, tensors, told)
        with pytest.raises(WireError, match=r"^stage 0 on a expects input:"):
            member._checks.expect(wrong)


@pytest.mark.parametrize("codec", [None, uniform(8)])
@pytest.mark.parametrize("reliable", [False, True])
def test_what_one_member_sends_another_opens(codec: Any, reliable: bool) -> None:
    with MemoryFabric(timeouts=TIMEOUTS) as fabric:
        one, other = (exchange(fabric, rank, ("a", "b"), codec=codec) for rank in (0, 1))
        message = next(m for m in one.messages if (m.sender, m.receiver) == (0, 1))
        tensor = torch.randn(message.shape(BATCH))
        with one, other:
            one.send("values", message, 3, tensor, samples=BATCH, reliable=reliable)
            key = ParcelId("values", 3, message.transfer)
            parcel = other.parcels.wait({key: 0}, seconds=10.0)[key]
    assert parcel.outcome == "whole"
    assert len(parcel.parts) == (1 if reliable else message.n_datagrams(BATCH))
    flat = torch.empty(tensor.numel())
    for index, part in enumerate(parcel.parts):
        assert part is not None
        flat[index :: len(parcel.parts)] = part
    torch.testing.assert_close(
        flat.reshape(tensor.shape), tensor, atol=0.0 if codec is None else 0.05, rtol=0.0
    )


def test_coded_messages_take_fewer_datagrams() -> None:
    with MemoryFabric(timeouts=TIMEOUTS) as fabric:
        plain = exchange(fabric, 0, ("a", "b"))
        coded = exchange(fabric, 1, ("a", "b"), codec=uniform(4))
        for one, other in zip(plain.messages, coded.messages, strict=True):
            assert other.n_datagrams(512) < 0.25 * one.n_datagrams(512)


def test_a_name_that_leaves_a_datagram_no_room_is_refused_before_the_run() -> None:
    with MemoryFabric(timeouts=TIMEOUTS) as fabric:
        with pytest.raises(ConfigError, match=r"^a device's name travels in every datagram of 10"):
            exchange(fabric, 0, ("x" * 120, "b"))
        exchange(fabric, 0, ("x" * 60, "b"))
