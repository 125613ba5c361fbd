"""Which addresses are free on this machine: subnets that no route of it covers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from ipaddress import IPv4Network

import msgspec

from edgeweave.core.errors import FleetError
from edgeweave.fleet._nettools import run

__all__ = ["free_subnet", "routed_networks"]

_POOLS = (IPv4Network("198.18.0.0/15"), IPv4Network("10.0.0.0/8"), IPv4Network("172.16.0.0/12"))
"""The range for trials between networks (RFC 2544) first: VPNs and containers leave it alone."""
_WIDTH = 24
_TRIES = 200
_WIDEST_ROUTE = 7
"""Routes of this width and wider (default, halves of the Internet) yield to narrower ones."""


class _Route(msgspec.Struct):
    dst: str
    dev: str = ""


def routed_networks(*, but: str = "") -> tuple[IPv4Network, ...]:
    """What this machine's routes cover, except those of one interface."""
    told = run(["ip", "-json", "-4", "route", "show", "table", "all"])
    try:
        routes = msgspec.json.decode(told or "[]", type=list[_Route])
    except msgspec.MsgspecError as error:
        raise FleetError(
            f"the routes of this machine can be read ({error}). Install ip from iproute2."
        ) from error
    found = (IPv4Network(each.dst) for each in routes if each.dst != "default" and each.dev != but)
    return tuple(network for network in found if network.prefixlen > _WIDEST_ROUTE)


def free_subnet(taken: Sequence[IPv4Network], rng: random.Random) -> IPv4Network:
    """A subnet of 254 addresses that overlaps with none of those taken, drawn at random.

    >>> free_subnet([IPv4Network("198.18.0.0/15")], random.Random(1)).is_private
    True
    """
    for pool in _POOLS:
        for _ in range(_TRIES):
            step = 1 << (32 - _WIDTH)
            number = rng.randrange(pool.num_addresses // step)
            subnet = IPv4Network((int(pool.network_address) + number * step, _WIDTH))
            if not any(subnet.overlaps(each) for each in taken):
                return subnet
    raise FleetError(
        "a network layout needs a free subnet (this machine's routes cover "
        f"{', '.join(map(str, _POOLS))}). Remove a route, or leave kernel mode."
    )
