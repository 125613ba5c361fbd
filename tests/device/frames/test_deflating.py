"""Huffman codes: used where they save more of the link's time than they take."""

from __future__ import annotations

from itertools import count

import pytest
import torch

from edgeweave.codec import uniform
from edgeweave.core.clock import VirtualClock
from edgeweave.device.frames.codec import FrameCoding, decoded_frame, encoded_frame
from edgeweave.device.frames.deflating import Deflating
from edgeweave.device.throttle import Throttle
from edgeweave.net import Frame, FrameHeader, payload_bytes, specs_of


def frame_of(tensor: torch.Tensor, microbatch: int = 0, kind: str = "activation") -> Frame:
    tensors = {"x": tensor}
    return Frame(FrameHeader(kind, "a", 0, 0, 0, microbatch, specs_of(tensors)), (tensor,))


def deflating(*, seconds_a_look: float = 0.0) -> Deflating:
    """Its stopwatch goes on by so many seconds whenever it is looked at, by twice as many later."""
    looks = count()
    clock = VirtualClock()
    return Deflating(
        Throttle(0.5, clock, cpu_seconds=lambda: seconds_a_look * (next(looks) % 3) ** 2)
    )


NORMAL = torch.randn(1 << 15, generator=torch.Generator().manual_seed(0))


def size(frame: Frame) -> int:
    return payload_bytes(frame.header.tensors)


def test_on_a_slow_link_frames_become_smaller_and_stay_the_same() -> None:
    frame = frame_of(NORMAL)
    coding = FrameCoding(uniform(4), bytes_per_second=1.0)
    plain = encoded_frame(frame, coding)
    chooser = deflating()
    for _ in range(40):
        small = chooser.encoded(frame, coding, device="b")
        assert size(small) < 0.97 * size(plain)
    decoded = [decoded_frame(each, frame.header.tensors).tensors[0] for each in (plain, small)]
    assert torch.equal(*decoded)


def test_on_a_fast_link_and_on_one_of_unknown_rate_frames_are_as_without() -> None:
    frame = frame_of(NORMAL)
    for rate in (1e12, None):
        coding = FrameCoding(uniform(4), bytes_per_second=rate)
        plain, chooser = encoded_frame(frame, coding), deflating(seconds_a_look=1e-3)
        for _ in range(40):
            found = chooser.encoded(frame, coding, device="b")
            assert torch.equal(found.tensors[0], plain.tensors[0])


@pytest.mark.parametrize(("factor", "pays"), [(0.5, True), (2.0, False)])
def test_they_pay_if_what_they_save_takes_the_link_longer_than_they_take(
    factor: float, pays: bool
) -> None:
    """Looks at 0, 1 and 4: the first coding takes 1, the second 3, so deflating 2, at half speed 4;
    and inflating half of that again.
    """
    frame = frame_of(NORMAL)
    coding = FrameCoding(uniform(4), bytes_per_second=1.0)
    plain, small = (
        encoded_frame(frame, FrameCoding(uniform(4), deflate=deflate)) for deflate in (False, True)
    )
    break_even = (size(plain) - size(small)) / (1.5 * 4.0)
    coding = FrameCoding(uniform(4), bytes_per_second=factor * break_even)
    found = deflating(seconds_a_look=1.0).encoded(frame, coding, device="b")
    assert size(found) == size(small if pays else plain)


def test_every_link_and_kind_of_frame_has_its_own_choice() -> None:
    slow, fast = (FrameCoding(uniform(4), bytes_per_second=rate) for rate in (1.0, 1e18))
    small, plain = (
        size(encoded_frame(frame_of(NORMAL), FrameCoding(uniform(4), deflate=deflate)))
        for deflate in (True, False)
    )
    chooser = deflating(seconds_a_look=1.0)
    for _ in range(3):
        assert size(chooser.encoded(frame_of(NORMAL), slow, device="b")) == small
        assert size(chooser.encoded(frame_of(NORMAL), fast, device="c")) == plain
        gradient = frame_of(NORMAL, kind="gradient")
        assert size(chooser.encoded(gradient, fast, device="b")) == plain
