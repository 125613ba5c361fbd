"""The errors that each codec's docstring allows, computed apart from the codecs, in float64."""

from __future__ import annotations

import torch

from edgeweave.codec import Codec, blockfloat, truncate, uniform

EVERY_CODEC = [make(bits) for make in (truncate, uniform, blockfloat) for bits in range(2, 17)]

_LEAST_POWER = -126


def allowed(values: torch.Tensor, codec: Codec, *, at_random: bool = False) -> torch.Tensor:
    """The largest error of each of flat, finite ``values``."""
    blocks = values.double().split(codec.block)
    each = [_BOUNDS[codec.name](block, codec.bits) for block in blocks]
    return torch.cat(each) * (2 if at_random else 1) + _arithmetic(blocks)


def _arithmetic(blocks: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """What float32 arithmetic adds; a bound of its own where everything is denormal."""
    largest = [block.abs().max().expand(len(block)) for block in blocks]
    return torch.cat(largest) * 2.0**-19 + 2.0**-110


def _uniform(block: torch.Tensor, bits: int) -> torch.Tensor:
    step = (block.max() - block.min()) / (2**bits - 1)
    return (step / 2).expand(len(block))


def _blockfloat(block: torch.Tensor, bits: int) -> torch.Tensor:
    return (_least_power(block, 2 ** (bits - 1) - 1) / 2).expand(len(block))


def _truncate(block: torch.Tensor, bits: int) -> torch.Tensor:
    exponent_bits = min(5, (bits + 1) // 2)
    mantissa_bits = bits - 1 - exponent_bits
    top = 2.0 ** (2**exponent_bits - 2) * (2 - 2.0**-mantissa_bits)
    smallest_normal = _least_power(block, top)
    largest = float(block.abs().max())
    assert smallest_normal <= max(largest * 2.0 ** (3 - 2**exponent_bits), 2.0**_LEAST_POWER)
    # Twice rounded: to 24 bits first where a value is below the smallest normal number.
    magnitudes = block.abs().clamp(min=float(smallest_normal))
    return magnitudes * 2.0 ** -(mantissa_bits + 1) * (1 + 2**-12)


def _least_power(block: torch.Tensor, top: float) -> torch.Tensor:
    """The least power of two, from 2**-126, with all of the block within ``top`` times it."""
    power = 2.0**_LEAST_POWER
    while top * power < float(block.abs().max()):
        power *= 2
    return torch.tensor(power, dtype=torch.float64)


_BOUNDS = {"uniform": _uniform, "blockfloat": _blockfloat, "truncate": _truncate}
