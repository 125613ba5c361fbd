"""One microbatch on its way through one member of a sliced program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from edgeweave.device.slices.hearing import Factor
from edgeweave.net import Frame

__all__ = ["Flight"]

_Tensors = dict[str, torch.Tensor]


@dataclass(slots=True)
class Flight:
    """A microbatch on its way through this member."""

    inputs: Mapping[str, torch.Tensor]
    scalars: Mapping[str, float]
    absent: frozenset[int]
    """Members without a part in this round."""
    outputs: dict[int, _Tensors] = field(default_factory=dict)
    """By segment."""
    factors: dict[int, Factor] = field(default_factory=dict)
    """What was multiplied with what came, by transfer."""
    returned: dict[int, torch.Tensor] = field(default_factory=dict)
    """Gradients of what this member handed itself, by transfer."""

    @classmethod
    def of(cls, frame: Frame) -> Flight:
        header = frame.header
        names = (spec.name for spec in header.tensors)
        absent = (name.partition(":")[2] for name in header.scalars if name.startswith("absent:"))
        return cls(
            dict(zip(names, frame.tensors, strict=True)),
            header.scalars,
            frozenset(int(rank) for rank in absent),
        )

    @property
    def samples(self) -> int:
        return int(self.scalars["samples"])

    @property
    def step(self) -> int:
        return int(self.scalars["step"])

    @property
    def is_reliable(self) -> bool:
        """Whether nothing may be lost in this round, whatever it takes."""
        return bool(self.scalars.get("reliable"))
