"""Frames whose tensors are coded: bytes that say themselves what they were.

The frame then carries tensors of bytes under the names of those they were made of. What these must
be is known to the receiver; what else they claim to be is refused before memory is taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import torch

from edgeweave.codec import Codec, decode, encode
from edgeweave.core.errors import WireError
from edgeweave.net import Frame, TensorSpec, specs_of
from edgeweave.program import DTYPES

__all__ = ["MOST_OVERHEAD_BYTES", "FrameCoding", "decoded_frame", "encoded_frame", "message_seed"]

MOST_OVERHEAD_BYTES = 256
"""By which a coded tensor may be larger than one that is not, alignment included."""


@dataclass(frozen=True, slots=True)
class FrameCoding:
    """How the tensors of a frame are coded. Without ``seed`` they are rounded to nearest.

    ``bytes_per_second`` is what the link is believed to carry, None if that is not known.
    """

    codec: Codec
    seed: int | None = None
    deflate: bool = False
    bytes_per_second: float | None = None


def message_seed(run_seed: int, step: int, microbatch: int, source: int, target: int) -> int:
    """The seed of a message between two stages: equal wherever and whenever it is sent."""
    text = f"{run_seed}/{step}/{microbatch}/{source}>{target}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")


def encoded_frame(frame: Frame, coding: FrameCoding) -> Frame:
    """The frame with its tensors coded, each with a seed of its own."""
    made = {
        spec.name: torch.frombuffer(
            encode(
                tensor,
                coding.codec,
                seed=None if coding.seed is None else coding.seed + index,
                deflate=coding.deflate,
            ),
            dtype=torch.uint8,
        )
        for index, (spec, tensor) in enumerate(
            zip(frame.header.tensors, frame.tensors, strict=True)
        )
    }
    header = msgspec.structs.replace(frame.header, codec="edgeweave", tensors=specs_of(made))
    return Frame(header, tuple(made.values()))


def decoded_frame(frame: Frame, expected: Iterable[TensorSpec]) -> Frame:
    """The frame as it was before coding; ``WireError`` unless its tensors are the expected ones."""
    specs = {spec.name: spec for spec in expected}
    header = frame.header
    tensors = []
    for sent, data in zip(header.tensors, frame.tensors, strict=True):
        spec = specs[sent.name]
        into = torch.empty(spec.shape, dtype=DTYPES[spec.dtype])
        try:
            tensors.append(decode(data.numpy().data, into=into))
        except WireError as error:
            raise WireError(
                f"{sent.name} in {header.kind!r} from {header.device}: {error}"
            ) from error
    found = tuple(specs[sent.name] for sent in header.tensors)
    return Frame(msgspec.structs.replace(header, codec="none", tensors=found), tuple(tensors))
