"""The section ``[super_neurons]`` of a job: train in slices, over links that lose. See
``train.job``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec

from edgeweave.train.jobs.settings import key

__all__ = ["SuperNeuronSection"]

Count = Annotated[int, msgspec.Meta(ge=1, le=2**31)]


@dataclass(frozen=True, slots=True)
class SuperNeuronSection:
    """What ``SuperNeuronTrainer`` takes beside the rest of the job."""

    groups: Literal["auto", "edgepipe"] | tuple[tuple[Count, Count], ...] = field(
        default="auto",
        metadata=key(
            '"auto", "edgepipe" or a list of pairs, numbers of layers and of devices',
            [[3, 2], [3, 2]],
        ),
    )
    mode: Literal["exchange", "grouped"] = field(
        default="exchange", metadata=key('"exchange" or "grouped"', "exchange")
    )
    delivery: Literal["auto", "tolerant", "reliable"] = field(
        default="auto", metadata=key('"auto", "tolerant" or "reliable"', "tolerant")
    )
