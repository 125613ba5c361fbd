"""Kernel mode: one network namespace per device, joined by veth pairs, shaped by the kernel.

    this process (coordinator)       switch              pi-1              pi-2
    ┌───────────────────────┐   ┌─────────────┐   ┌──────────────┐   ┌──────────────┐
    │ ew1f0c22aa 198.18.7.1 ├───┤ p0       p1 ├───┤ ew0     .7.2 │   │ ew0     .7.3 │
    └───────────────────────┘   │     br0   p2 ├─┐ └──────────────┘   └───────┬──────┘
                                └─────────────┘ └─────────────────────────────┘

What leaves each interface with an address is shaped by its destination (``_netshape``).
Namespaces are anonymous and held by processes that end with this one, so nothing outlives it, not
even when it is killed: there are no names, files or rules to clean up.
"""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from ipaddress import IPv4Network
from types import TracebackType
from typing import Self

from edgeweave.core.clock import Clock, SystemClock
from edgeweave.core.errors import ConfigError, FleetError
from edgeweave.core.names import COORDINATOR_NAME
from edgeweave.fleet._netlinks import KernelLinks, Node, check_kernel
from edgeweave.fleet._netroutes import free_subnet, routed_networks
from edgeweave.fleet._nettools import NamespaceHolder, batch, look
from edgeweave.net.link import Links

__all__ = ["NamespaceLayout"]

_MOST_DEVICES = 250
_CLAIMS = 16


class NamespaceLayout:
    """The network of an emulated fleet, made of network namespaces, for a ``with`` block.

    Needs root and ``iproute2``; delay, jitter and loss need the kernel's ``netem``. Entering raises
    ``ConfigError`` naming what is missing. Start each agent behind ``prefix(device)``, listening on
    ``listen(device)`` with ``NetSettings(insecure=True)``: no other machine reaches the layout.

    The kernel's links hold back and lose every packet, of control and of reliable traffic too;
    their chances are not seeded; and what is sent over a link that is down is lost, not kept.

    >>> with NamespaceLayout(["pi-1", "pi-2"], Links()) as layout:  # doctest: +SKIP
    ...     layout.listen("pi-1")
    ('tcp/198.18.7.2:0',)
    """

    def __init__(
        self,
        devices: Sequence[str],
        links: Links,
        *,
        clock: Clock | None = None,
        stop_seconds: float = 5.0,
    ) -> None:
        names = (COORDINATOR_NAME, *devices)
        if not devices or len(set(names)) < len(names) or len(devices) > _MOST_DEVICES:
            raise ConfigError(
                f"kernel mode has 1 to {_MOST_DEVICES} devices of different names, and none is "
                f"called {COORDINATOR_NAME} (got {len(devices)}: {', '.join(devices[:8])})."
            )
        self._names = names
        self._links = links
        self._clock = clock or SystemClock()
        self._stop_seconds = stop_seconds
        self._interface = f"ew{secrets.token_hex(4)}"
        self._nodes: dict[str, Node] = {}
        self._kernel_links: KernelLinks | None = None
        self._stack = ExitStack()

    @property
    def interface(self) -> str:
        """The coordinator's end of its cable, in the namespace of this process."""
        return self._interface

    def address(self, name: str) -> str:
        """The address of a device, or of the coordinator."""
        return self._node(name).address

    def listen(self, name: str) -> tuple[str, ...]:
        """What a device, or the coordinator, passes as ``NetSettings.listen``.

        The coordinator's is tied to its interface, since its address alone could be reached from
        the other networks of this machine.
        """
        tie = f"#iface={self._interface}" if name == COORDINATOR_NAME else ""
        return (f"tcp/{self.address(name)}:0{tie}",)

    def prefix(self, device: str) -> tuple[str, ...]:
        """What to put before a command so that it runs where this device stands."""
        return self._node(device).prefix

    def reshape(self, links: Links) -> None:
        """From now on the links are these; what waits on one whose medium changes is lost."""
        if self._kernel_links is None:
            raise FleetError("the network layout is not open. Use it in a with block.")
        self._kernel_links.change(links)

    def __enter__(self) -> Self:
        kernel = look()
        check_kernel(kernel, self._links, self._names)
        with ExitStack() as stack:
            holders = [
                stack.enter_context(NamespaceHolder(stop_seconds=self._stop_seconds))
                for _ in self._names
            ]
            switch, of_devices = holders[0], holders[1:]
            batch("ip", _cables(self._interface, of_devices), switch.prefix)
            # It would go with the switch, but some time after the switch's last process.
            stack.callback(batch, "ip", [f"link del dev {self._interface}"])
            self._nodes = self._place(of_devices)
            links = KernelLinks(tuple(self._nodes.values()), kernel, self._links, clock=self._clock)
            self._kernel_links = stack.enter_context(links)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._kernel_links = None
        self._stack.__exit__(kind, error, traceback)
        self._nodes = {}

    def _place(self, holders: Sequence[NamespaceHolder]) -> dict[str, Node]:
        """Give everyone an address."""
        batch("ip", [f"link set dev {self._interface} addrgenmode none up"])
        subnet = self._claim()
        mine = Node(COORDINATOR_NAME, self._interface, (), str(subnet[1]))
        nodes = {mine.name: mine}
        for number, (name, holder) in enumerate(zip(self._names[1:], holders, strict=True), 2):
            node = Node(name, "ew0", holder.prefix, str(subnet[number]))
            nodes[name] = node
            lines = [
                "link set dev lo up",
                f"addr add {node.address}/{subnet.prefixlen} dev {node.interface}",
                f"link set dev {node.interface} addrgenmode none up",
            ]
            batch("ip", lines, node.prefix)
        return nodes

    def _claim(self) -> IPv4Network:
        """Take a free subnet, and look again: another fleet may have drawn the same just now."""
        rng = random.SystemRandom()
        for _ in range(_CLAIMS):
            subnet = free_subnet(routed_networks(), rng)
            place = f"{subnet[1]}/{subnet.prefixlen} dev {self._interface}"
            batch("ip", [f"addr add {place}"])
            others = routed_networks(but=self._interface)
            if not any(subnet.overlaps(each) for each in others):
                return subnet
            batch("ip", [f"addr del {place}"])
        raise FleetError(
            f"a network layout finds a subnet of its own (not in {_CLAIMS} attempts: others take "
            "the same). Start fewer fleets at once."
        )

    def _node(self, name: str) -> Node:
        if name not in self._nodes:
            there = ", ".join(self._nodes) or "nobody, since it is not open"
            raise FleetError(f"nobody called {name!r} stands in this layout (there: {there}).")
        return self._nodes[name]


def _cables(interface: str, holders: Sequence[NamespaceHolder]) -> list[str]:
    """Veth pairs from a bridge, one to this process and one to each holder's namespace."""
    ends = [(interface, os.getpid()), *(("ew0", holder.pid) for holder in holders)]
    lines = [
        "link add name br0 type bridge forward_delay 0",
        "link set dev br0 addrgenmode none up",
    ]
    for number, (end, pid) in enumerate(ends):
        lines += [
            f"link add p{number} type veth peer name {end} netns {pid}",
            f"link set dev p{number} master br0 addrgenmode none up",
        ]
    return lines
