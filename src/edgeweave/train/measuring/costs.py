"""What a plan is made from: sizes from the graph, links as measured, and what units take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edgeweave.device import Optimizer, state_bytes_per_trainable_byte
from edgeweave.plan import UNSEEN_LINK, Coding, Costs, DeviceCosts, Link, Sizes

__all__ = ["Sizes", "costs_of"]


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
        default_link=UNSEEN_LINK,
        optimizer_bytes_per_trainable_byte=state_bytes_per_trainable_byte(optimizer),
        feeds=sizes.feeds,
        skips=sizes.skips,
        coding=coding,
    )
