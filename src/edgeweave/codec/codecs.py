"""Which codec a tensor travels in: a value, checked when it is made.

The four are AccEPT's two readings of "bit-level" compression and their neighbours:

    none              as it is
    truncate(bits)    floats with fewer bits of exponent and mantissa
    uniform(bits)     equal steps from the smallest to the largest value of a block
    blockfloat(bits)  integers that share one exponent in a block

A block is a run of values of the flattened tensor that share a scale. The bounds below are per
value; ``largest`` is the largest magnitude of its block. float32 arithmetic adds less than
``largest * 2**-19 + 2**-110`` to them, and a tensor of 16-bit floats its own rounding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from edgeweave.core.errors import ConfigError

__all__ = [
    "FEWEST_BITS",
    "LARGEST_BLOCK",
    "MOST_BITS",
    "SMALLEST_BLOCK",
    "Codec",
    "CodecName",
    "blockfloat",
    "none",
    "parse",
    "truncate",
    "uniform",
]

CodecName = Literal["none", "truncate", "uniform", "blockfloat"]

FEWEST_BITS, MOST_BITS = 2, 16
SMALLEST_BLOCK, LARGEST_BLOCK = 16, 4096


@dataclass(frozen=True, slots=True)
class Codec:
    """A name, the bits of a value and the values of a block; ``none`` has neither (0).

    Build one with ``none``, ``truncate``, ``uniform`` or ``blockfloat``.
    """

    name: CodecName
    bits: int = 0
    block: int = 0

    def __post_init__(self) -> None:
        if self.name not in get_args(CodecName):
            raise ConfigError(
                f"a codec is one of {', '.join(get_args(CodecName))} (got {self.name!r})."
            )
        if self.name == "none":
            if self.bits or self.block:
                raise ConfigError(
                    f"the codec none has no bits and no block (got {self.bits} and {self.block})."
                )
            return
        if not FEWEST_BITS <= self.bits <= MOST_BITS:
            raise ConfigError(
                f"{self.name} takes {FEWEST_BITS} to {MOST_BITS} bits (got {self.bits})."
            )
        if not (SMALLEST_BLOCK <= self.block <= LARGEST_BLOCK and self.block.bit_count() == 1):
            raise ConfigError(
                f"a block of {self.name} is a power of two from {SMALLEST_BLOCK} to "
                f"{LARGEST_BLOCK} values (got {self.block})."
            )

    def __str__(self) -> str:
        return self.name if self.name == "none" else f"{self.name}({self.bits}, {self.block})"


def parse(text: str) -> Codec:
    """The codec that a text such as ``uniform(8)`` or ``blockfloat(4, 64)`` names.

    >>> parse("uniform(8)") == uniform(8), parse(str(blockfloat(4))) == blockfloat(4)
    (True, True)
    """
    found = _WRITTEN.fullmatch(text)
    name = found["name"] if found else text
    if found is None or (name == "none") != (found["bits"] is None) or name not in _MAKERS:
        raise ConfigError(
            "a codec is none, or truncate, uniform or blockfloat with bits and perhaps a block in "
            f"brackets (got {text!r}). Write uniform(8)."
        )
    numbers = [int(found[part]) for part in ("bits", "block") if found[part]]
    return _MAKERS[name](*numbers)


def none() -> Codec:
    """Every bit as it is; of floats that are often zero, the others and where they are.

    >>> str(none())
    'none'
    """
    return Codec("none")


def truncate(bits: int, block: int = 256) -> Codec:
    """Floats of a sign, ``min(5, (bits + 1) // 2)`` bits of exponent and the rest mantissa.

    Small values keep their relative precision, so it suits what spans many magnitudes. The
    exponents count from a power of two that a block shares, and the smallest are evenly spaced, as
    in the OCP Microscaling formats. With m bits of mantissa and k of exponent,

        error <= max(|x|, S) * 2**-(m + 1), rounded to nearest, twice that at random

    where S, the smallest normal number, is below ``largest * 2**(3 - 2**k)``.

    >>> str(truncate(8))
    'truncate(8, 256)'
    """
    return Codec("truncate", bits, block)


def uniform(bits: int, block: int = 256) -> Codec:
    """``2**bits`` levels at equal distance between the extremes of a block.

    The most exact of the three for values spread evenly, at 8 bytes a block.

        step = (highest - lowest) / (2**bits - 1)
        error <= step / 2, rounded to nearest; < step at random

    >>> str(uniform(8))
    'uniform(8, 256)'
    """
    return Codec("uniform", bits, block)


def blockfloat(bits: int, block: int = 64) -> Codec:
    """Integers of ``bits`` bits with sign times a power of two that a block shares, in one byte.

    Zero stays zero, also when rounded at random.

        step = the least power of two with largest <= step * (2**(bits - 1) - 1)
        error <= step / 2, rounded to nearest; < step at random

    >>> str(blockfloat(8))
    'blockfloat(8, 64)'
    """
    return Codec("blockfloat", bits, block)


_WRITTEN = re.compile(
    r" *(?P<name>[a-z]+) *(\( *(?P<bits>[0-9]{1,4}) *(, *(?P<block>[0-9]{1,5}) *)?\))? *"
)
_MAKERS: Mapping[str, Callable[..., Codec]] = {
    "none": none,
    "truncate": truncate,
    "uniform": uniform,
    "blockfloat": blockfloat,
}
