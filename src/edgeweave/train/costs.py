"""What a plan is made from: sizes from the graph, links as measured, and what units take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from edgeweave.device import Optimizer, state_bytes_per_trainable_byte
from edgeweave.plan import Coding, Costs, Cut, DeviceCosts, Feed, Link, Skip, UnitFacts
from edgeweave.program import (
    Program,
    cut_bytes,
    input_bytes,
    skip_bytes,
    unit_bytes,
    without_outputs,
)

__all__ = ["Sizes", "costs_of"]

_UNSEEN = Link(bytes_per_second=1e8, latency_seconds=1e-3)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the graph tells of microbatches of one size, whoever computes them."""

    units: tuple[UnitFacts, ...]
    cuts: tuple[Cut, ...]
    feeds: tuple[Feed, ...]
    skips: tuple[Skip, ...]

    @classmethod
    def of(cls, program: Program, microbatch_size: int) -> Self:
        """Count them. It runs the program on tensors without data: 0.1 s for MobileNetV2."""
        program = without_outputs(program)
        return cls(
            units=tuple(
                UnitFacts(
                    name=f"unit {unit}",
                    parameter_bytes=size.parameters,
                    trainable_bytes=size.trainable,
                    buffer_bytes=size.buffers,
                    activation_bytes=size.activations,
                )
                for unit, size in unit_bytes(program, microbatch_size).items()
            ),
            cuts=tuple(
                Cut(each.forward, each.backward)
                for each in cut_bytes(program, microbatch_size).values()
            ),
            feeds=tuple(
                Feed(name, fed.size, fed.units)
                for name, fed in input_bytes(program, microbatch_size).items()
            ),
            skips=tuple(
                Skip(each.units, each.forward, each.backward)
                for each in skip_bytes(program, microbatch_size)
            ),
        )


def costs_of(
    sizes: Sizes,
    optimizer: Optimizer,
    devices: Iterable[DeviceCosts],
    links: Mapping[str, Mapping[str, Link]],
    *,
    coding: Coding | None = None,
) -> Costs:
    """What devices and links take, with the sizes that the graph tells."""
    return Costs(
        units=sizes.units,
        cuts=sizes.cuts,
        devices=tuple(devices),
        links={source: dict(targets) for source, targets in links.items()},
        default_link=_UNSEEN,
        optimizer_bytes_per_trainable_byte=state_bytes_per_trainable_byte(optimizer),
        feeds=sizes.feeds,
        skips=sizes.skips,
        coding=coding,
    )
