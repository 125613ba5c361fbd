"""A message between two members as one frame, whose rows may be lost one by one (``net.bursts``).

    row      which datagrams these are, of those that ``codec.dealt`` makes of a tensor
    x        what they carry; coded: bytes, as many for each as the longest takes
    size     coded: how many bytes of each row count

Sent reliably a message is one row, and no message is a frame without tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch

from edgeweave.codec import PAYLOAD_BYTES, Codec, dealt, decode, encode, row_length
from edgeweave.core.errors import WireError
from edgeweave.device.frames.codec import MOST_OVERHEAD_BYTES
from edgeweave.device.slices.member_messages import Message
from edgeweave.net import Frame, FrameHeader, TensorSpec
from edgeweave.program import DTYPES

__all__ = ["MOST_ROW_BYTES", "check_rows", "rows_in", "rows_of"]

MOST_ROW_BYTES: Final = MOST_OVERHEAD_BYTES + 16
"""What a row may take beside its elements."""

_ROW: Final = "row"
_FLAT: Final = "x"
_SIZE: Final = "size"


def rows_of(
    message: Message,
    tensor: torch.Tensor,
    count: int,
    seed_of: Callable[[int], int | None],
    *,
    reliable: bool,
) -> dict[str, torch.Tensor]:
    """The tensors of a message in ``count`` datagrams. ``seed_of`` a row is what it is rounded by,
    if it is coded; None: to nearest.

    What a codec cannot make small enough for a datagram (not finite, or too large) is left out, as
    if it were lost, unless nothing may be.
    """
    rows = dealt(tensor, count)
    if message.codec is None:
        return {_ROW: torch.arange(count, dtype=torch.int32), _FLAT: rows}
    coded = _coded(rows, message.codec, seed_of)
    numbers = [n for n, each in enumerate(coded) if reliable or len(each) <= PAYLOAD_BYTES]
    sizes = [len(coded[number]) for number in numbers]
    joined = torch.zeros((len(numbers), max(sizes, default=0)), dtype=torch.uint8)
    for row, number in zip(joined, numbers, strict=True):
        row[: len(coded[number])] = coded[number]
    return {
        _ROW: torch.tensor(numbers, dtype=torch.int32),
        _FLAT: joined,
        _SIZE: torch.tensor(sizes, dtype=torch.int32),
    }


def check_rows(header: FrameHeader, message: Message, count: int, samples: int) -> None:
    """``WireError`` if a frame with tensors is not a message in ``count`` datagrams, or what is
    left of one; before anything is allocated for it.
    """
    value, width = message.value, row_length(_n_elements(message, samples), count)
    sent = header.tensors
    n = sent[0].shape[0] if sent and len(sent[0].shape) == 1 else -1
    expected: list[TensorSpec] = [TensorSpec(_ROW, "int32", (n,))]
    if message.codec is None:
        expected.append(TensorSpec(_FLAT, value.dtype, (n, width)))
    else:
        most = width * DTYPES[value.dtype].itemsize + MOST_OVERHEAD_BYTES
        longest = sent[1].shape[1] if len(sent) > 1 and len(sent[1].shape) == 2 else -1
        expected.append(TensorSpec(_FLAT, "uint8", (n, min(longest, most))))
        expected.append(TensorSpec(_SIZE, "int32", (n,)))
    if not 0 <= n <= count or sent != tuple(expected):
        raise WireError(
            f"{value.name} comes in {count} rows or fewer, as {expected} (got {sent} from "
            f"{header.device})."
        )


def rows_in(
    frame: Frame, message: Message, count: int, samples: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of rows, and the rows, of a frame that was checked; ``WireError`` if they are none
    of the message.
    """
    tensors = {s.name: t for s, t in zip(frame.header.tensors, frame.tensors, strict=True)}
    numbers, rows = tensors[_ROW], tensors[_FLAT]
    if len(numbers) and not (numbers[0] >= 0 and numbers[-1] < count):
        raise _wrong(frame, f"rows are numbered from 0 to {count - 1}")
    if len(numbers) > 1 and not bool((numbers[1:] > numbers[:-1]).all()):
        raise _wrong(frame, "numbers of rows ascend")
    if message.codec is None:
        return numbers, rows
    width = row_length(_n_elements(message, samples), count)
    return numbers, _decoded(frame, tensors, message, width)


def _coded(
    rows: torch.Tensor, codec: Codec, seed_of: Callable[[int], int | None]
) -> Sequence[torch.Tensor]:
    return [
        torch.frombuffer(encode(row, codec, seed=seed_of(number)), dtype=torch.uint8)
        for number, row in enumerate(rows)
    ]


def _decoded(
    frame: Frame, tensors: Mapping[str, torch.Tensor], message: Message, width: int
) -> torch.Tensor:
    coded, sizes = tensors[_FLAT], tensors[_SIZE]
    rows = torch.empty((len(coded), width), dtype=DTYPES[message.value.dtype])
    for row, data, size in zip(rows, coded, sizes.tolist(), strict=True):
        if not 0 <= size <= len(data):
            raise _wrong(frame, f"a coded row has at most {len(data)} bytes")
        try:
            decode(data[:size].contiguous().numpy().data, into=row)
        except WireError as error:
            raise _wrong(frame, str(error)) from error
    return rows


def _n_elements(message: Message, samples: int) -> int:
    return torch.Size(message.shape(samples)).numel()


def _wrong(frame: Frame, rule: str) -> WireError:
    header = frame.header
    return WireError(f"{header.kind!r} number {header.microbatch} from {header.device}: {rule}.")
