"""What a user says about codecs, and what planning needs to know of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Literal, Self

from edgeweave.codec import Codec, parse, uniform
from edgeweave.core.errors import ConfigError
from edgeweave.device import CodingProbe, CodingSeconds, decode_message
from edgeweave.fleet import Fleet
from edgeweave.plan import Coding, LinkCodec, Plan
from edgeweave.program import DTYPES, Program

__all__ = ["Compression", "chosen_codec", "measure_coding"]

_WIDTHS = (16, 12, 8, 6)
"""Fewer bits cost accuracy: docs/reference-benchmarks.md, ``convergence``."""
_SCALE_BITS: Mapping[str, int] = {"truncate": 8, "uniform": 64, "blockfloat": 8}
"""What a block has beside its values: docs/reference-codecs.md."""
_MOST_CODED_BITS = 32


@dataclass(frozen=True, slots=True)
class Compression:
    """A codec, the bits that it may have, and whether links may do without it."""

    codec: Codec
    widths: tuple[int, ...]
    always: bool

    @classmethod
    def of(cls, choice: Codec | Literal["auto"]) -> Self | None:
        """``"auto"``: as many bits as links have time for; a codec: that one on every link."""
        if choice == "auto":
            return cls(uniform(_WIDTHS[0]), _WIDTHS, always=False)
        if not isinstance(choice, Codec):
            raise ConfigError(
                f'codec is "auto" or one of edgeweave.codec (got {choice!r}). '
                "Write edgeweave.codec.uniform(8)."
            )
        return None if choice.name == "none" else cls(choice, (choice.bits,), always=True)

    def given(self, plan: Plan) -> Plan:
        """A plan that was made without codecs, with the one that every link must have."""
        if plan.codecs or not self.always:
            return plan
        ends = permutations(plan.devices, 2)
        return replace(plan, codecs=tuple(LinkCodec(*each, self.widths[0]) for each in ends))

    def coding(self, program: Program) -> Coding | None:
        """What it does to the values of a program; None if it leaves all as they are."""
        value_bits = _value_bits(program)
        if value_bits is None:
            return None
        return Coding(
            self.widths,
            self.always,
            value_bits=value_bits,
            overhead_bits=_SCALE_BITS[self.codec.name] / self.codec.block,
        )


def chosen_codec(text: str) -> Codec | Literal["auto"]:
    """What a job file says: ``none``, ``auto`` or a codec such as ``uniform(8)``."""
    return "auto" if text == "auto" else parse(text)


def measure_coding(
    fleet: Fleet, names: Sequence[str], compression: Compression
) -> dict[str, CodingSeconds]:
    """What codecs take on each device. Real ones measure at the same time."""
    message = CodingProbe(compression.codec, compression.widths)

    def ask(name: str) -> bytes:
        return fleet.ask(name, "coding", message, timeout_seconds=fleet.timeouts.work)

    answers = fleet.for_each(names, ask, one_at_a_time=fleet.is_local)
    return {name: decode_message(answer, CodingSeconds) for name, answer in answers.items()}


def _value_bits(program: Program) -> int | None:
    """Of the widest float that gradients flow through and codecs apply to.

    float32 if gradients flow through nothing; None if all of it is float64, which is never coded.
    """
    floats = {DTYPES[v.dtype] for v in program.values().values() if v.requires_grad}
    bits = [8 * dtype.itemsize for dtype in floats]
    coded = [each for each in bits if each <= _MOST_CODED_BITS]
    return max(coded, default=None if bits else _MOST_CODED_BITS)
