"""Locators such as ``tcp/127.0.0.1:7447``: reading them, and which addresses others can reach."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass, replace
from typing import Literal, cast

import psutil

from edgeweave.core.errors import ConfigError, FleetError

__all__ = ["Locator", "Protocol", "reachable", "unused_port"]

Protocol = Literal["tcp", "tls"]

_PATTERN = re.compile(
    r"(?P<protocol>tcp|tls)/(?P<host>\[[0-9a-fA-F:.]+\]|[^\[\]/:\s#?]+):(?P<port>\d{1,5})"
    r"(#iface=(?P<interface>[^/:;\s#?]{1,15}))?"
)


@dataclass(frozen=True, slots=True)
class Locator:
    """A protocol, a host (an IPv6 address without its brackets) and a port.

    With ``interface`` only what comes through that network interface of this machine is heard:
    Linux otherwise answers for an address on every interface it has.
    """

    protocol: Protocol
    host: str
    port: int
    interface: str = ""

    @classmethod
    def parse(cls, text: str) -> Locator:
        """Read a locator; ``ConfigError`` if it is none.

        >>> Locator.parse("tls/[::1]:7447")
        Locator(protocol='tls', host='::1', port=7447, interface='')
        """
        match = _PATTERN.fullmatch(text)
        if match is None or int(match["port"]) > 65_535:
            raise ConfigError(
                f"a locator is tcp/HOST:PORT or tls/HOST:PORT (got {text!r}). "
                "Write it like tcp/192.168.1.10:7447."
            )
        protocol = cast(Protocol, match["protocol"])
        host, port = match["host"].strip("[]"), int(match["port"])
        return cls(protocol, host, port, match["interface"] or "")

    def with_host(self, host: str) -> Locator:
        """The same with another host."""
        return replace(self, host=host)

    def with_port(self, port: int) -> Locator:
        """The same with another port."""
        return replace(self, port=port)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can be behind it."""
        address = _address(self.host)
        return self.host == "localhost" if address is None else address.is_loopback

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for every interface of this machine (``0.0.0.0`` or ``::``)."""
        address = _address(self.host)
        return address is not None and address.is_unspecified

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        tie = f"#iface={self.interface}" if self.interface else ""
        return f"{self.protocol}/{host}:{self.port}{tie}"


def unused_port(locator: Locator) -> int:
    """A port that is free on the locator's host now; another process may take it before we do."""
    family = socket.AF_INET6 if ":" in locator.host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.bind((locator.host, 0))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise FleetError(
            f"this machine cannot listen on {locator.host} ({error}). "
            "Pass a --listen address of this machine."
        ) from error


def reachable(locator: Locator) -> tuple[Locator, ...]:
    """Where others reach what listens on ``locator``: a wildcard becomes the addresses behind it.

    The name of an interface is for this machine alone, and left out. Interfaces that are down,
    loopback and link-local addresses are left out, so nothing may remain.
    """
    locator = replace(locator, interface="")
    if not locator.is_wildcard:
        return (locator,)
    families = {socket.AF_INET}
    if ":" in locator.host:
        families.add(socket.AF_INET6)
    up = {name for name, facts in psutil.net_if_stats().items() if facts.isup}
    found = [
        locator.with_host(entry.address)
        for name, entries in psutil.net_if_addrs().items()
        if name in up
        for entry in entries
        if entry.family in families and _is_routable(entry.address)
    ]
    return tuple(sorted(found, key=lambda each: (":" in each.host, each.host)))


def _is_routable(text: str) -> bool:
    address = _address(text)
    return address is not None and not (address.is_loopback or address.is_link_local)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
