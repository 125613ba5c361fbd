"""Keeps the kernel's shaping of a layout as a ``Links`` value says, recorded rates included."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from edgeweave.core.clock import Clock
from edgeweave.core.errors import ConfigError
from edgeweave.fleet._netshape import (
    class_line,
    leaf_line,
    most_segments,
    needs_netem,
    tree_lines,
)
from edgeweave.fleet._nettools import Kernel, batch
from edgeweave.fleet._nettraces import TraceFollower
from edgeweave.net.link import Links, LinkShape, RateTrace

__all__ = ["KernelLinks", "Node", "check_kernel"]


@dataclass(frozen=True, slots=True)
class Node:
    """The coordinator or a device: its interface, and how a command comes to run beside it."""

    name: str
    interface: str
    prefix: tuple[str, ...]
    address: str


def check_kernel(kernel: Kernel, links: Links, names: Sequence[str]) -> None:
    """Raise ``ConfigError`` naming the first link that this kernel cannot be like."""
    for source in names:
        for target in names:
            if kernel.netem and needs_netem(links.shape(source, target)):
                raise ConfigError(
                    "delay, jitter and loss in kernel mode need the kernel module sch_netem "
                    f"({source} -> {target} has some; {kernel.netem}). Load it, give links with "
                    "rates alone, or leave kernel mode: emulated links need none of it."
                )


class KernelLinks:
    """Shapes what every node sends, for a ``with`` block; ends with the nodes' namespaces.

    Traces count from the beginning of the block.
    """

    def __init__(
        self, nodes: Sequence[Node], kernel: Kernel, links: Links, *, clock: Clock
    ) -> None:
        self._nodes = {node.name: node for node in nodes}
        self._kernel = kernel
        self._links = links
        self._clock = clock
        self._lock = threading.Lock()
        self._began_seconds = clock.now()
        self._follower = self._following(Links())

    def __enter__(self) -> Self:
        for node in self._nodes.values():
            others = self._others(node.name)
            shapes = [self._links.shape(node.name, other.name) for other in others]
            segments = f"link set dev {node.interface} gso_max_segs {most_segments(shapes)}"
            batch("ip", [segments], node.prefix)
            batch(
                "tc",
                [
                    *tree_lines(node.interface, [other.address for other in others]),
                    *self._lines(node.name, Links(), self._links),
                ],
                node.prefix,
            )
        self._follower = self._following(self._links).__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._follower.__exit__(kind, error, traceback)

    def change(self, links: Links) -> None:
        """From now on the links are these; a connection keeps its size of packets.

        If the kernel refuses, ``FleetError``: some links may be as told, and the next change starts
        from those before.
        """
        check_kernel(self._kernel, links, tuple(self._nodes))
        with self._lock:
            try:
                self._follower.__exit__(None, None, None)
                for node in self._nodes.values():
                    if lines := self._lines(node.name, self._links, links):
                        batch("tc", lines, node.prefix)
                self._links = links
            finally:
                self._follower = self._following(self._links).__enter__()

    def _others(self, name: str) -> list[Node]:
        """Those the classes of a node are for, in their order."""
        return [node for node in self._nodes.values() if node.name != name]

    def _lines(self, source: str, before: Links, after: Links) -> list[str]:
        """What ``tc`` is told about the ways from a node that are not as they were."""
        interface = self._nodes[source].interface
        lines: list[str] = []
        for number, other in enumerate(self._others(source), start=1):
            old, new = before.shape(source, other.name), after.shape(source, other.name)
            rate = new.bytes_per_second
            if rate != old.bytes_per_second and not isinstance(rate, RateTrace):
                lines.append(class_line(interface, number, rate))
            if _medium(new) != _medium(old):
                lines.append(leaf_line(interface, number, new))
        return lines

    def _following(self, links: Links) -> TraceFollower[tuple[str, str]]:
        rates = {
            (source, other.name): links.shape(source, other.name).bytes_per_second
            for source in self._nodes
            for other in self._others(source)
        }
        traces = {link: rate for link, rate in rates.items() if isinstance(rate, RateTrace)}
        return TraceFollower(
            traces, self._change_rates, clock=self._clock, began_seconds=self._began_seconds
        )

    def _change_rates(self, rates: Mapping[tuple[str, str], float]) -> None:
        for source in sorted({source for source, _ in rates}):
            node = self._nodes[source]
            lines = [
                class_line(node.interface, number, rates[source, other.name])
                for number, other in enumerate(self._others(source), start=1)
                if (source, other.name) in rates
            ]
            batch("tc", lines, node.prefix)


def _medium(shape: LinkShape) -> tuple[object, ...]:
    """What the leaf of a class is made of; its rate belongs to the class."""
    return shape.up, shape.delay_seconds, shape.jitter_seconds, shape.loss
