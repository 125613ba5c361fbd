"""What a member refuses before anything is allocated for it, and what it sends."""

from __future__ import annotations

import math
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
from edgeweave.device.slices.exchange import SliceExchange
from edgeweave.device.slices.hearing import Hearing
from edgeweave.device.slices.parcels import Parcel, ParcelId
from edgeweave.net import Frame, FrameHeader, MemoryFabric, TensorSpec, control_key, frame_key
from edgeweave.program import Group, Sliced, capture, slice_program, without_outputs
from tests.fleet.worlds import wait_until

BATCH = 16
COUNT, WIDTH = 5, 154
"""Datagrams of a message of 16 samples of 48 neurons, and elements of each."""
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


def rows(n_rows: int, width: int, dtype: str = "float32") -> tuple[TensorSpec, ...]:
    """What a message of so many datagrams of so many elements looks like."""
    numbers = TensorSpec("row", "int32", (n_rows,))
    return numbers, TensorSpec("x", dtype, (n_rows, width))


def header(member: SliceExchange, **changes: Any) -> FrameHeader:
    """A message as ``b`` sends it, but for the changes."""
    number = incoming(member)
    assert member.messages[number].n_datagrams(BATCH) == COUNT
    told = {"of": float(COUNT), "samples": float(BATCH), **changes.pop("told", {})}
    fields = {
        "kind": "values",
        "device": "b",
        "stage": 1,
        "term": 0,
        "step": 0,
        "microbatch": number,
        "tensors": rows(COUNT, WIDTH),
        "scalars": told,
        **changes,
    }
    return FrameHeader(**fields)


def test_what_a_member_may_hear_is_accepted(member: SliceExchange) -> None:
    member._checks.expect(header(member))
    member._checks.expect(header(member, tensors=(), told={"of": 0.0}))
    member._checks.expect(header(member, tensors=rows(0, WIDTH)))
    member._checks.expect(header(member, tensors=rows(1, 48 * BATCH), told={"of": 1.0}))
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
        {"told": {"of": 0.0}},
        {"tensors": ()},
        {"told": {"samples": 17.0}},
        {"told": {"samples": 1.5}},
        {"tensors": rows(1 << 30, 1)},
        {"tensors": rows(1, 1 << 30)},
        {"tensors": rows(2, WIDTH)[:1]},
        {"tensors": rows(2, WIDTH)[1:]},
        {"tensors": rows(2, WIDTH, "int8")},
        {"tensors": (rows(1, WIDTH)[0], rows(2, WIDTH)[1])},
        {"tensors": (TensorSpec("row", "int64", (2,)), rows(2, WIDTH)[1])},
        {"tensors": (rows(2, WIDTH)[0], TensorSpec("y", "float32", (2, WIDTH)))},
        {"kind": "input", "told": {"train": 1.0, "step": 0.0}},
    ],
)
def test_anything_else_is_refused_by_name(member: SliceExchange, changes: dict[str, Any]) -> None:
    with pytest.raises(WireError, match=r"stage 0 on a "):
        member._checks.expect(header(member, **changes))


@pytest.mark.parametrize(
    ("numbers", "rule"),
    [([0, 5], "rows are numbered from 0 to 4"), ([-1, 2], "rows are"), ([2, 2], "numbers of rows")],
)
def test_rows_of_another_message_end_the_run_by_name(numbers: list[int], rule: str) -> None:
    with MemoryFabric(timeouts=TIMEOUTS) as fabric:
        member = exchange(fabric, 0, ("a", "b", "c"))
        sender, key = fabric.join("b"), frame_key("default", "r", 0, 0, "values")
        tensors = torch.tensor(numbers, dtype=torch.int32), torch.zeros(2, WIDTH)
        with member:
            sender.send(key, Frame(header(member, tensors=rows(2, WIDTH)), tensors), device="a")
            wanted = {ParcelId("values", 0, incoming(member)): 1}
            with pytest.raises(WireError, match=rf"^stage 0 on a refuses a frame: .* b: {rule}"):
                member.parcels.wait(wanted, seconds=10.0)


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
    assert parcel.n_arrived == parcel.count == (1 if reliable else message.n_datagrams(BATCH))
    flat = torch.empty(tensor.numel())
    for index, row in enumerate(parcel.rows):
        part = flat[index :: parcel.count]
        part[:] = row[: len(part)]
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


def test_a_member_that_has_moved_is_heard_from_its_new_device_only() -> None:
    """What its old one still sends is no fault, and is not taken."""
    with MemoryFabric(timeouts=TIMEOUTS) as fabric:
        member = exchange(fabric, 0, ("a", "b", "c"))
        old, new, key = (
            fabric.join("b"),
            fabric.join("d"),
            frame_key("default", "r", 0, 0, "values"),
        )
        wanted = ParcelId("values", 0, incoming(member))

        def message(device: str, value: float) -> Frame:
            tensors = torch.arange(COUNT, dtype=torch.int32), torch.full((COUNT, WIDTH), value)
            return Frame(header(member, device=device), tensors)

        with member:
            with pytest.raises(WireError, match=r"expects no 'values' .* \(d\)"):
                member._checks.expect(message("d", 1.0).header)
            alive = new.announce(control_key("default", "d", "alive"))
            wait_until(lambda: member.roster.is_there("d"), "a sees that d is there")
            member.move(1, "d")
            old.send(key, message("b", 1.0), device="a")
            new.send(key, message("d", 2.0), device="a")
            parcel = member.parcels.wait({wanted: 1}, seconds=10.0)[wanted]
            alive.close()
    assert parcel.outcome == "whole"
    assert float(torch.as_tensor(parcel.rows[0]).max()) == 2.0


def test_a_member_waits_for_one_that_has_moved_only_while_its_new_device_is_there() -> None:
    with MemoryFabric(timeouts=TIMEOUTS) as fabric:
        member = exchange(fabric, 0, ("a", "b", "c"))
        new = fabric.join("d")
        with member:
            member.move(1, "d")
            assert member.parcels.is_gone(1)
            alive = new.announce(control_key("default", "d", "alive"))
            wait_until(lambda: not member.parcels.is_gone(1), "a sees that d is there")
            alive.close()
            wait_until(lambda: member.parcels.is_gone(1), "a sees that d is gone")


def test_of_a_member_that_has_moved_reception_is_learnt_anew() -> None:
    with MemoryFabric(timeouts=TIMEOUTS) as fabric:
        member = exchange(fabric, 0, ("a", "b", "c"))
        hearing = Hearing(member.roster, member.parcels)
        message = member.messages[incoming(member)]
        n_elements = math.prod(message.shape(BATCH))
        half = Parcel("ended", 2, torch.zeros(1), torch.zeros(1, n_elements // 2))
        with member:
            for device in ("b", "d"):
                member.move(1, device)
                for _ in range(3):
                    hearing.opened(half, message, 1, samples=BATCH, reliable=False)
                (told,) = hearing.statistics()
                assert (told.sender, told.datagrams, told.arrived) == (device, 6, 3)
